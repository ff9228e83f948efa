// Draws report.html from the JSON within it. Names come from people: they become text nodes and attributes, never markup.
"use strict";

const errors = [];
window.addEventListener("error", event => {
  errors.push(event.message);
  document.documentElement.dataset.errors = errors.join("\n");
});

const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip"), large = document.getElementById("large");
const SERIES = 10, DASHES = ["", "7 3", "2 3", "9 3 2 3"];

// ---- what the page is made of

/** Make an element. Attributes whose name starts with "on" are listeners; children are nodes or text. */
function make(name, attributes = {}, ...children) {
  const vector = ["svg", "g", "line", "path", "rect", "circle", "text", "title"].includes(name);
  const node = vector ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter(child => child != null && child !== false));
  return node;
}

const one = value => value == null ? "–" : value.toFixed(1).replace("-", "−");
const mean = values => values.length ? values.reduce((sum, v) => sum + v, 0) / values.length : null;
const known = values => values.filter(v => v != null);
const colour = i => `var(--s${i % SERIES})`;
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 600) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

function section(title, ...children) {
  const node = make("section", {}, make("h2", {}, title), ...children);
  document.getElementById("report").append(node);
  return node;
}

/** Say that there is nothing to draw, and the commands that make it. */
const nothing = (text, about) => make("p", {class: "soft nothing"}, text, data.notes.filter(
  note => note.about === about && note.command).map(note => make("code", {class: "command"}, note.command)));

/** Show a tip beside the pointer, or beside a node that has the focus. */
function showTip(content, event) {
  tip.replaceChildren(content);
  tip.hidden = false;
  const box = event.currentTarget.getBoundingClientRect();
  const [x, y] = event.clientX ? [event.clientX, event.clientY] : [box.left, box.bottom - 14];
  const place = (at, size, room) => Math.max(4, at + 16 + size > room ? at - size - 12 : at + 16);
  tip.style.left = `${place(x, tip.offsetWidth, innerWidth)}px`;
  tip.style.top = `${place(y, tip.offsetHeight, innerHeight)}px`;
}

const hideTip = () => { tip.hidden = true; };

/** Give the attributes by which a node shows a tip on hover and on focus. */
const tipped = content => ({
  onpointermove: event => showTip(content(), event), onpointerleave: hideTip,
  onfocus: event => event.currentTarget.matches(":focus-visible") && showTip(content(), event), onblur: hideTip,
});

function table(head, rows, numbers = []) {
  const is = i => ({class: numbers.includes(i) ? "number" : null});
  return make("table", {},
    make("thead", {}, make("tr", {}, head.map((text, i) => make("th", {scope: "col", ...is(i)}, text)))),
    make("tbody", {}, rows.map(row => make("tr", {}, row.map((cell, i) =>
      labelled(cell instanceof Node && cell.tagName === "TD" ? cell :
        make(i ? "td" : "th", i ? is(i) : {scope: "row"}, cell), head[i]))))));
}

/** Let a cell carry its column's head, which a narrow window shows beside it. */
function labelled(cell, head) {
  cell.dataset.head = head;
  cell.classList.toggle("empty", cell.textContent === "–");
  return cell;
}

// ---- what is asked for: it stands behind the # of the address, so that a view can be kept

const state = {sort: "list", class: "", worst: "", cams: "activation", maps: "alone", theme: "auto", image: ""};
const start = {...state}, listeners = [];

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(state)) state[key] = asked.get(key) ?? start[key];
}

function writeAddress(change) {
  Object.assign(state, change);
  const asked = new URLSearchParams(Object.entries(state).filter(([key, value]) => value !== start[key]));
  history.replaceState(null, "", "#" + asked);
}

function ask(change) {
  writeAddress(change);
  listeners.forEach(listen => listen());
}

window.addEventListener("hashchange", () => { readAddress(); listeners.forEach(listen => listen()); });
readAddress();

/** Make a labelled select of [[value, text], ...] that follows a part of the state. */
function chooser(key, name, options) {
  const select = make("select", {name: key, onchange: () => ask({[key]: select.value})},
    options.map(([value, text]) => make("option", {value}, text)));
  listeners.push(() => {
    if (!options.some(([value]) => value === state[key])) state[key] = start[key];
    select.value = state[key];
  });
  return make("label", {}, name, select);
}

// ---- head, and what is missing

function drawHead() {
  document.title = `${data.name}: ${data.compared ? "comparison" : "report"}`;
  const runs = [...new Set(data.runs.map(run => run.recipe))].filter(name => name !== "-");
  const theme = chooser("theme", "Colours", [["auto", "as the system"], ["light", "light"], ["dark", "dark"]]);
  theme.classList.add("theme");
  listeners.push(() => { document.documentElement.dataset.theme = state.theme; });
  const words = [runs.length && `recipe ${runs.join(", ")}`, `report of ${data.when}`, "IoU in percent"];
  document.getElementById("report").append(make("header", {},
    make("div", {}, make("h1", {}, data.name), make("div", {class: "soft"}, words.filter(Boolean).join(" · "))), theme));
  drawIntroduction();
  if (!data.notes.length) return;
  const item = note => make("li", {}, note.what, note.command && make("code", {class: "command"}, note.command));
  document.getElementById("report").append(make("details", {class: "notes", open: true},
    make("summary", {}, `${plural(data.notes.length, "thing")} missing, unfinished or not readable`),
    make("ul", {}, data.notes.map(item))));
}

