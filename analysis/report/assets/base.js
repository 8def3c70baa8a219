// Values out of the packed arrays, SVG elements, scales, the tooltip. Knows nothing of personas.
const NS = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

/** Undo packing.packed: a function from the index of a layer to its values, NaN where there is none. */
function unpack(stored) {
  if (!stored) return null;
  const text = atob(stored.codes),
    bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const view = new DataView(bytes.buffer),
    size = stored.shape.reduce((a, b) => a * b, 1);
  return (at) => {
    const values = new Float64Array(size),
      low = stored.low[at],
      step = stored.step[at];
    for (let i = 0; i < size; i++) {
      const code = view.getInt16(2 * (at * size + i), true);
      values[i] = code === -32768 ? NaN : low + step * (code + 32767);
    }
    return values;
  };
}

function el(name, attributes = {}, parent = null, text = null) {
  const node = document.createElementNS(NS, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== null) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function html(name, className, text, parent) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

/** An empty SVG as wide as its place, with a text for those who do not see it. */
function canvas(place, height, label) {
  const width = Math.max(240, Math.round(place.clientWidth));
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  place.replaceChildren(svg);
  return { svg, width, height };
}

const finite = (values) => Array.from(values).filter(Number.isFinite);
const extent = (values) => {
  const there = finite(values);
  return there.length ? [Math.min(...there), Math.max(...there)] : [0, 1];
};

function padded([low, high], share = 0.05) {
  const room = (high - low || Math.abs(high) || 1) * share;
  return [low - room, high + room];
}

function scale([low, high], from, to) {
  const f = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  f.invert = (pixel) => low + ((pixel - from) / (to - from || 1)) * (high - low);
  f.domain = [low, high];
  return f;
}

function ticks([low, high], most) {
  const span = high - low || 1,
    rough = span / Math.max(1, most),
    power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough * 0.999) || 10);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++)
    found.push(+(k * step).toPrecision(12));
  return found;
}

const digits = (span) => Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(span || 1))));
const minus = (text) => text.replace("-", "\u2212");
/** A number with as many decimals as the spread of its fellows asks for. */
const number = (value, span = 10) => (Number.isFinite(value) ? minus(value.toFixed(digits(span))) : "\u2013");
const signed = (value, places = 2) =>
  Number.isFinite(value) ? (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(places) : "\u2013";
const count = (value) => (value === null || value === undefined ? "not known" : value.toLocaleString("en-US"));
const readable = (name) => name.replaceAll("_", " ");
const shortTick = (value) => minus(Math.abs(value) >= 10000 ? value.toLocaleString("en-US") : String(value));

/** Grid lines and numbers of both axes, and their titles. */
function axes(chart, x, y, box, { xTitle, yTitle, xTicks, yTicks, xFormat = shortTick, yFormat = shortTick }) {
  const { svg } = chart;
  for (const value of yTicks) {
    el("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }, svg);
    el("text", { class: "tick", x: box.left - 7, y: y(value) + 4, "text-anchor": "end" }, svg, yFormat(value));
  }
  for (const value of xTicks) {
    el("line", { class: "grid", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom }, svg);
    el("text", { class: "tick", x: x(value), y: box.bottom + 17, "text-anchor": "middle" }, svg, xFormat(value));
  }
  if (xTitle)
    el(
      "text",
      { class: "title", x: (box.left + box.right) / 2, y: box.bottom + 37, "text-anchor": "middle" },
      svg,
      xTitle,
    );
  if (yTitle) el("text", { class: "title", x: 0, y: box.top - 11 }, svg, yTitle);
}

/** Lines through values, broken where one is missing, with a dot where a value stands alone. */
function path(svg, points, attributes) {
  let d = "",
    previous = false;
  points.forEach(([px, py], i) => {
    const there = Number.isFinite(px) && Number.isFinite(py);
    if (there) d += `${previous ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`;
    const next = points[i + 1];
    if (there && !previous && !(next && Number.isFinite(next[1])))
      el("circle", { cx: px, cy: py, r: 3.5, fill: attributes.stroke }, svg);
    previous = there;
  });
  if (d) el("path", { d, fill: "none", "stroke-width": 2.2, "stroke-linejoin": "round", ...attributes }, svg);
}

/** A band between two lines, in as many pieces as there are layers without a gap. */
function band(svg, xs, lows, highs, attributes) {
  let run = [];
  const flush = () => {
    if (run.length === 1) {
      const [px, a, b] = run[0];
      el(
        "line",
        { x1: px, x2: px, y1: a, y2: b, stroke: attributes.fill, "stroke-width": 5, opacity: attributes.opacity },
        svg,
      );
    }
    if (run.length > 1)
      el(
        "path",
        {
          d:
            "M" +
            run.map(([px, a]) => `${px} ${a}`).join("L") +
            "L" +
            run
              .slice()
              .reverse()
              .map(([px, , b]) => `${px} ${b}`)
              .join("L") +
            "Z",
          ...attributes,
        },
        svg,
      );
    run = [];
  };
  xs.forEach((px, i) =>
    Number.isFinite(lows[i]) && Number.isFinite(highs[i]) ? run.push([px, lows[i], highs[i]]) : flush(),
  );
  flush();
}

const pen = document.createElement("canvas").getContext("2d");
function textWidth(text, size = 12.5) {
  pen.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(text).width;
}

let ramp = [];
function readColours() {
  const style = getComputedStyle(document.documentElement);
  ramp = ["--far-2", "--far-1", "--mid", "--near-1", "--near-2"].map((name) => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    return [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));
  });
}
/** Colour of a z-score: far from the Assistant to near it, saturated at two and a half. */
function colourOf(z) {
  if (!Number.isFinite(z)) return "var(--mid)";
  const place = ((Math.max(-2.5, Math.min(2.5, z)) + 2.5) / 5) * 4,
    i = Math.min(3, Math.floor(place)),
    part = place - i;
  return `rgb(${ramp[i].map((c, k) => Math.round(c + (ramp[i + 1][k] - c) * part)).join(",")})`;
}

const tip = $("tip");
function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(x + 14, document.documentElement.clientWidth - width - 6))}px`;
  tip.style.top = `${y - height - 12 > 4 ? y - height - 12 : y + 18}px`;
}
const hideTip = () => {
  tip.hidden = true;
};
const STAR = (x, y, r) =>
  "M" +
  Array.from({ length: 10 }, (_, i) => {
    const a = (Math.PI * i) / 5 - Math.PI / 2,
      q = i % 2 ? r * 0.45 : r;
    return `${(x + q * Math.cos(a)).toFixed(1)} ${(y + q * Math.sin(a)).toFixed(1)}`;
  }).join("L") +
  "Z";
const DIAMOND = (x, y, r) => `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}Z`;
