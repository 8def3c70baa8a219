// The map of personas in two or three principal components.
function places() {
  const space = `spaces.${state.space}`,
    roles = at(`${space}.roles`),
    traits = at(`${space}.traits`),
    own = at(`${space}.default`);
  const width = DATA.spaces[state.space].drawn,
    found = [];
  const add = (kind, values, n) => {
    for (let i = 0; i < n; i++) {
      const c = Array.from(values.slice(i * width, i * width + width));
      if (c.every(Number.isFinite)) found.push({ ...persona(kind, i), c: [...c, 0, 0].slice(0, 3) });
    }
  };
  if (traits && (state.traits || state.space === "traits")) add("trait", traits, traits.length / width);
  if (roles) add("role", roles, roles.length / width);
  if (own) add("default", own, 1);
  return found;
}

const tint = (p) =>
  p.kind === "default"
    ? "var(--default)"
    : state.space === "traits"
      ? colourOf(p.cosine * 2.5)
      : colourOf(roleZ(p.projection));

function mark(svg, p, r, opacity = 1) {
  const chosen = state.chosen && state.chosen.kind === p.kind && state.chosen.i === p.i;
  const look = {
    fill: tint(p),
    stroke: chosen ? "var(--mark)" : "var(--panel)",
    "stroke-width": chosen ? 2.5 : 1,
    opacity,
    class: "pick",
  };
  if (p.kind === "default") el("path", { d: STAR(p.x, p.y, r + 6), ...look }, svg);
  else if (p.kind === "trait") el("path", { d: DIAMOND(p.x, p.y, r + 1), ...look }, svg);
  else el("circle", { cx: p.x, cy: p.y, r: chosen ? r + 1.5 : r, ...look }, svg);
}

/** How much of points and names a box covers; Infinity outside the map. */
function covered([left, top, right, bottom], own, shown, taken, box) {
  if (left < box.left - 4 || right > box.right + 4 || top < box.top - 6 || bottom > box.bottom) return Infinity;
  const names = taken.filter((t) => left < t[2] && t[0] < right && top < t[3] && t[1] < bottom).length;
  const points = shown.filter(
    (q) => q !== own && q.x > left - 3 && q.x < right + 3 && q.y > top - 2 && q.y < bottom + 2,
  ).length;
  return 3 * names + points;
}

/** Names beside the points, the outermost first, where they cover nothing; the chosen one and the default in any case. */
function labels(svg, shown, box, most, far, taken = []) {
  const isChosen = (p) => state.chosen && state.chosen.kind === p.kind && state.chosen.i === p.i;
  const rank = shown
    .map((p) => ({ p, isFirst: isChosen(p) || p.kind === "default", far: far(p) }))
    .sort((a, b) => b.isFirst - a.isFirst || b.far - a.far);
  let done = 0;
  for (const { p, isFirst } of rank) {
    if (done >= most) break;
    const wide = textWidth(p.name) * (isFirst ? 1.1 : 1);
    const gap = p.kind === "default" ? 15 : isChosen(p) ? 12 : 9;
    const sides = [
      ["start", p.x + gap, p.y + 4, p.x + gap, p.y - 9],
      ["end", p.x - gap, p.y + 4, p.x - gap - wide, p.y - 9],
      ["middle", p.x, p.y - gap - 2, p.x - wide / 2, p.y - gap - 15],
      ["middle", p.x, p.y + gap + 11, p.x - wide / 2, p.y + gap - 2],
    ].map(([anchor, x, y, left, top]) => {
      const place = [left, top, left + wide, top + 15];
      return { anchor, x, y, place, covers: covered(place, p, shown, taken, box) };
    });
    const best = sides.reduce((a, b) => (b.covers < a.covers ? b : a));
    if (best.covers === Infinity || (best.covers > 0 && !isFirst)) continue;
    taken.push(best.place);
    const { anchor, x, y } = best;
    const look = { class: "halo", x, y, "text-anchor": anchor, "pointer-events": "none" };
    el("text", { ...look, "font-weight": isFirst ? 600 : 400 }, svg, p.name);
    done++;
  }
}

let drawn = [];
function drawMap() {
  const place = $("map-chart");
  if (!place || !state.space) return;
  const small = place.clientWidth < 560,
    chart = canvas(place, small ? 400 : Math.min(720, Math.max(520, place.clientWidth * 0.72)), "");
  const points = places(),
    share = DATA.spaces[state.space].share[state.at],
    svg = chart.svg;
  const name = (k) =>
    `PC${k + 1}${share && share[k] !== null && share[k] !== undefined ? `, ${(100 * share[k]).toFixed(0)} % of the variance` : ""}`;
  if (!points.length) {
    el(
      "text",
      { x: chart.width / 2, y: chart.height / 2, "text-anchor": "middle" },
      svg,
      `There are no principal components at layer ${LAYERS[state.at]}.`,
    );
    drawn = [];
  } else if (state.dims === 3) drawn = turned(chart, points, name, small);
  else drawn = flat(chart, points, name, small);
  svg.setAttribute(
    "aria-label",
    `Map of ${points.length} personas at layer ${LAYERS[state.at]}, ${state.dims} components. The table below the charts has the numbers.`,
  );
  place.classList.toggle("turning", state.dims === 3);
}

const radius = (points, small) => (points.length > 60 ? (small ? 3.6 : 4.8) : small ? 5 : 6.5);