// For readers of no paper: what the words of the page mean.
const WORDS = [
  ["CAM:", "a class activation map: for each class and pixel a number from 0 (not there) to 1."],
  ["threshold:", "a pixel of a CAM is background where no class is above it."],
  ["IoU:", "of a class: the pixels that both the map and the ground truth give to it, as a share of those that either " +
    "gives to it. 100 is perfect."],
  ["mIoU:", "the mean of the IoU over the classes, background included."]];

/** Say what the page shows, what each stage does, and what the words mean. */
function drawIntroduction() {
  const list = pairs => make("dl", {}, pairs.map(([word, text]) => [make("dt", {}, word), make("dd", {}, text)]));
  document.getElementById("report").append(make("details", {class: "introduction", open: true},
    make("summary", {}, "What this page shows"),
    make("p", {}, "These networks learn from images and the names of what each image shows (“dog, sofa”), but not where " +
      "it is. They have to find that themselves: the result is a map, a class for every pixel. Stage after stage the map gets " +
      "better, or not: it is scored against the ground truth, the right class of every pixel, which no stage is trained on."),
    make("div", {class: "lists"}, make("div", {}, make("h3", {}, "The stages"), list(data.about)),
      make("div", {}, make("h3", {}, "The words"), list(WORDS)))));
}

// ---- the table

const number = (text, small, more = "") => make("td", {class: `number ${more}`}, text, small && make("small", {}, small));

function drawResults() {
  const spread = values => {
    const there = known(values), middle = mean(there);
    const deviation = Math.sqrt(there.reduce((sum, v) => sum + (v - middle) ** 2, 0) / (there.length - 1));
    return there.length > 1 ? `${one(middle)} ± ${one(deviation)}` : one(middle);
  };
  const own = data.results.map(row => ({...row, from: "results.json"}));
  const seen = e => own.some(row => row.split === e.list && row.miou.includes(e.miou));
  const others = data.evals.filter(e => !seen(e)).map(e => ({
    stage: e.stage, split: e.list, miou: [e.miou], threshold: [e.threshold], fixed_miou: [e.fixed_miou], paper: null,
    paper_source: null, init: null, seconds: [null], from: e.file,
    stale: e.stale}));
  const rows = own.concat(others);
  if (!rows.length) return section("Results", nothing("Nothing is measured yet.", "results"));
  const seeds = Math.max(...rows.map(row => row.miou.length));
  const withPaper = rows.some(row => row.paper != null), withInit = rows.some(row => row.init);
  const best = split => {
    const scores = known(rows.filter(row => row.split === split).map(row => mean(known(row.miou))));
    return scores.length > 1 ? Math.max(...scores) : null;
  };
  const cells = row => [
    make("span", {tabindex: 0, ...tipped(() => make("span", {}, row.command ?? row.from))}, row.stage ?? "–",
      row.from !== "results.json" && own.length > 0 && make("small", {class: "soft"}, ` only in ${row.from}`),
      row.stale ? make("small", {class: "down"}, " its maps were written again since") : null), row.split,
    number(spread(row.miou), null, best(row.split) != null && mean(known(row.miou)) === best(row.split) ? "best" : ""),
    number(known(row.threshold).length ? mean(known(row.threshold)).toFixed(2) : "–"), number(spread(row.fixed_miou)),
    ...withPaper ? [number(row.paper == null ? "–" : one(row.paper), row.paper_source)] : [],
    ...own.length ? [number(duration(mean(known(row.seconds))))] : [], ...withInit ? [row.init ?? "–"] : []];
  const head = ["stage", "split", "mIoU, best threshold", "at", "mIoU, fixed threshold", ...withPaper ? ["paper"] : [],
    ...own.length ? ["time"] : [], ...withInit ? ["init"] : []];
  const networks = [...new Set(data.results.map(row => row.backbone))].filter(Boolean).join("; ");
  const shown = table(head, rows.map(cells), head.flatMap((text, i) =>
    ["stage", "split", "init"].includes(text) ? [] : [i]));
  const fixed = [...new Set(known(data.evals.map(e => e.fixed_threshold)))].join(", ");
  const kinds = [...new Set(data.evals.map(e => e.ground_truth))].filter(Boolean).join("; ");
  const caption = make("p", {class: "soft"}, [
    "A row is a stage's maps, scored on the images of a split. Best threshold: the one with the highest mIoU. It is chosen by " +
      "looking at the ground truth, as the papers do. Fixed threshold: one set beforehand", fixed && ` (${fixed})`,
    ". Bold: the highest mIoU of a split.", own.length ? " Time: of all stages since the row above." :
      " Read from eval/: reproduce.py adds times and the paper's numbers.",
    seeds > 1 && ` Mean and standard deviation of ${seeds} seeds; what follows is of the first.`, kinds && ` Ground truth: ${kinds}.`, networks && ` Network: ${networks}.`].filter(Boolean));
  return section("Results", make("div", {class: "scroll"}, shown), caption, ...drawActivation());
}

