// Charts over layers, over components, and of single rollouts.
function byLayer(id, { title, lines, domain, floor, label }) {
  const place = $(id);
  if (!place) return;
  const chart = canvas(place, 250, label),
    svg = chart.svg,
    box = { left: 44, right: chart.width - 10, top: 30, bottom: 206 };
  const every = lines
    .flatMap((l) => [...(l.values || []), ...(l.low || []), ...(l.high || [])])
    .map((v) => (v === null ? NaN : v));
  const [low, high] = extent([...every, floor ?? NaN, ...(domain || [])]);
  const first = LAYERS[0],
    last = LAYERS[LAYERS.length - 1];
  const x = scale(first === last ? [first - 1, last + 1] : [first, last], box.left + 6, box.right - 6),
    y = scale(padded([low, high], 0.03), box.bottom, box.top);
  const whole = ticks(x.domain, chart.width / 70).filter((v) => Number.isInteger(v) && v >= first && v <= last);
  axes(chart, x, y, box, { xTitle: "layer", yTitle: title, xTicks: whole, yTicks: ticks(y.domain, 5) });
  if (floor !== undefined)
    el(
      "line",
      {
        x1: box.left,
        x2: box.right,
        y1: y(floor),
        y2: y(floor),
        stroke: "var(--note-edge)",
        "stroke-dasharray": "5 4",
      },
      svg,
    );
  const now = x(LAYERS[state.at]),
    xs = LAYERS.map((l) => x(l)),
    px = (v) => (v === null || v === undefined ? NaN : y(v));
  el("line", { class: "now", x1: now, x2: now, y1: box.top - 4, y2: box.bottom, "stroke-width": 1.5 }, svg);
  for (const l of lines) {
    if (l.low) band(svg, xs, l.low.map(px), l.high.map(px), { fill: l.colour, opacity: 0.2 });
    if (l.values) {
      path(
        svg,
        l.values.map((v, i) => [xs[i], px(v)]),
        { stroke: l.colour, ...(l.dash ? { "stroke-dasharray": l.dash } : {}) },
      );
      const own = px(l.values[state.at]);
      if (Number.isFinite(own)) el("circle", { cx: now, cy: own, r: 4.5, fill: l.colour, stroke: "var(--panel)" }, svg);
    }
  }
  const find = (event) => {
    const r = svg.getBoundingClientRect(),
      v = x.invert(((event.clientX - r.left) * chart.width) / r.width);
    return LAYERS.reduce((best, l, i) => (Math.abs(l - v) < Math.abs(LAYERS[best] - v) ? i : best), 0);
  };
  svg.addEventListener("pointermove", (event) => {
    const i = find(event),
      ends = (l) => (l.low && l.low[i] !== null ? ` (95 %: ${signed(l.low[i])} to ${signed(l.high[i])})` : "");
    showTip(
      [
        `layer ${LAYERS[i]}`,
        ...lines.map(
          (l) => `${l.name}: ${l.values && l.values[i] !== null ? signed(l.values[i]) : "\u2013"}${ends(l)}`,
        ),
      ].join("\n"),
      event.clientX,
      event.clientY,
    );
  });
  svg.addEventListener("pointerleave", hideTip);
  svg.addEventListener("click", (event) => setLayer(find(event)));
  svg.classList.add("pick");
}

function drawLayers() {
  const a = DATA.axis,
    when = `at layer ${LAYERS[state.at]}`;
  byLayer("strength-chart", {
    title: "z-score among the roles",
    domain: [0],
    lines: [{ name: "default Assistant", values: a.strength, colour: "var(--default)" }],
    label: `Distance of the default Assistant from the roles by layer; ${when} it is ${signed(a.strength ? (a.strength[state.at] ?? NaN) : NaN)} standard deviations.`,
  });
  byLayer("half-chart", {
    title: "cosine with another estimate",
    domain: [1],
    floor: DATA.reliable,
    lines: [
      { name: "halves of the questions", values: a.half, colour: "var(--default)" },
      ...(a.low
        ? [{ name: "other samples of roles", values: null, low: a.low, high: a.high, colour: "var(--role)" }]
        : []),
    ],
    label: `Cosine between estimates of the axis by layer; ${when} that of two halves of the questions is ${signed(a.half ? (a.half[state.at] ?? NaN) : NaN)}.`,
  });
  byLayer("pc1-chart", {
    title: "cosine of PC1 with the axis",
    domain: [0, 1],
    floor: DATA.aligned,
    lines: [
      { name: "centred", values: a.pc1, low: a.pc1Low, high: a.pc1High, colour: "var(--role)" },
      ...(a.pc1z ? [{ name: "z-scored", values: a.pc1z, colour: "var(--trait)", dash: "6 4" }] : []),
    ],
    label: `Cosine of the first component with the axis by layer; ${when} it is ${signed(a.pc1 ? (a.pc1[state.at] ?? NaN) : NaN)}.`,
  });
}

