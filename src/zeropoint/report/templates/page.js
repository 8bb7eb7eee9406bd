// Opens layers, draws charts, sorts tables. All texts come from the page's JSON and are set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const embedding = { actions: false, renderer: "svg", ast: true, tooltip: { sanitize: (value) => String(value).replace(/[&<]/g, "") } };

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

// The figure's own label says what it shows; the roles that Vega gives to its marks have none.
async function draw(place, spec) {
  await window.vegaEmbed(place, spec, embedding);
  for (const mark of place.querySelectorAll("svg [role]")) mark.removeAttribute("role");
  for (const mark of place.querySelectorAll("svg [aria-roledescription]")) mark.removeAttribute("aria-roledescription");
  place.querySelector("svg").setAttribute("aria-hidden", "true");
}

function chart(title, said, spec, values) {
  const figure = make("figure");
  figure.append(make("figcaption", title));
  const place = make("div", undefined, "chart");
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `${title}: ${said}`);
  figure.append(place);
  waiting.push(() => draw(place, { ...spec, data: { values } }));
  return figure;
}

let waiting = [];  // charts are drawn when their place is on the screen and has a width
const number = (value) => Number(value.toPrecision(4)).toString();

// The outermost bars hold the tails: they are drawn two bars wide, however far they reach.
function asBars([edges, counts]) {
  const bars = counts.map((count, index) => ({ from: edges[index], to: edges[index + 1], low: edges[index], high: edges[index + 1], count, tail: false }));
  if (bars.length < 3) return bars;
  const width = 2 * (bars[1].high - bars[1].low);
  const [first, last] = [bars[0], bars.at(-1)];
  if (first.high - first.low > width) Object.assign(first, { low: first.high - width, tail: true });
  if (last.high - last.low > width) Object.assign(last, { high: last.low + width, tail: true });
  return bars;
}

function spread([edges, counts]) {
  const used = counts.flatMap((count, index) => (count > 0 ? [index] : []));
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!used.length) return "no values";
  const tails = asBars([edges, counts]).some((bar) => bar.tail) ? "; the paler outermost bars reach that far" : "";
  return `${total.toLocaleString("en")} values from ${number(edges[used[0]])} to ${number(edges[used.at(-1) + 1])}${tails}`;
}

function codes(from, counts) {
  const total = counts.reduce((sum, count) => sum + count, 0) || 1;
  return counts.map((count, index) => ({ low: from + index - 0.5, high: from + index + 0.5, code: from + index, share: (100 * count) / total }));
}

function loudest(rows) {
  const table = make("table");
  table.append(make("caption", "Loudest inputs, against the median one"));
  const head = make("tr");
  for (const name of ["input", "root mean square / median"]) {
    const cell = make("th", name, name === "input" ? "" : "n");
    cell.scope = "col";
    head.append(cell);
  }
  const top = make("thead");
  top.append(head);
  const body = make("tbody");
  for (const [index, ratio] of rows) {
    const row = make("tr");
    const first = make("th", index);
    first.scope = "row";
    row.append(first, make("td", ratio, "n"));
    body.append(row);
  }
  table.append(top, body);
  return table;
}

function about(model, layer) {
  const part = make("div");
  if (data.models.length > 1) part.append(make("h3", model.name, "model"));
  const detail = Object.hasOwn(model.layers, layer) ? model.layers[layer] : undefined;
  if (!detail) {
    part.append(make("p", "This layer is not among those that this page tells of; zeropoint.json has its numbers."));
    return part;
  }
  const facts = make("dl", undefined, "facts");
  for (const [name, text] of detail.facts) facts.append(make("dt", name), make("dd", text));
  part.append(facts);
  if (!detail.weights) {
    part.append(make("p", "No histograms are kept of this layer: of embeddings, heads, and experts of models with very many, there are none; earlier versions kept none at all."));
    return part;
  }
  const [[clipped, rounded], share] = detail.lost;
  part.append(make("p", `Error of the weight: ${clipped} clipped, outside the ends of the grid (hatched), and ${rounded} rounded (plain), of its square.`));
  const split = make("div", undefined, "split");
  split.style.setProperty("--part", share);
  split.append(make("span"), make("span"));
  split.setAttribute("role", "img");
  split.setAttribute("aria-label", `${Math.round(100 * share)} % of the error is clipping`);
  part.append(split);
  part.append(chart("Weights", spread(detail.weights), data.charts.weights, asBars(detail.weights)));
  part.append(make("p", spread(detail.weights), "note"));
  const [from, counts] = detail.codes;
  part.append(chart("Codes", `${from} to ${from + counts.length - 1}`, data.charts.codes, codes(from, counts)));
  const unused = counts.filter((count) => count === 0).length;
  part.append(make("p", `codes ${from} to ${from + counts.length - 1}, ${unused ? `${unused} of them unused` : "all of them used"}`, "note"));
  if (detail.inputs[1].length) {
    part.append(chart("Inputs, of some tokens of the calibration", spread(detail.inputs), data.charts.inputs, asBars(detail.inputs)));
    part.append(make("p", spread(detail.inputs), "note"));
    if (detail.loud.length) part.append(loudest(detail.loud));
  } else {
    part.append(make("p", "No text was read: what this layer reads is not known."));
  }
  return part;
}

const dialog = document.getElementById("layer");

function open(number) {
  const layer = data.names[number];
  document.getElementById("h-layer").textContent = layer.replace(/[\p{C}\u2028\u2029]/gu, "\ufffd");
  waiting = [];
  document.getElementById("layer-body").replaceChildren(...data.models.map((model) => about(model, layer)));
  dialog.showModal();
  dialog.scrollTop = 0;
  Promise.all(waiting.map((start) => start())).then(() => { dialog.dataset.drawn = number; });
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.matches(".open")) open(Number(button.dataset.layer));
  if (button.matches(".close")) dialog.close();
  if (button.matches(".sort")) sort(button.closest("th"));
});

// The map is one stop of the tabulator; arrows move in it.
for (const map of document.querySelectorAll(".map")) {
  const rows = [...map.tBodies[0].rows].map((row) => [...row.cells].slice(1).map((cell) => cell.querySelector("button")));
  const tiles = rows.flat().filter(Boolean);
  tiles.forEach((tile, index) => { tile.tabIndex = index ? -1 : 0; });
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  map.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step || !event.target.matches(".tile")) return;
    event.preventDefault();
    let y = rows.findIndex((row) => row.includes(event.target));
    let x = rows[y].indexOf(event.target);
    do { y += step[0]; x += step[1]; } while (rows[y] && x >= 0 && x < rows[y].length && !rows[y][x]);
    const next = rows[y] && rows[y][x];
    if (!next) return;
    for (const tile of tiles) tile.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

function sort(head) {
  const table = head.closest("table");
  const column = head.cellIndex;
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const key = (row) => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent.trim();
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? (a < b ? -1 : a > b ? 1 : 0) : String(a).localeCompare(String(b), "en", { numeric: true }));
  const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => (ascending ? compare(a, b) : compare(b, a)));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

// Paper shows what is folded on the screen.
let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const each of closed) each.open = true;
});
window.addEventListener("afterprint", () => { for (const each of closed) each.open = false; });

if (data.charts.divergence) {
  const figure = document.getElementById("divergence");
  figure.hidden = false;
  draw(figure.querySelector(".chart"), data.charts.divergence);
}