const FIGURES = ["precision", "recall", "erased", "intrusion"];
const MEASURED = "Each class's own map against the objects of that class; in percent, mean over the classes. Precision: the " +
  "share of the pixels above the threshold that lie on the object. Recall: the share of the object that is above it. Erased: " +
  "how much of the object its mask takes away. Intrusion: how much of the mask lies on objects of other classes, in images " +
  "that have one.";

/** Show how well each class's own map covers its objects, for the evaluations of CAMs. */
function drawActivation() {
  const evals = data.evals.filter(e => e.activation);
  if (!evals.length) return [];
  const rows = evals.map(e => [nameOf(e), e.activation.threshold, ...FIGURES.map(name => one(e.activation[name]))]);
  return [make("div", {class: "scroll"}, table(["each class's own map", "threshold", ...FIGURES], rows, [1, 2, 3, 4, 5])),
    make("p", {class: "soft"}, MEASURED)];
}

/** Show several experiments, a row each: how each was trained, what was measured. */
function drawComparison() {
  const at = threshold => threshold == null ? null : `at ${threshold}`;
  const rows = data.compared.map(c => {
    const e = data.evals.find(found => found.folder === c.folder) ?? {}, own = e.activation ?? {};
    return [make("span", {}, c.stage, make("small", {}, c.title), e.stale && make("small", {class: "down"}, "its maps were written again since")),
      make("td", {}, c.model ?? "–", make("small", {}, c.flags.map(flag => [make("span", {class: "flag"}, flag), " "])), c.maps && make("small", {}, `maps: ${c.maps}`)),
      number(c.seed ?? "–"), number(one(e.miou), at(e.threshold)), number(one(e.fixed_miou), at(e.fixed_threshold)),
      ...FIGURES.map(name => number(one(own[name])))];
  });
  const head = ["experiment", "trained, and where that differs", "seed", "mIoU, best threshold", "mIoU, fixed threshold", ...FIGURES];
  return section("Comparison", make("div", {class: "scroll"}, table(head, rows, head.map((_, i) => i).slice(2))),
    make("p", {class: "soft"}, `On the images of ${data.list}. Best threshold: chosen by looking at the ground truth. ${MEASURED}`));
}

// ---- charts

/** List some five round values that span [low, high]. */
function ticks(low, high) {
  const span = high - low || 1, power = 10 ** Math.floor(Math.log10(span / 4));
  const step = [1, 2, 5, 10].map(k => k * power).find(s => span / s <= 5);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({length: Math.max(2, last - first + 1)}, (_, i) => {
    const value = (first + i) * step, short = value === 0 || (step >= 1e-4 && Math.abs(value) < 1e6);
    return {value, text: (short ? value.toFixed(digits) : Number(value.toPrecision(3)).toExponential()).replace("-", "−")};
  });
}

const key = (name, i, dash = "") => make("span", {class: "key"}, make("svg", {viewBox: "0 0 22 10"}, make("line", {
  x1: 0, x2: 22, y1: 5, y2: 5, class: "line", stroke: colour(i), "stroke-dasharray": dash})), name);