/** Components to show: a quarter more than 90 % of the variance take at any layer, so that the slider moves no axis. */
function mostComponents(keys) {
  const all = Math.max(...keys.map((key) => at(`spaces.${key}.cumulative`).length));
  const needed = Math.max(...keys.flatMap((key) => DATA.spaces[key].needed[2]));
  return Math.max(2, Math.min(all, Math.max(10, Math.ceil(needed * 1.25))));
}

function drawVariance() {
  const place = $("variance-chart");
  if (!place) return;
  const small = place.clientWidth < 480,
    chart = canvas(place, 330, `Cumulative variance over components at layer ${LAYERS[state.at]}.`),
    svg = chart.svg,
    box = { left: 44, right: chart.width - 12, top: 30, bottom: 284 };
  const sets = [
    ["roles", "roles", "var(--role)", ""],
    ["zscored", "roles, z-scored", "var(--default)", "6 4"],
    ["traits", "trait vectors", "var(--trait)", "2 4"],
  ].filter(([key]) => DATA.spaces[key]);
  const most = mostComponents(sets.map(([key]) => key)),
    x = scale([1, most], box.left + 4, box.right - 6),
    y = scale([0, 1], box.bottom, box.top);
  axes(chart, x, y, box, {
    xTitle: "number of components",
    yTitle: "cumulative variance",
    xTicks: ticks([1, most], small ? 4 : 8).filter(Number.isInteger),
    yTicks: [0, 0.25, 0.5, 0.75, 1],
    yFormat: (v) => `${100 * v} %`,
  });
  [0.7, 0.8, 0.9].forEach((share) => {
    el(
      "line",
      {
        x1: box.left,
        x2: box.right,
        y1: y(share),
        y2: y(share),
        stroke: "var(--note-edge)",
        "stroke-dasharray": "5 4",
        opacity: 0.8,
      },
      svg,
    );
    el(
      "text",
      { class: "tick halo", x: box.right, y: y(share) + 13, "text-anchor": "end" },
      svg,
      `${Math.round(100 * share)} %`,
    );
  });
  for (const [key, , colour, dash] of sets) {
    const values = Array.from(at(`spaces.${key}.cumulative`)).slice(0, most);
    path(
      svg,
      values.map((v, i) => [x(i + 1), y(v)]),
      { stroke: colour, ...(dash ? { "stroke-dasharray": dash } : {}) },
    );
    DATA.spaces[key].needed.forEach((layers, s) => {
      const k = layers[state.at];
      if (k) el("circle", { cx: x(k), cy: y(values[k - 1]), r: 4, fill: colour, stroke: "var(--panel)" }, svg);
    });
  }
  const words = sets.map(
    ([key, name]) => `${name}: ${DATA.spaces[key].needed.map((layers) => layers[state.at] || "\u2013").join(", ")}`,
  );
  $("needed").textContent =
    `Components for 70, 80 and 90 % of the variance at layer ${LAYERS[state.at]}: ${words.join("; ")}.`;
  const rest = [],
    d = DATA.distance && DATA.distance[state.at],
    v = DATA.rolloutVariance && DATA.rolloutVariance[state.at];
  if (d && d[0] !== null)
    rest.push(
      `Along PC1 the default lies ${d[0] < 0 ? "inside" : "outside"} the roles' range, ${(100 * Math.abs(d[0])).toFixed(0)} % of it from the nearer end.`,
    );
  if (v && v[0] !== null)
    rest.push(
      `The first ${v.length} components hold ${(100 * v.reduce((a, b) => a + (b || 0), 0)).toFixed(0)} % of the variance of single rollouts.`,
    );
  $("beyond").textContent = rest.join(" ");
}

