// Personas ranked along the axis: a row each, with its interval.
const ENDS = 18;

/** Rows of a spectrum with the personas between its ends left out unless they are asked for. */
function cut(rows, which) {
  if (state.all[which] || rows.length <= 2 * ENDS + 4) return rows;
  const isChosen = (p) => state.chosen && p.kind === state.chosen.kind && p.i === state.chosen.i;
  const middle = rows.slice(ENDS, -ENDS),
    kept = middle.filter((p) => p.kind === "default" || isChosen(p));
  return [...rows.slice(0, ENDS), { gap: middle.length - kept.length }, ...kept, ...rows.slice(-ENDS)];
}

function spectrum(id, rows, which, { value, low, high, title, format, domain, label, zero }) {
  const place = $(id);
  if (!place) return;
  const there = rows.filter((p) => Number.isFinite(value(p))).sort((a, b) => value(b) - value(a));
  const shown = cut(there, which),
    row = 19,
    small = place.clientWidth < 480;
  const chart = canvas(place, 58 + row * Math.max(1, shown.length), label),
    svg = chart.svg;
  if (!there.length) {
    el("text", { x: 0, y: 30 }, svg, `There are no values at layer ${LAYERS[state.at]}.`);
    return;
  }
  const names = Math.min(
    small ? 122 : 190,
    14 +
      Math.max(...shown.map((p) => (p.gap !== undefined ? 0 : textWidth(p.name) * (p.kind === "default" ? 1.12 : 1)))),
  );
  const box = { left: names, right: chart.width - (small ? 44 : 58), top: 40, bottom: chart.height - 10 };
  const ends = domain || padded(extent(there.flatMap((p) => [value(p), low(p), high(p)])), 0.04),
    x = scale(ends, box.left + 6, box.right - 6);
  for (const tick of ticks(ends, small ? 3 : 6)) {
    el(
      "line",
      {
        class: tick === 0 && zero ? "rule" : "grid",
        x1: x(tick),
        x2: x(tick),
        y1: box.top - 8,
        y2: box.bottom,
        "stroke-width": tick === 0 && zero ? 2 : 1,
      },
      svg,
    );
    el("text", { class: "tick", x: x(tick), y: box.top - 13, "text-anchor": "middle" }, svg, shortTick(tick));
  }
  el("text", { class: "title", x: 0, y: 11 }, svg, title);
  el("text", { class: "tick", x: chart.width, y: box.top - 13, "text-anchor": "end" }, svg, "n");
  shown.forEach((p, k) => {
    const y = box.top + row * (k + 0.5);
    if (p.gap !== undefined) {
      el("text", { class: "tick", x: names - 8, y: y + 4, "text-anchor": "end" }, svg, `\u2026 ${p.gap} more`);
      return;
    }
    const group = el("g", { class: "pick" }, svg),
      chosen = state.chosen && state.chosen.kind === p.kind && state.chosen.i === p.i;
    el(
      "rect",
      { x: 0, y: y - row / 2, width: chart.width, height: row, fill: chosen ? "var(--grid)" : "transparent" },
      group,
    );
    const text = el(
      "text",
      { x: names - 8, y: y + 4, "text-anchor": "end", "font-weight": p.kind === "default" || chosen ? 600 : 400 },
      group,
      p.name,
    );
    if (textWidth(p.name) > names - 10) {
      text.setAttribute("textLength", names - 12);
      text.setAttribute("lengthAdjust", "spacingAndGlyphs");
    }
    const colour = p.kind === "default" ? "var(--default)" : p.kind === "trait" ? "var(--trait)" : "var(--role)";
    if (zero)
      el("line", { x1: x(0), x2: x(value(p)), y1: y, y2: y, stroke: colour, "stroke-width": 1.5, opacity: 0.5 }, group);
    if (Number.isFinite(low(p)) && Number.isFinite(high(p)))
      el(
        "path",
        {
          d: `M${x(low(p))} ${y}H${x(high(p))}M${x(low(p))} ${y - 3.5}v7M${x(high(p))} ${y - 3.5}v7`,
          stroke: colour,
          "stroke-width": 1.5,
          opacity: 0.65,
        },
        group,
      );
    if (p.kind === "default") el("path", { d: STAR(x(value(p)), y, 8), fill: colour }, group);
    else if (p.kind === "trait") el("path", { d: DIAMOND(x(value(p)), y, 5.2), fill: colour }, group);
    else el("circle", { cx: x(value(p)), cy: y, r: 4.6, fill: colour }, group);
    el(
      "text",
      { class: "tick", x: chart.width, y: y + 4, "text-anchor": "end" },
      group,
      p.n === null ? "\u2013" : count(p.n),
    );
    group.addEventListener("pointermove", (event) => showTip(tipOf(p), event.clientX, event.clientY));
    group.addEventListener("pointerleave", hideTip);
    group.addEventListener("click", () => choose(p));
  });
  const more = $(`${which}-all`);
  if (more) {
    more.hidden = there.length <= 2 * ENDS + 4;
    more.textContent = state.all[which] ? "Show the ends only" : `Show all ${there.length}`;
  }
}

function drawSpectra() {
  const nothing = () => NaN;
  spectrum("roles-chart", [...personas("role"), ...(DATA.default.projection ? personas("default") : [])], "roles", {
    value: (p) => p.projection,
    low: (p) => p.low,
    high: (p) => p.high,
    title: "projection on +axis",
    label: `Roles ranked by projection on the Assistant Axis at layer ${LAYERS[state.at]}; the table has the numbers.`,
  });
  spectrum("traits-chart", personas("trait"), "traits", {
    value: (p) => p.cosine,
    low: nothing,
    high: nothing,
    zero: true,
    domain: traitDomain(),
    title: "cosine of the trait vector with the axis",
    label: `Traits ranked by cosine with the Assistant Axis at layer ${LAYERS[state.at]}; the table has the numbers.`,
  });
}

function traitDomain() {
  const [low, high] = extent(at("traits.cosine") || []),
    most = Math.max(0.1, Math.abs(low), Math.abs(high)) * 1.08;
  return [-most, most];
}