/** Draw lines over a common x. series: {name, points [[x, y or null], ...], marks [[x, y, text, filled], ...]} */
function lineChart(title, series, xName, yName, {width = 400, height = 230, low, high, whole = false} = {}) {
  const points = series.flatMap(s => s.points.filter(([, y]) => y != null));
  if (!points.length) return null;
  const xs = [...new Set(series.flatMap(s => s.points.map(([x]) => x)))].sort((a, b) => a - b);
  const left = 46, right = width - 14, top = 20, bottom = height - 38;
  const yTicks = ticks(low ?? Math.min(...points.map(p => p[1])), high ?? Math.max(...points.map(p => p[1])));
  let xTicks = ticks(xs[0], xs[xs.length - 1]).filter(t => t.value >= xs[0] - 1e-9 && t.value <= xs[xs.length - 1] + 1e-9);
  if (whole) xTicks = xTicks.filter(t => Number.isInteger(+t.value.toFixed(6))).map(t => ({...t, text: t.value.toFixed(0)}));
  const x = v => xs.length < 2 ? (left + right) / 2 : left + (v - xs[0]) / (xs[xs.length - 1] - xs[0]) * (right - left);
  const [y0, y1] = [yTicks[0].value, yTicks[yTicks.length - 1].value];
  const y = v => bottom - (v - y0) / (y1 - y0) * (bottom - top);
  const cursor = make("line", {class: "cursor", y1: top, y2: bottom, visibility: "hidden"});
  const lines = series.map((s, i) => {
    let pen = "M";                                  // a gap where a value is not there
    const path = s.points.map(([a, b]) => {
      if (b == null) { pen = "M"; return ""; }
      const piece = `${pen}${x(a).toFixed(1)} ${y(b).toFixed(1)}`;
      pen = "L";
      return piece;
    }).join("");
    const alone = s.points.length === 1 && s.points[0][1] != null;
    return make("g", {stroke: colour(s.colour ?? i), fill: colour(s.colour ?? i)},
      make("path", {class: "line", d: path, "stroke-dasharray": DASHES[i % DASHES.length]}),
      alone && make("circle", {cx: x(s.points[0][0]), cy: y(s.points[0][1]), r: 3}),
      (s.marks ?? []).filter(([, b]) => b != null).map(([a, b, text, filled]) => make("circle", {
        cx: x(a), cy: y(b), r: 4.5, "stroke-width": 2, ...filled ? {} : {style: "fill: var(--paper)"}},
      make("title", {}, text))));
  });
  let at = 0;
  const values = () => make("div", {}, make("strong", {}, `${xName.split(",")[0]} ${+xs[at].toFixed(6)}`), table(["", ""],
    series.map(s => [s.name, (s.points.find(([a]) => a === xs[at]) ?? [])[1]?.toPrecision(4) ?? "–"]), [1]));
  const move = (to, event) => {
    at = Math.min(xs.length - 1, Math.max(0, to));
    cursor.setAttribute("x1", x(xs[at]));
    cursor.setAttribute("x2", x(xs[at]));
    cursor.setAttribute("visibility", "visible");
    showTip(values(), event);
  };
  const leave = () => { cursor.setAttribute("visibility", "hidden"); hideTip(); };
  const chart = make("svg", {
    class: "chart", viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img",
    "aria-label": `${title}: ${series.map(s => s.name).join(", ")}. ${yName} against ${xName}; arrow keys read the values`,
    onpointermove: event => {
      const box = chart.getBoundingClientRect(), pointer = (event.clientX - box.left) / box.width * width;
      const distances = xs.map(v => Math.abs(x(v) - pointer));
      move(distances.indexOf(Math.min(...distances)), event);
    },
    onpointerleave: leave, onblur: leave,
    onkeydown: event => {
      const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (!step) return;
      event.preventDefault();
      move(cursor.getAttribute("visibility") === "hidden" ? 0 : at + step, event);
    }},
  yTicks.map(t => [make("line", {class: "grid", x1: left, x2: right, y1: y(t.value), y2: y(t.value)}),
    make("text", {x: left - 7, y: y(t.value) + 4, "text-anchor": "end"}, t.text)]),
  xTicks.map(t => make("text", {x: x(t.value), y: bottom + 16, "text-anchor": "middle"}, t.text)),
  make("text", {x: left, y: 9}, yName),
  make("text", {x: right, y: height - 5, "text-anchor": "end"}, xName), lines, cursor);
  return make("figure", {}, title && make("h3", {}, title),
    make("div", {class: "keys"}, series.map((s, i) => key(s.name, s.colour ?? i, DASHES[i % DASHES.length]))), chart);
}

// What the logged names mean (methods/).
const MEANINGS = {
  loss_cls: "how wrong the network is about the image's classes",
  loss_cse: "how wrong the ordinary classifier finds the erased image, weight included",
  p_present: "mean probability given to the classes in the image", p_absent: "mean probability given to the other classes",
  p_target_erased: "probability that the ordinary classifier still gives to the erased class (should fall)",
  p_rest_erased: "probability that it still gives to the image's other classes (should stay)",
  erased: "share of the image that is erased",
  loss_bg: "loss of the pairs of pixels in the background", loss_fg: "of the pairs within an object class",
  loss_neg: "of the pairs of different classes",
  affinity_same: "mean of the pairs that belong together", affinity_different: "mean of the pairs that do not",
  accuracy: "share of the labelled pixels that get their label", accuracy_objects: "the same for pixels labelled as an object",
};

