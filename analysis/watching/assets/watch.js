// Conversations on the axis: the chart, the turn that was chosen, and the table. Uses base.js of the reports.
const DATA = JSON.parse($("data").textContent);
const TALKS = DATA.conversations;
const MEASURES = {
  projection: { place: 0, title: "projection (higher is nearer the Assistant)" },
  centred: { place: 1, title: "projection less the mean (higher is nearer the Assistant)" },
  z: { place: 2, title: "z-score (higher is nearer the Assistant)" },
  percentile: { place: 3, title: "percentile (higher is nearer the Assistant)" },
};
const state = { at: 0, measure: "projection", hidden: new Set(), chosen: null };
const colour = (talk) => `var(--line-${talk % 8})`;
const DASHES = ["", "7 4", "2 4", "9 3 2 3"];
const dash = (talk) => DASHES[Math.floor(talk / 8) % 4];

const known = (value) => (value === null || value === undefined ? NaN : value);
const valueOf = (turn, measure = state.measure) => known(turn.at[state.at][MEASURES[measure].place]);
const visible = () => TALKS.map((talk, i) => [talk, i]).filter(([, i]) => !state.hidden.has(i));

/** Mean, deviation and floor of the layer, in the measure that is drawn. */
function marks() {
  const s = DATA.scales[state.at],
    mean = known(s.mean),
    std = known(s.std),
    floor = known(s.floor);
  return {
    projection: { mean, low: mean - std, high: mean + std, floor },
    centred: { mean: 0 * mean, low: -std, high: std, floor: floor - mean },
    z: { mean: 0 * mean, low: -1 + 0 * std, high: 1 + 0 * std, floor: (floor - mean) / std },
    percentile: { mean: NaN, low: NaN, high: NaN, floor: known(s.floor_percentile) },
  }[state.measure];
}

let points = [];

function drawChart() {
  const chart = canvas($("watch-chart"), 380, "Every turn of the conversations on the Assistant Axis"),
    { svg, width, height } = chart;
  const narrow = width < 560;
  const box = { left: narrow ? 46 : 60, right: width - 14, top: 34, bottom: height - 46 };
  const m = marks();
  const turns = visible().flatMap(([talk]) => talk.turns);
  const values = [...turns.map((turn) => valueOf(turn)), m.floor, m.mean].filter(Number.isFinite);
  const yRange = state.measure === "percentile" ? [0, 100] : padded(extent(values), 0.12);
  const last = Math.max(1, ...turns.map((turn) => turn.i));
  const x = scale([-0.5, last + 0.5], box.left, box.right),
    y = scale(yRange, box.bottom, box.top);
  const clip = (value) => Math.max(box.top, Math.min(box.bottom, y(value)));
  if (Number.isFinite(m.low))
    el(
      "rect",
      { class: "deviation", x: box.left, width: box.right - box.left, y: clip(m.high), height: clip(m.low) - clip(m.high) },
      svg,
    );
  axes(chart, x, y, box, {
    xTitle: "turn (user 0, assistant 1 \u2026)",
    yTitle: MEASURES[state.measure].title,
    xTicks: ticks([0, last], narrow ? 6 : 12).filter(Number.isInteger),
    yTicks: ticks(yRange, 6),
  });
  if (Number.isFinite(m.mean))
    el("line", { class: "mean", x1: box.left, x2: box.right, y1: y(m.mean), y2: y(m.mean) }, svg);
  if (Number.isFinite(m.floor)) {
    el("line", { class: "floor", x1: box.left, x2: box.right, y1: y(m.floor), y2: y(m.floor) }, svg);
    el("text", { class: "halo tick", x: box.right - 4, y: y(m.floor) - 6, "text-anchor": "end" }, svg, `floor ${DATA.label}`);
  }
  points = [];
  for (const [talk, i] of visible()) {
    for (const role of new Set(talk.turns.map((turn) => turn.role))) {
      const own = talk.turns.filter((turn) => turn.role === role),
        isUser = role === "user";
      path(
        svg,
        own.map((turn) => [x(turn.i), y(valueOf(turn))]),
        { stroke: colour(i), "stroke-width": isUser ? 1.2 : 2.2, "stroke-dasharray": isUser ? "2 4" : dash(i) },
      );
      for (const turn of own) {
        const value = valueOf(turn);
        if (!Number.isFinite(value)) continue;
        const chosen = state.chosen && state.chosen.talk === i && state.chosen.turn === turn;
        el(
          "circle",
          {
            class: "pick",
            cx: x(turn.i),
            cy: y(value),
            r: chosen ? 8 : 5,
            fill: isUser ? "var(--panel)" : colour(i),
            stroke: chosen ? "var(--ink)" : isUser ? colour(i) : "var(--panel)",
            "stroke-width": chosen ? 2.5 : 1.5,
          },
          svg,
        );
        points.push({ talk: i, turn, x: x(turn.i), y: y(value) });
      }
    }
  }
}

