// What the reader chose (layer, map, theme), and drawing everything for it.
function fill(id, text) {
  const node = $(id);
  if (node) node.textContent = text;
}

function drawFigures() {
  const a = DATA.axis,
    v = (values, places = 2) => (values && values[state.at] !== null ? signed(values[state.at], places) : "\u2013");
  const range = (low, high) =>
    low && low[state.at] !== null ? ` (${signed(low[state.at])} to ${signed(high[state.at])})` : "";
  fill("tile-strength", v(a.strength, 1));
  fill("tile-half", v(a.half));
  fill("tile-pc1", v(a.pc1));
  fill("tile-pc1-range", range(a.pc1Low, a.pc1High));
  const roles = DATA.spaces.roles;
  fill("tile-needed", roles ? String(roles.needed[0][state.at] || "\u2013") : "\u2013");
  document.querySelectorAll("#notes .at-layer").forEach((node) => node.remove());
  $("notes").append(...DATA.notes[state.at].map((text) => html("li", "note at-layer", text)));
  document.querySelectorAll(".layer-name").forEach((node) => {
    node.textContent = LAYERS[state.at];
  });
}

function drawTables() {
  const rows = document.querySelectorAll("#numbers tbody tr");
  rows.forEach((row) => {
    const p = persona(row.dataset.kind, +row.dataset.i),
      cells = row.querySelectorAll("td");
    [number(p.projection, spread()), interval(p) || "\u2013", signed(roleZ(p.projection)), signed(p.cosine)].forEach(
      (text, k) => {
        cells[2 + k].textContent = text;
      },
    );
  });
  document.querySelectorAll("#thresholds tbody tr").forEach((row, q) => {
    const floor = DATA.thresholds.floor[q][state.at],
      cells = row.querySelectorAll("td");
    cells[1].textContent = floor === null ? "\u2013" : number(floor, spread());
    cells[2].textContent = floor === null ? "\u2013" : number(-floor, spread());
  });
}

function draw() {
  drawFigures();
  drawMap();
  drawSpectra();
  drawLayers();
  drawVariance();
  drawHistogram();
  drawTables();
  drawChosen();
}

function setLayer(to) {
  state.at = to;
  const slider = $("layer");
  slider.value = to;
  slider.setAttribute("aria-valuetext", `layer ${LAYERS[to]}`);
  fill("layer-now", `layer ${LAYERS[to]} of ${LAYERS[0]}\u2013${LAYERS[LAYERS.length - 1]}`);
  hideTip();
  draw();
}

function press(group, button) {
  document
    .querySelectorAll(`[data-group="${group}"]`)
    .forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  fill("theme", theme === "dark" ? "Light" : "Dark");
  readColours();
  draw();
}

function wire() {
  $("layer").addEventListener("input", (event) => setLayer(+event.target.value));
  document.querySelectorAll("[data-group]").forEach((button) =>
    button.addEventListener("click", () => {
      press(button.dataset.group, button);
      state[button.dataset.group] = button.dataset.group === "dims" ? +button.dataset.value : button.dataset.value;
      if (button.dataset.group === "space") $("map-words").textContent = DATA.words[state.space];
      drawMap();
    }),
  );
  const traits = $("with-traits");
  if (traits)
    traits.addEventListener("change", () => {
      state.traits = traits.checked;
      drawMap();
    });
  const find = $("find");
  if (find) {
    for (const [kind, name] of [
      ["default", "Default"],
      ["role", "Roles"],
      ["trait", "Traits"],
    ]) {
      const found =
        kind === "default" && !DATA.default.projection && !DATA.samples[DATA.default.key] ? [] : personas(kind);
      if (!found.length) continue;
      const group = html("optgroup", "", null, find);
      group.label = name;
      found
        .slice()
        .sort((a, b) => (a.name < b.name ? -1 : 1))
        .forEach((p) => {
          html("option", "", p.name, group).value = `${p.kind}:${p.i}`;
        });
    }
    find.addEventListener("change", () => {
      const [kind, i] = find.value.split(":");
      choose(persona(kind, +i));
    });
  }
  for (const which of ["roles", "traits"]) {
    const more = $(`${which}-all`);
    if (more)
      more.addEventListener("click", () => {
        state.all[which] = !state.all[which];
        drawSpectra();
      });
  }
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
  wireMap();
}

wire();
// The persona to begin with: the farthest role from the Assistant, which is the one that a reader wonders about.
const ranked = personas("role")
  .filter((p) => Number.isFinite(p.projection))
  .sort((a, b) => a.projection - b.projection);
const first = ranked[0] || personas("role")[0] || personas("trait")[0];
if (first) {
  state.chosen = { kind: first.kind, i: first.i };
  if ($("find")) $("find").value = `${first.kind}:${first.i}`;
}
const dark = window.matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
readColours();
document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
fill("theme", dark.matches ? "Light" : "Dark");
readColours();
setLayer(state.at);