function drawTraining() {
  const quiet = ["epoch", "lr", "seconds", "images_per_second", "memory_gib", "threshold", "skipped"];
  const groups = [
    ["loss", "loss", name => name.startsWith("loss"), {low: 0}],
    ["probability", "probability", name => name.startsWith("p_"), {low: 0, high: 1}],
    ["affinity", "affinity, 0 to 1", name => name.startsWith("affinity_"), {low: 0, high: 1}],
    ["accuracy", "share of pixels", name => name.startsWith("accuracy"), {}],
    ["mIoU", "mIoU in percent", name => name === "miou", {}]];
  const charts = data.logs.filter(log => log.rows.length).map(log => {
    const names = [...new Set(log.rows.flatMap(Object.keys))].filter(name => !quiet.includes(name));
    const rest = names.filter(name => !groups.some(([, , has]) => has(name))).map(name => [name, name, n => n === name, {}]);
    const points = name => log.rows.map(row => [row.epoch, row[name] ?? null]);
    const meant = names.filter(name => name in MEANINGS).map(name => `${name}: ${MEANINGS[name]}`).join("; ");
    return [make("div", {class: "charts"}, groups.concat(rest).map(([group, yName, has, range]) => {
      const series = names.filter(has).map(name => ({name, points: points(name)}));
      return lineChart(`${log.name}: ${group}`, series, "epoch", yName, {...range, whole: true});
    })), meant && make("p", {class: "soft"}, `${meant}.`)];
  });
  const total = log => {
    const seconds = known(log.rows.map(row => row.seconds)), speed = mean(known(log.rows.map(row => row.images_per_second)));
    return `${log.name}: ${plural(log.rows.length, "epoch")}` +
      (seconds.length ? `, ${duration(seconds.reduce((sum, s) => sum + s, 0))}` : "") +
      (speed ? `, ${speed.toFixed(0)} images a second` : "");
  };
  section("Training", charts.length ? charts : nothing("No training has logged an epoch yet.", "training"),
    charts.length > 0 && make("p", {class: "soft"}, data.logs.filter(log => log.rows.length).map(total).join(" · ")));
}

const colourOf = new Map(data.evals.map((e, i) => [e, i]));
const nameOf = e => new Set(data.evals.map(other => other.list)).size > 1 ? `${e.stage} · ${e.list}` : e.stage;

function drawThresholds() {
  const series = data.evals.filter(e => e.curve.length).map(e => ({
    name: nameOf(e), points: e.curve, colour: colourOf.get(e),
    marks: [[e.threshold, e.miou, `best: ${one(e.miou)} at ${e.threshold}`, true],
      [e.fixed_threshold, e.fixed_miou, `fixed: ${one(e.fixed_miou)} at ${e.fixed_threshold}`, false]]
      .filter(([t]) => t != null && t >= e.curve[0][0] && t <= e.curve[e.curve.length - 1][0])}));
  const chart = lineChart("", series, "background threshold, of a CAM's maximum", "mIoU in percent",
    {width: Math.min(640, Math.max(360, innerWidth - 40)), height: 300});
  section("mIoU against threshold", chart ? make("div", {class: "charts wide"}, chart) :
    nothing("No CAMs are evaluated yet.", "evaluation"),
    chart && make("p", {class: "soft"}, "The mIoU of the CAMs when a pixel is background below this value. Filled circle: the best threshold. Open circle: the fixed one.",
      data.evals.filter(e => e.whole).map(e => ` ${nameOf(e)}: the best lies at an end of the range; ` +
        `over 0 to 1 it is ${one(e.whole[1])} at ${e.whole[0]}.`)));
}

function drawClasses() {
  if (!data.evals.length) return section("IoU of each class", nothing("Nothing is evaluated yet.", "evaluation"));
  const shown = new Set(data.evals.filter((e, i) => e.list === data.list || !data.evals.some(o => o.list === data.list)));
  const charts = make("div", {class: "charts bars"}), numbers = make("div", {class: "scroll"});
  let at = "best";
  const draw = () => {
    const evals = data.evals.filter(e => shown.has(e));
    const names = [...new Set(evals.flatMap(e => e.best.map(([name]) => name)))];
    const parts = names.length < 5 ? 1 : 2, size = Math.ceil(names.length / parts);
    charts.replaceChildren(...Array.from({length: parts}, (_, i) => names.slice(i * size, (i + 1) * size))
      .filter(part => part.length && evals.length).map(part => barChart(part, evals, at)));
    const rows = names.map(name => [name, ...evals.map(e => one(classOfEval(e, name, at)[1]))]);
    numbers.replaceChildren(table(["IoU in percent", ...evals.map(nameOf)], rows, evals.map((_, i) => i + 1)));
  };
  const toggles = data.evals.map((e, i) => {
    const button = make("button", {class: "key", "aria-pressed": String(shown.has(e)), onclick: () => {
      if (!shown.delete(e)) shown.add(e);
      button.setAttribute("aria-pressed", shown.has(e));
      draw();
    }}, make("span", {class: "swatch", style: `background: ${colour(i)}`}), nameOf(e));
    return button;
  });
  const select = make("select", {name: "at", onchange: () => { at = select.value; draw(); }},
    make("option", {value: "best"}, "their best threshold"), make("option", {value: "fixed"}, "the fixed threshold"));
  draw();
  return section("IoU of each class", make("div", {class: "keys"}, toggles,
    data.evals.some(e => e.fixed) && make("label", {}, "CAMs at", select)), charts,
    make("details", {class: "numbers"}, make("summary", {}, "The same as numbers"), numbers));
}

/** Give an evaluation's [class, IoU, precision, recall], of a CAM at its best or the fixed threshold. */
const classOfEval = (e, name, at) => ((at === "fixed" && e.fixed) || e.best).find(([other]) => other === name) ?? [];

const pen = document.createElement("canvas").getContext("2d");
pen.font = `11.5px ${getComputedStyle(document.documentElement).fontFamily}`;

