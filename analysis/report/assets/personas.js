// The numbers of the page by persona and layer: what a tooltip, a row and the panel beside the map show.
const DATA = JSON.parse($("data").textContent);
const LAYERS = DATA.layers;
const lazy = {};
/** Values of a packed array at a layer, unpacked once. */
function at(path, layer = state.at) {
  const key = `${path}@${layer}`;
  if (!(key in lazy)) {
    const source = `${path}!`;
    if (!(source in lazy))
      lazy[source] = unpack(path.split(".").reduce((part, name) => (part ? part[name] : null), DATA));
    lazy[key] = lazy[source] ? lazy[source](layer) : null;
  }
  return lazy[key];
}
const state = {
  at: DATA.start,
  space: DATA.spaces.roles ? "roles" : Object.keys(DATA.spaces)[0],
  dims: 2,
  traits: false,
  chosen: null,
  all: {},
  turn: [-0.6, 0.35],
};

const spread = () => {
  const roles = at("roles.projection");
  if (!roles) return 10;
  const [a, b] = extent(roles);
  return b - a;
};
function roleZ(value) {
  const there = finite(at("roles.projection") || []);
  if (there.length < 2) return NaN;
  const mean = there.reduce((a, b) => a + b, 0) / there.length;
  const deviation = Math.sqrt(there.reduce((a, b) => a + (b - mean) ** 2, 0) / there.length);
  return deviation > 1e-12 * Math.max(...there.map(Math.abs)) ? (value - mean) / deviation : 0;
}

/** Everything about one persona at this layer. */
function persona(kind, i) {
  if (kind === "default") {
    const own = at("default.projection"),
      low = at("default.low"),
      high = at("default.high");
    return {
      kind,
      i,
      name: "the default Assistant",
      key: DATA.default.key,
      n: DATA.default.count,
      unit: "rollouts",
      projection: own ? own[0] : NaN,
      low: low ? low[0] : NaN,
      high: high ? high[0] : NaN,
      cosine: NaN,
    };
  }
  const group = DATA[`${kind}s`],
    pick = (name) => {
      const values = at(`${kind}s.${name}`);
      return values ? values[i] : NaN;
    };
  return {
    kind,
    i,
    name: readable(group.names[i]),
    key: `${kind}/${group.names[i]}`,
    n: group.counts[i],
    unit: group.unit,
    shown: group.shown ? group.shown[i] : null,
    projection: pick("projection"),
    low: pick("low"),
    high: pick("high"),
    cosine: pick("cosine"),
  };
}
const personas = (kind) =>
  kind === "default" ? [persona("default", 0)] : DATA[`${kind}s`].names.map((_, i) => persona(kind, i));
const interval = (p) =>
  Number.isFinite(p.low) && Number.isFinite(p.high) ? `${number(p.low, spread())} to ${number(p.high, spread())}` : "";

function tipOf(p) {
  const lines = [`${p.name} (${p.kind === "default" ? "no persona" : p.kind})`];
  if (Number.isFinite(p.projection))
    lines.push(
      `${p.kind === "trait" ? "projection of its responses" : "projection"} ${number(p.projection, spread())}, z ${signed(roleZ(p.projection))}`,
    );
  if (interval(p)) lines.push(`95 % interval ${interval(p)}`);
  if (Number.isFinite(p.cosine)) lines.push(`cosine with the axis ${signed(p.cosine)}`);
  lines.push(`n = ${count(p.n)}${p.n === null ? "" : ` ${p.unit}`}`);
  return lines.join("\n");
}

function choose(p) {
  state.chosen = { kind: p.kind, i: p.i };
  drawChosen();
  drawMap();
  drawSpectra();
  const list = $("find");
  if (list) list.value = `${p.kind}:${p.i}`;
}

/** The panel beside the map: description, what was asked, what was answered. */
function drawChosen() {
  const place = $("chosen");
  if (!place || !state.chosen) return;
  const p = persona(state.chosen.kind, state.chosen.i),
    texts = DATA.samples[p.key] || [],
    projections = at("sampleProjections");
  place.replaceChildren();
  html("h3", "", p.name, place);
  html("p", "quiet", tipOf(p).split("\n").slice(1).join("; ") + ".", place);
  if (DATA.descriptions[p.key]) html("p", "", DATA.descriptions[p.key], place);
  if (!texts.length) html("p", "quiet", DATA.samplesAbsent, place);
  texts.forEach((sample, i) => {
    if (!i || sample.system !== texts[i - 1].system) {
      html("b", "what", "System prompt", place);
      html("p", "", sample.system || "(none)", place);
    }
    const quote = html("blockquote", "", null, place);
    html("b", "what", "Question", quote);
    html("p", "", sample.question, quote);
    html("b", "what", "Response", quote);
    html("p", "", sample.response || "(empty)", quote);
    const own = projections && sample.at !== null ? projections[sample.at] : NaN;
    const facts = [
      Number.isFinite(own)
        ? `projection ${number(own, spread())}, z among roles ${signed(roleZ(own))}`
        : "no projection",
    ];
    facts.push(sample.score === null ? "not scored" : `score ${sample.score}`);
    html("p", "quiet", facts.join("; "), quote);
  });
}