function flat(chart, points, name, small) {
  const box = { left: small ? 40 : 56, right: chart.width - 14, top: 30, bottom: chart.height - 46 };
  const x = scale(padded(extent(points.map((p) => p.c[0])), 0.07), box.left, box.right),
    y = scale(padded(extent(points.map((p) => p.c[1])), 0.07), box.bottom, box.top);
  axes(chart, x, y, box, {
    xTitle: name(0),
    yTitle: name(1),
    xTicks: ticks(x.domain, small ? 4 : 8),
    yTicks: ticks(y.domain, 6),
  });
  for (const p of points) {
    p.x = x(p.c[0]);
    p.y = y(p.c[1]);
    mark(chart.svg, p, radius(points, small));
  }
  const cx = (box.left + box.right) / 2,
    cy = (box.top + box.bottom) / 2;
  labels(chart.svg, points, box, small ? 14 : 60, (p) =>
    Math.hypot((p.x - cx) / (box.right - box.left), (p.y - cy) / (box.bottom - box.top)),
  );
  return points;
}

function turned(chart, points, name, small) {
  const box = { left: 10, right: chart.width - 10, top: 20, bottom: chart.height - 10 };
  const middle = [0, 1, 2].map((k) => {
    const [a, b] = extent(points.map((p) => p.c[k]));
    return (a + b) / 2;
  });
  // One scale for all three components, so that distances are what they are.
  const reach = Math.max(...points.map((p) => Math.hypot(...p.c.map((v, k) => v - middle[k])))) || 1;
  const size = Math.min((box.right - box.left) * 0.9, (box.bottom - box.top) * 1.12) / 2;
  const [yaw, pitch] = state.turn,
    cy = Math.cos(yaw),
    sy = Math.sin(yaw),
    cp = Math.cos(pitch),
    sp = Math.sin(pitch);
  const project = (v) => {
    const [a, b, c] = v,
      right = a * cy - c * sy,
      back = a * sy + c * cy,
      up = b * cp - back * sp,
      depth = b * sp + back * cp,
      near = 3 / (3 + depth);
    return { x: chart.width / 2 + right * near * size, y: (box.top + box.bottom) / 2 - up * near * size, depth, near };
  };
  const svg = chart.svg;
  const ends = [0, 1, 2].map((k) => {
    const end = [0, 0, 0];
    end[k] = 0.85;
    const a = project(end.map((v) => -v)),
      b = project(end);
    el("line", { class: "rule", x1: a.x, y1: a.y, x2: b.x, y2: b.y, "stroke-width": 1.5 }, svg);
    return b;
  });
  for (const p of points) Object.assign(p, project(p.c.map((v, k) => (v - middle[k]) / reach)));
  points.sort((a, b) => b.depth - a.depth);
  for (const p of points)
    mark(svg, p, radius(points, small) * Math.min(1.5, p.near), Math.max(0.55, Math.min(1, 1.05 - 0.35 * p.depth)));
  const titles = ends.map((b, k) => {
    const text = small ? `PC${k + 1}` : name(k),
      wide = textWidth(text);
    const x = Math.max(box.left, Math.min(box.right - wide, b.x - wide / 2));
    el("text", { class: "title halo", x, y: b.y - 6 }, svg, text);
    return [x - 2, b.y - 19, x + wide + 2, b.y - 2];
  });
  labels(
    svg,
    points,
    box,
    small ? 10 : 26,
    (p) => Math.hypot(p.x - chart.width / 2, p.y - chart.height / 2) * p.near,
    titles,
  );
  return points;
}

function nearest(event) {
  const svg = $("map-chart").firstElementChild,
    r = svg.getBoundingClientRect(),
    f = svg.viewBox.baseVal.width / r.width;
  const x = (event.clientX - r.left) * f,
    y = (event.clientY - r.top) * f;
  let best = null,
    least = event.pointerType === "touch" ? 24 : 15;
  for (const p of drawn) {
    const d = Math.hypot(p.x - x, p.y - y);
    if (d < least) {
      least = d;
      best = p;
    }
  }
  return best;
}

function wireMap() {
  const place = $("map-chart");
  if (!place) return;
  let drag = null,
    moved = false,
    queued = false;
  place.addEventListener("pointerdown", (event) => {
    drag = [event.clientX, event.clientY];
    moved = false;
  });
  place.addEventListener("pointermove", (event) => {
    if (drag && state.dims === 3 && event.buttons) {
      const dx = event.clientX - drag[0],
        dy = event.clientY - drag[1];
      if (moved || Math.hypot(dx, dy) > 3) {
        moved = true;
        drag = [event.clientX, event.clientY];
        turnBy(dx * 0.008, dy * 0.008);
        hideTip();
      }
      return;
    }
    const p = nearest(event);
    if (p)
      showTip(
        tipOf(p) + (DATA.descriptions[p.key] ? `\n${DATA.descriptions[p.key]}` : ""),
        event.clientX,
        event.clientY,
      );
    else hideTip();
  });
  function turnBy(dx, dy) {
    state.turn = [state.turn[0] + dx, Math.max(-1.5, Math.min(1.5, state.turn[1] + dy))];
    if (!queued) {
      queued = true;
      requestAnimationFrame(() => {
        queued = false;
        drawMap();
      });
    }
  }
  place.addEventListener("pointerleave", hideTip);
  place.addEventListener("pointerup", () => {
    drag = null;
  });
  place.addEventListener("click", (event) => {
    const p = moved ? null : nearest(event);
    if (p) choose(p);
  });
  place.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    if (state.dims === 3) {
      turnBy(step[0] * 0.12, step[1] * 0.12);
      return;
    }
    const order = drawn.slice().sort((a, b) => a.x - b.x),
      now = order.findIndex((p) => state.chosen && p.kind === state.chosen.kind && p.i === state.chosen.i);
    if (order.length) choose(order[(now + (step[0] || step[1]) + order.length) % order.length]);
  });
}