/** Shorten a name in its middle until it fits: its ends tell "class number 10" from "class number 11". */
function fitted(name, room) {
  const letters = Array.from(name), wide = text => pen.measureText(text).width > room;
  let text = name;
  for (let kept = letters.length - 1; kept > 1 && wide(text); kept--)
    text = letters.slice(0, Math.ceil(kept / 2)).join("") + "…" + letters.slice(-Math.floor(kept / 2)).join("");
  return text;
}

/** Draw a bar an evaluation for each class. */
function barChart(names, evals, at) {
  const width = Math.min(560, Math.max(340, innerWidth - 40)), longest = Math.max(...names.map(name => pen.measureText(name).width));
  const left = Math.min(longest + 14, .32 * width), right = width - 36, thick = evals.length > 6 ? 8 : evals.length > 3 ? 10 : 12;
  const group = evals.length * thick + 12, top = 22, bottom = top + names.length * group;
  const x = v => left + v / 100 * (right - left);
  const bars = names.map((name, row) => {
    const y = top + row * group + 6, short = fitted(name, left - 8);
    return make("g", {},
      make("text", {class: "name", x: left - 8, y: y + (group - 12) / 2 + 4, "text-anchor": "end"}, short, make("title", {}, name)),
      evals.map((e, i) => {
        const [, iou, precision, recall] = classOfEval(e, name, at);
        if (iou == null) return null;
        const words = () => make("div", {}, make("strong", {}, name), make("div", {}, nameOf(e)), table(["", ""], [
          ["IoU", `${one(iou)} %`], ["precision", `${one(precision)} %`], ["recall", `${one(recall)} %`]], [1]));
        return make("g", {tabindex: -1, ...tipped(words)},     // the table below is for the keyboard
          make("rect", {x: left, y: y + i * thick, width: right - left, height: thick, fill: "transparent"}),
          make("rect", {class: "value", x: left, y: y + i * thick, width: Math.max(0, x(iou) - left), height: thick - 1.5,
            fill: colour(colourOf.get(e)), "data-iou": iou}),
          evals.length < 4 && make("text", {x: x(iou) + 4, y: y + i * thick + thick / 2 + 3, style: "font-size: 9.5px"}, one(iou)));
      }));
  });
  return make("figure", {}, make("svg", {class: "chart", viewBox: `0 0 ${width} ${bottom + 8}`, role: "img",
    "aria-label": `IoU in percent of ${names.join(", ")} by stage`},
  [0, 25, 50, 75, 100].map(v => [make("line", {class: "grid", x1: x(v), x2: x(v), y1: top, y2: bottom}),
    make("text", {x: x(v), y: top - 6, "text-anchor": "middle"}, v === 100 ? "100 %" : `${v}`)]), bars));
}

// ---- the gallery

const classIds = new Map(data.classes.map((name, i) => [name, i + 1]));
const classOf = id => id === 0 ? "background" : data.classes[id - 1] ?? `class ${id}`;
const swatch = id => make("span", {class: "swatch", style: `background: rgb(${data.palette[id] ?? [224, 224, 192]})`});

/** Give an image's score of a stage: its mIoU, or the IoU of the class that is filtered. */
function score(row, folder) {
  const stage = row.stages[folder], id = classIds.get(state.class);
  return (id ? stage?.iou?.[id] : stage?.miou) ?? null;
}

/** Give what a stage gained over the one that it was made from. */
function gain(row, column) {
  const [now, before] = [score(row, column.folder), column.before && score(row, column.before)];
  return now == null || before == null ? null : now - before;
}

/** Give how far apart the columns' scores of an image lie. */
function spread(row) {
  const there = known(data.columns.map(c => score(row, c.folder)));
  return there.length > 1 ? Math.max(...there) - Math.min(...there) : null;
}

function scores(row) {
  const ids = [...new Set(Object.values(row.stages).flatMap(stage => Object.keys(stage.iou ?? {})))].map(Number)
    .sort((a, b) => a - b);
  if (!ids.length) return make("span", {}, row.truth ? "no map of it is scored" : "no ground truth: not scored");
  return table(["IoU in percent", ...data.columns.map(c => c.stage)], [
    ...ids.map(id => [classOf(id), ...data.columns.map(c => one(row.stages[c.folder]?.iou?.[id]))]),
    ["mean", ...data.columns.map(c => one(row.stages[c.folder]?.miou))]], data.columns.map((_, i) => i + 1));
}

function frame(row, kind, ...images) {
  const node = make("div", {class: `frame ${kind}`}, images);
  node.style.aspectRatio = `${row.size[0]} / ${row.size[1]}`;
  return node;
}

const picture = (source, kind, alt) => make("img", {src: source, class: kind, alt, decoding: "async"});

/** Link to the file of a map, seen from the page: it works while the page lies in its experiment. */
const fileLink = path => path && make("a", {class: "file", href: path.split("/").map(encodeURIComponent).join("/")}, path);