const KIND = {
  default: ["var(--default)", ""],
  role: ["var(--role)", "7 3"],
  trait: ["var(--trait)", "2 3"],
  rollout: ["var(--quiet)", ""],
  conversation: ["var(--quiet)", "4 4"],
};

function drawHistogram() {
  const place = $("histogram-chart");
  if (!place) return;
  const h = DATA.histograms,
    shares = at("histograms.shares"),
    [low, high] = h.range[state.at],
    small = place.clientWidth < 480;
  const chart = canvas(
      place,
      330,
      `Distribution of single rollouts on the axis at layer ${LAYERS[state.at]}, by kind, with the thresholds.`,
    ),
    svg = chart.svg;
  if (low === null) {
    el("text", { x: 0, y: 40 }, svg, `There is no axis at layer ${LAYERS[state.at]}.`);
    return;
  }
  const box = { left: 44, right: chart.width - 10, top: 62, bottom: 284 },
    bins = shares.length / h.kinds.length,
    width = (high - low) / bins;
  const x = scale([low, high], box.left, box.right),
    y = scale([0, Math.max(...shares) * 1.05 || 1], box.bottom, box.top);
  axes(chart, x, y, box, {
    xTitle: small ? "projection on +axis" : "projection on +axis; right is toward the Assistant",
    xTicks: ticks([low, high], small ? 4 : 7),
    yTicks: ticks(y.domain, 6),
    yFormat: (v) => `${v} %`,
  });
  el("text", { class: "title", x: 0, y: 11 }, svg, "share of the kind's rollouts per bin");
  h.kinds.forEach((kind, k) => {
    let d = `M${x(low)} ${y(0)}`;
    for (let b = 0; b < bins; b++) d += `V${y(shares[k * bins + b]).toFixed(1)}H${x(low + (b + 1) * width).toFixed(1)}`;
    const [colour, dash] = KIND[kind];
    el("path", { d: `${d}V${y(0)}Z`, fill: colour, opacity: 0.16 }, svg);
    el(
      "path",
      {
        d: `${d}V${y(0)}`,
        fill: "none",
        stroke: colour,
        "stroke-width": 1.8,
        ...(dash ? { "stroke-dasharray": dash } : {}),
      },
      svg,
    );
  });
  let taken = [];
  DATA.thresholds.labels
    .map((label, q) => [label, DATA.thresholds.floor[q][state.at]])
    .filter(([, v]) => v !== null)
    .sort((a, b) => a[1] - b[1])
    .forEach(([label, v]) => {
      el(
        "line",
        { x1: x(v), x2: x(v), y1: box.top - 4, y2: box.bottom, stroke: "var(--mark)", "stroke-dasharray": "2 3" },
        svg,
      );
      // Labels that would touch go one line up.
      const half = textWidth(label) / 2 + 3,
        line = [0, 1, 2].find((n) => !taken.some((t) => t[2] === n && x(v) - half < t[1] && x(v) + half > t[0])) ?? 0;
      taken.push([x(v) - half, x(v) + half, line]);
      el(
        "text",
        {
          class: "tick halo",
          x: Math.max(half, Math.min(chart.width - half, x(v))),
          y: box.top - 8 - 13 * line,
          "text-anchor": "middle",
        },
        svg,
        label,
      );
    });
  svg.addEventListener("pointermove", (event) => {
    const r = svg.getBoundingClientRect(),
      v = x.invert(((event.clientX - r.left) * chart.width) / r.width),
      b = Math.floor((v - low) / width);
    if (b < 0 || b >= bins) {
      hideTip();
      return;
    }
    showTip(
      [
        `${number(low + b * width, high - low)} to ${number(low + (b + 1) * width, high - low)} on +axis`,
        ...h.kinds.map((kind, k) => `${kind}: ${shares[k * bins + b].toFixed(1)} % of ${count(h.totals[k])}`),
      ].join("\n"),
      event.clientX,
      event.clientY,
    );
  });
  svg.addEventListener("pointerleave", hideTip);
}