function numbersOf(turn) {
  const [projection, centred, z, percentile, below, delta] = turn.at[state.at],
    spread = known(DATA.scales[state.at].spread);
  const parts = [`projection ${number(known(projection), spread)}`];
  if (delta !== null) parts.push(`change ${signed(delta, digits(spread))}`);
  if (centred !== null) parts.push(`centred ${signed(centred, digits(spread))}`);
  if (z !== null) parts.push(`z-score ${signed(z)}`);
  if (percentile !== null) parts.push(`percentile ${percentile.toFixed(1)}`);
  if (below !== null) parts.push(below ? `below the floor ${DATA.label}` : `above the floor ${DATA.label}`);
  return parts.join(", ");
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most).trimEnd()}\u2026` : text);
const heading = (talk, turn) => `${TALKS[talk].name}, turn ${turn.i} (${turn.role})`;

function drawChosen() {
  const place = $("chosen");
  if (!state.chosen) {
    place.replaceChildren(html("p", "quiet", "Point at a turn, or choose one, to read it here."));
    return;
  }
  const { talk, turn } = state.chosen;
  place.replaceChildren();
  html("h3", "", heading(talk, turn), place);
  html("p", "quiet", `${numbersOf(turn)}; ${turn.tokens} tokens, layer ${DATA.layers[state.at]}`, place);
  const quote = html("blockquote", "", null, place);
  if (!turn.words) {
    html("p", "words", turn.text || "(nothing was read of this turn)", quote);
    return;
  }
  const said = html("p", "words", null, quote),
    s = DATA.scales[state.at];
  turn.words.forEach((text, k) => {
    const value = known(turn.word_values[state.at][k]),
      word = html("span", "", text, said);
    word.style.borderBottomColor = colourOf((value - known(s.mean)) / known(s.std));
    word.title = `projection ${number(value, known(s.spread))}`;
  });
  html("p", "quiet", "The line below each token: its own projection, from away from the Assistant to toward it.", place);
  html("span", "ramp", null, place);
}

function drawTable() {
  const spread = known(DATA.scales[state.at].spread);
  document.querySelectorAll("#turns tbody tr").forEach((row) => {
    const talk = +row.dataset.talk,
      turn = TALKS[talk].turns[+row.dataset.turn],
      [projection, centred, z, percentile, below, delta] = turn.at[state.at],
      cells = row.querySelectorAll("td.at-layer");
    [
      number(known(projection), spread),
      signed(known(delta), digits(spread)),
      signed(known(centred), digits(spread)),
      signed(known(z)),
      percentile === null ? "\u2013" : percentile.toFixed(1),
      below === null ? "\u2013" : below ? "below" : "above",
    ].forEach((text, k) => {
      cells[k].textContent = text;
    });
    cells[5].classList.toggle("below", below === true);
    row.hidden = state.hidden.has(talk);
    row.setAttribute("aria-current", String(Boolean(state.chosen && state.chosen.turn === turn)));
  });
}

function draw() {
  const s = DATA.scales[state.at];
  $("compared").textContent = s.words;
  drawChart();
  drawChosen();
  drawTable();
}

function choose(talk, turn) {
  state.chosen = { talk, turn };
  draw();
}

function nearest(event) {
  const frame = $("watch-chart").getBoundingClientRect(),
    x = event.clientX - frame.left,
    y = event.clientY - frame.top;
  let best = null,
    least = 28 ** 2;
  for (const point of points) {
    const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
    if (distance < least) [best, least] = [point, distance];
  }
  return best;
}

function setLayer(to) {
  state.at = to;
  $("layer").value = to;
  $("layer").setAttribute("aria-valuetext", `layer ${DATA.layers[to]}`);
  $("layer-now").textContent = `layer ${DATA.layers[to]}`;
  hideTip();
  draw();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  readColours();
  draw();
}

/** Step to another turn of the chosen conversation, or to another conversation. */
function step(key) {
  const shown = visible();
  if (!shown.length) return;
  if (!state.chosen || state.hidden.has(state.chosen.talk)) {
    choose(shown[0][1], shown[0][0].turns[0]);
    return;
  }
  const { talk, turn } = state.chosen,
    turns = TALKS[talk].turns,
    at = turns.indexOf(turn);
  if (key === "ArrowRight") choose(talk, turns[Math.min(at + 1, turns.length - 1)]);
  if (key === "ArrowLeft") choose(talk, turns[Math.max(at - 1, 0)]);
  if (key === "ArrowDown" || key === "ArrowUp") {
    const place = shown.findIndex(([, i]) => i === talk) + (key === "ArrowDown" ? 1 : -1);
    const [other, i] = shown[(place + shown.length) % shown.length];
    choose(i, other.turns[Math.min(at, other.turns.length - 1)]);
  }
}

function wire() {
  const chart = $("watch-chart");
  chart.addEventListener("pointermove", (event) => {
    const point = nearest(event);
    if (point)
      showTip(
        `${heading(point.talk, point.turn)}\n${numbersOf(point.turn)}\n\n${cut(point.turn.text, 420)}`,
        event.clientX,
        event.clientY,
      );
    else hideTip();
  });
  chart.addEventListener("pointerleave", hideTip);
  chart.addEventListener("click", (event) => {
    const point = nearest(event);
    if (point) choose(point.talk, point.turn);
  });
  chart.addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    step(event.key);
  });
  document.querySelectorAll("#turns tbody tr").forEach((row) =>
    row.addEventListener("click", () => choose(+row.dataset.talk, TALKS[+row.dataset.talk].turns[+row.dataset.turn])),
  );
  document.querySelectorAll("[data-group=measure]").forEach((button) =>
    button.addEventListener("click", () => {
      document
        .querySelectorAll("[data-group=measure]")
        .forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      state.measure = button.dataset.value;
      draw();
    }),
  );
  TALKS.forEach((talk, i) => {
    const button = html("button", "", null, $("talks"));
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    const line = el("svg", { width: 26, height: 8, "aria-hidden": "true" }, button);
    el("line", { x1: 0, x2: 26, y1: 4, y2: 4, "stroke-width": 3, stroke: colour(i), "stroke-dasharray": dash(i) }, line);
    button.append(talk.name);
    button.addEventListener("click", () => {
      if (!state.hidden.delete(i)) state.hidden.add(i);
      button.setAttribute("aria-pressed", String(!state.hidden.has(i)));
      draw();
    });
  });
  $("layer").addEventListener("input", (event) => setLayer(+event.target.value));
  $("theme").addEventListener("click", () =>
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
  );
  window.addEventListener("scroll", hideTip, { passive: true });
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) {
      width = window.innerWidth;
      draw();
    }
  });
}

wire();
// The turn to begin with: the one that is farthest from the Assistant.
const first = TALKS.flatMap((talk, i) => talk.turns.map((turn) => ({ talk: i, turn })))
  .filter(({ turn }) => Number.isFinite(valueOf(turn)))
  .sort((a, b) => valueOf(a.turn) - valueOf(b.turn))[0];
if (first) state.chosen = first;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
$("theme").textContent = dark.matches ? "Light" : "Dark";
readColours();
setLayer(0);