/** Make the figures of a row: image, ground truth, one a stage; with links to the files of the maps, if wanted. */
function cells(row, linked = false) {
  const base = () => picture(row.image, "base", "");
  const cell = (name, shown, caption = []) => make("figure", {class: "cell"}, shown,
    make("figcaption", {}, make("span", {class: "stage"}, name), caption));
  const none = why => frame(row, "none", why);
  return [
    cell("image", frame(row, "", picture(row.image, "base", row.id))),
    cell("ground truth", row.truth ? frame(row, "", base(), picture(row.truth, "labels", "ground truth")) : none(row.error ?? "no ground truth")),
    ...data.columns.map(column => {
      const stage = row.stages[column.folder];
      const file = linked ? fileLink(stage?.file) : null;
      if (!stage?.labels) return cell(column.stage, none(stage?.error ?? "not there yet"), file);
      const [now, change] = [score(row, column.folder), gain(row, column)];
      const against = data.columns.find(c => c.folder === column.before)?.stage;
      const arrow = change == null ? null : make("span", {class: change < -.05 ? "down" : change > .05 ? "up" : "", title: `against ${against}`},
        change < -.05 ? `▼ ${one(-change)}` : change > .05 ? `▲ ${one(change)}` : "=");
      return cell(column.stage, frame(row, stage.heat ? "has-heat" : "", base(),
        picture(stage.labels, "labels", column.stage), stage.heat && picture(stage.heat, "heat", `${column.stage}, activation`)),
      [make("span", {class: "score", title: stage.error ?? null}, stage.error && now == null ? "not scored" : one(now)), arrow, file]);
    })];
}

/** Name the classes of an image, each with its colour. */
const chips = row => row.classes.map(id => make("div", {class: "chip"}, swatch(id), make("b", {title: classOf(id)}, classOf(id))));

function about(row, open) {
  return make("div", {class: "about"}, make("button", {onclick: open, "aria-label": `${row.id}, enlarge`,
    ...tipped(() => scores(row))}, row.id), chips(row));
}

function drawGallery() {
  if (!data.rows.length) return section("Gallery", nothing("No image to show.", "maps"));
  const scored = data.columns.filter(c => data.rows.some(row => row.stages[c.folder]?.miou != null));
  const changed = scored.filter(c => data.rows.some(row => row.stages[c.before]?.miou != null));
  const stage = new Map(data.columns.map(c => [c.folder, c.stage]));
  const counts = new Map(data.classes.map((name, i) => [name, data.rows.filter(r => r.classes.includes(i + 1)).length]));
  const there = data.classes.filter(name => counts.get(name));
  const order = chooser("sort", "Sort by", [["list", "order of the list"],
    ...changed.map(c => [`gain:${c.folder}`, `gain of ${c.stage} over ${stage.get(c.before)}`]),
    ...scored.map(c => [`score:${c.folder}`, `IoU of ${c.stage}`]),
    ...scored.length > 1 ? [["spread", "largest difference between the columns"]] : []]);
  const filter = chooser("class", "Class", [["", `all (${data.rows.length})`], ...there.map(n => [n, `${n} (${counts.get(n)})`])]);
  const cams = chooser("cams", "CAMs as", [["activation", "activation"], ["masks", "labels at the fixed threshold"]]);
  const maps = chooser("maps", "Label maps", [["alone", "alone"], ["over", "over the image"]]);
  const box = make("input", {type: "checkbox", name: "worst", onchange: () => ask({worst: box.checked ? "1" : ""})});
  const count = make("span", {class: "soft", id: "count", role: "status"});
  const heads = make("div", {class: "heads"});
  const rows = make("div", {id: "rows"});
  const legend = make("div", {class: "legend", role: "group", "aria-label": "classes"},
    make("span", {}, swatch(0), "background"),
    there.map(name => make("button", {"data-class": name, onclick: () => ask({class: state.class === name ? "" : name})},
      swatch(classIds.get(name)), make("b", {title: name}, name))), make("span", {}, swatch(-1), "not counted"));
  let visible = [];

  const render = () => {
    const id = classIds.get(state.class), [by, folder] = state.sort.split(/:(.*)/s);
    const column = data.columns.find(c => c.folder === folder), worst = column != null && state.worst === "1";
    const sorted = column || by === "spread";          // of differences the largest come first
    const value = row => by === "spread" ? spread(row) : !column ? null :
      by === "gain" ? gain(row, column) : score(row, column.folder);
    visible = data.rows.filter(row => !id || row.classes.includes(id));
    const values = new Map(visible.map(row => [row, value(row)])), sign = worst ? 1 : -1;
    if (sorted) {                               // what has no value stays at the end, either way
      visible.sort((a, b) => {
        const [u, v] = [values.get(a), values.get(b)];
        return u == null || v == null ? (u == null) - (v == null) : sign * (u - v);
      });
    }
    box.checked = worst;
    box.disabled = !column;
    box.title = column ? "" : "Choose first what to sort by: a gain or an IoU";
    rows.className = `${state.cams} ${state.maps === "over" ? "over" : ""}`;
    rows.replaceChildren(...visible.map((row, i) => {
      const open = () => enlarge(visible, i);
      const shown = cells(row);
      shown.forEach(cell => cell.querySelector(".frame:not(.none)")?.addEventListener("click", open));
      const node = make("article", {class: "row", "data-id": row.id, "data-value": values.get(row),
        onpointermove: event => event.target.closest("figure") && showTip(scores(row), event), onpointerleave: hideTip},
      about(row, open), shown);
      return node;
    }));
    const means = c => {
      const values = known(visible.map(row => score(row, c.folder)));
      return [make("strong", {}, one(mean(values))),
        values.length > 0 && values.length < visible.length && `of ${plural(values.length, "image")}`];
    };
    heads.replaceChildren(make("span", {}, id ? `IoU of ${state.class}` : "mIoU of an image", make("br"), "and its mean"),
      make("span", {}, "image"), make("span", {}, "ground truth"),
      ...data.columns.map(c => make("span", {}, c.stage, means(c))));
    count.textContent = `${visible.length} of ${plural(data.rows.length, "image")}` +
      ` (${data.list} has ${data.listed})` + (sorted ? `, by ${column ? `${by} of ${column.stage}` : "difference"}${worst ? ", worst first" : ""}` : "");
    const asked = visible.findIndex(row => row.id === state.image);
    if (asked >= 0) enlarge(visible, asked);
    for (const button of legend.querySelectorAll("button"))
      button.setAttribute("aria-pressed", button.dataset.class === state.class);
  };
  listeners.push(render);
  const thresholds = [...new Set(known(data.columns.map(c => c.threshold)))].join(", ");
  const against = changed.map(c => `${c.stage} against ${stage.get(c.before)}`).join("; ");
  const caption = make("p", {class: "soft"}, [
    "A row is an image, its ground truth and the map of each stage. The number below a map is its mIoU: the mean over the " +
      "classes that are in the ground truth or in the map", thresholds && `, for a CAM at the fixed threshold ${thresholds}`,
    ". Click an image to see it large, with links to the files of its maps. ", against && `▲ ▼: better or worse, ${against}. `,
    thresholds && "CAMs are shown as activation, that of the class with the highest, from blue (0) to red (1). ",
    "Columns: ", data.columns.map(c => `${c.folder}/`).join(", ") || "no maps yet", "."].filter(Boolean));
  const node = section("Gallery", caption, legend,
    make("div", {class: "bar"}, make("div", {class: "controls"}, order,
      make("label", {}, box, "worst first"), filter, data.columns.some(c => c.threshold != null) && cams, maps,
      count), heads), rows);
  node.style.setProperty("--columns", data.columns.length + 2);
  return node;
}

/** Show a row large, and name it in the address; the arrow keys show its neighbours. */
function enlarge(rows, i) {
  const row = rows[i];
  const go = step => rows[i + step] && enlarge(rows, i + step);
  const held = document.activeElement?.closest("dialog button")?.name || "close";
  hideTip();
  writeAddress({image: row.id});
  large.className = `${state.cams} ${state.maps === "over" ? "over" : ""}`;
  large.replaceChildren(
    make("header", {}, make("h1", {id: "large-title"}, row.id), make("div", {class: "keys"},
      make("span", {class: "soft"}, `${i + 1} of ${rows.length}`),
      make("button", {name: "previous", onclick: () => go(-1), disabled: i === 0}, "← previous"),
      make("button", {name: "next", onclick: () => go(1), disabled: i === rows.length - 1}, "next →"),
      make("button", {name: "close", onclick: () => large.close(), autofocus: true}, "close"))),
    make("div", {class: "chips"}, chips(row)), make("div", {class: "views"}, cells(row, true)), make("div", {class: "scroll"}, scores(row)));
  large.onkeydown = event => ({ArrowLeft: () => go(-1), ArrowRight: () => go(1)}[event.key]?.());
  if (!large.open) large.showModal();
  // The button that had the focus is gone; without one in the dialog it would hear no key.
  (large.querySelector(`button[name=${held}]:enabled`) ?? large.querySelector("[autofocus]")).focus();
}

// ---- how it was made

function drawRuns() {
  if (!data.runs.length) return;
  const versions = [...new Set(data.runs.map(run => run.versions))].filter(Boolean).join("; ");
  section("How it was made", make("div", {class: "scroll"}, table(["run", "when", "revision", "recipe", "seed", "precision"],
    data.runs.map(run => [run.stage, run.when, run.revision, run.recipe, run.seed, run.precision]))),
  make("p", {class: "soft"}, versions),
  data.beside && make("p", {}, "To compare it with another experiment: ", make("code", {}, data.beside)));
}

drawHead();
if (data.compared) drawComparison();
else { drawResults(); drawTraining(); }
drawThresholds();
drawClasses();
drawGallery();
drawRuns();
large.addEventListener("close", () => writeAddress({image: ""}));
listeners.forEach(listen => listen());
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
document.documentElement.dataset.drawn = "yes";
