"use strict";

// All text comes from files and is set as text, never as HTML.
const COLOURS = ["#1f6fd2", "#d1652f", "#2f9e6e", "#8a5bc7", "#c23b6b", "#8c7a1f", "#2b9db3", "#6b7280"];
const EVERY = 4000;
const SVG = "http://www.w3.org/2000/svg";
const MOST = 1200; // points of a curve that are held; all are asked for anew, thinned, when there are more
const chosen = { run: null, beside: null };
const seen = { list: "", charts: "", settings: "", pictures: "" };
const held = new Map(); // what is known of the chosen runs
let listedRuns = null;

const at = (id) => document.getElementById(id);

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

async function get(path, query = {}) {
  const words = new URLSearchParams(query).toString();
  const answer = await fetch(words ? `${path}?${words}` : path, { cache: "no-store" }).catch(() => {
    throw new Error("The monitor does not answer; it may have been stopped.");
  });
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`The monitor answers: ${answer.status} ${answer.statusText}.`);
  return answer.json();
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor(minutes / 60) % 24} h`;
}

const score = (of, name) => (of[name] === undefined ? "" : of[name].toFixed(1));

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

// The list of runs

function beside(run) {
  const box = element("input", undefined, { type: "checkbox", "aria-label": `lay ${run.name} over the chosen run` });
  box.checked = run.name === chosen.beside;
  box.disabled = chosen.run === null || run.name === chosen.run;
  box.addEventListener("change", () => { location.hash = place(chosen.run, box.checked ? run.name : null); });
  const cell = element("td");
  cell.append(box);
  cell.addEventListener("click", (event) => event.stopPropagation());
  return cell;
}

function row(run) {
  const made = element("tr", undefined, run.name === chosen.run ? { class: "chosen" } : {});
  const target = place(run.name, run.name === chosen.beside ? null : chosen.beside);
  const name = element("td", undefined, { title: run.name });
  name.append(element("a", run.name, { href: target }));
  const state = element("td", undefined, { class: "text" });
  state.append(element("span", run.state, { class: `state ${run.state}`, title: run.why }));
  const steps = element("td", run.steps ? `${run.step} / ${run.steps}` : String(run.step));
  if (run.steps) {
    const bar = element("div", undefined, { class: "bar" });
    const filled = element("i");
    filled.style.width = `${Math.min(100, (100 * run.step) / run.steps)}%`;
    bar.append(filled);
    steps.append(bar);
  }
  made.append(name, beside(run), state, element("td", duration(run.age)), steps, element("td", duration(run.seconds_left)), element("td", score(run.last, "AP")));
  for (const metric of ["AP", "AP50", "AP75"]) made.append(element("td", score(run.best, metric)));
  for (const text of [run.recipe, run.detector, run.teacher]) made.append(element("td", text, { class: "text", title: text }));
  made.addEventListener("click", (event) => { if (event.target.tagName !== "A") location.hash = target; });
  return made;
}

function named(kind, names, link) {
  const made = at(kind.toLowerCase());
  made.replaceChildren();
  made.hidden = !names.length;
  names.forEach((name, i) => {
    made.append(i ? ", " : `${kind}: `);
    const target = { href: `report?name=${encodeURIComponent(name)}`, target: "_blank", rel: "noopener" };
    made.append(link ? element("a", name, target) : name);
  });
}

function listed(overview) {
  listedRuns = overview;
  const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (run) => [run.name, run.state, run.recipe, run.detector, run.teacher].join(" ").toLowerCase();
  const runs = overview.runs.filter((run) => words.every((word) => text(run).includes(word)));
  const body = at("runs").tBodies[0];
  const known = JSON.stringify([chosen, words, overview], (key, value) => (key === "age" ? undefined : value));
  if (known === seen.list) {
    runs.forEach((run, i) => { body.rows[i].cells[3].textContent = duration(run.age); });
    return;
  }
  seen.list = known;
  at("root").textContent = overview.root;
  body.replaceChildren(...runs.map(row));
  const running = overview.runs.filter((run) => run.state === "running").length;
  at("count").textContent = `${words.length ? `${runs.length} of ` : ""}${overview.runs.length} runs, ${running} running`
    + (overview.complete ? "" : "; there are more: start the monitor on a folder further down");
  named("Pages", overview.reports, true);
  named("Caches", overview.caches, false);
  at("hint").textContent = overview.runs.length ? "Choose a run; “beside” lays a second one over it."
    : "There is no run below this folder yet; this page looks again by itself.";
}

// Charts

const PANELS = [
  { title: "Losses by term, weighted", prefix: "train/", scale: "log", smooth: true },
  { title: "AP on the validation images, percent", names: ["val/AP", "val/AP50", "val/AP75", "val/AP90"], factor: 100 },
  { title: "Divergence of edges from the teacher's", names: ["agree/edge_kl"], scale: "log", smooth: true },
  { title: "Overlap of boxes with the teacher's", names: ["agree/box_iou"], smooth: true },
  { title: "Balance: cosine of both gradients, and share of the labels", prefix: "balance/", smooth: true },
  { title: "Learning rate", names: ["lr"] },
  { title: "Images per second", names: ["images_per_second"], smooth: true },
];

// A running mean; points that are further apart than usual are smoothed less.
function smoothed(steps, values, factor) {
  const usual = (steps[steps.length - 1] - steps[0]) / (steps.length - 1) || 1;
  let mean = null;
  return values.map((value, i) => {
    const part = mean === null ? 0 : factor ** Math.max((steps[i] - steps[i - 1]) / usual, 0);
    return (mean = part * (mean ?? 0) + (1 - part) * value);
  });
}

function linesOf(panel, runs) {
  const total = (name) => (name.endsWith("/total") ? 0 : 1);
  const sorted = (run) => Object.keys(run.curves).sort((a, b) => total(a) - total(b) || a.localeCompare(b));
  const names = [...new Set(runs.flatMap(sorted))] // those of the first run keep their colours beside a second
    .filter((name) => (panel.names ? panel.names.includes(name) : name.startsWith(panel.prefix)));
  return names.flatMap((name, i) =>
    runs.map((run, which) => ({ name: name.split("/").pop(), colour: COLOURS[i % COLOURS.length], which, curve: run.curves[name] }))
      .filter((line) => line.curve && line.curve[0].length));
}

function ticks(low, high, log) {
  if (log) {
    const every = Math.ceil((high - low) / 6) || 1;
    const found = [];
    for (let power = Math.floor(low / every) * every; power <= high; power += every)
      for (const step of high - low < 2 ? [1, 2, 5] : [1]) found.push(power + Math.log10(step));
    const inside = found.filter((value) => value >= low && value <= high);
    return inside.length > 1 ? inside : ticks(10 ** low, 10 ** high, false).map(Math.log10);
  }
  const size = 10 ** Math.floor(Math.log10((high - low) / 4 || 1));
  const step = [1, 2, 5, 10].map((n) => n * size).find((n) => (high - low) / n <= 5) || size;
  const first = Math.ceil(low / step);
  return Array.from({ length: 7 }, (_, i) => (first + i) * step).filter((value) => value <= high + step / 1e6);
}

function nearest(steps, step) {
  let [low, high] = [0, steps.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle;
    else high = middle;
  }
  return step - steps[low] < steps[high] - step ? low : high;
}

function prepared(panel, runs, log) {
  const factor = panel.smooth ? Number(at("smooth").value) : 0;
  const scaled = (value) => (log ? Math.log10(value) : value);
  return linesOf(panel, runs).map((line) => {
    const points = line.curve[0].map((step, i) => [step, line.curve[1][i] * (panel.factor || 1)]).filter(([, value]) => !log || value > 0);
    const [steps, values] = [points.map(([step]) => step), points.map(([, value]) => value)];
    const soft = factor ? smoothed(steps, values, factor).map(scaled) : null;
    return { ...line, steps, values, raw: values.map(scaled), soft };
  }).filter((line) => line.steps.length);
}

function legendOf(lines, second) {
  const legend = element("div", undefined, { class: "legend" });
  const numbers = lines.map((line) => {
    const [entry, mark, number] = [element("span"), element("i"), element("b", short(line.values[line.values.length - 1]))];
    mark.style.background = line.which ? `repeating-linear-gradient(90deg, ${line.colour} 0 4px, transparent 4px 7px)` : line.colour;
    entry.append(mark, `${line.name} `, number);
    if (line.which) entry.title = second;
    legend.append(entry);
    return number;
  });
  return [legend, numbers];
}

const span = (lists) => lists.flat().reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

function chart(panel, runs, [from, to]) {
  const log = panel.scale === "log" && at("log").checked;
  const lines = prepared(panel, runs, log);
  if (!lines.length) return null;
  const [width, height, left, bottom] = [480, 250, 46, 24];
  let [low, high] = span(lines.map((line) => line.soft || line.raw));
  if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high))) {
    const around = Math.abs(high) / 2 || 0.5;
    [low, high] = [low - around, high + around];
  }
  const x = (step) => left + ((step - from) / Math.max(to - from, 1)) * (width - left - 8);
  const y = (value) => 8 + (1 - (Math.max(Math.min(value, high), low) - low) / (high - low)) * (height - bottom - 8);
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": panel.title });
  for (const value of ticks(low, high, log)) {
    picture.append(drawn("line", { class: "grid", x1: left, x2: width - 8, y1: y(value), y2: y(value) }));
    picture.append(drawn("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, short(log ? 10 ** value : value)));
  }
  for (const value of ticks(from, to, false)) picture.append(drawn("text", { x: x(value), y: height - 6, "text-anchor": "middle" }, short(value)));
  const path = (line, values) => values.map((value, i) => `${i ? "L" : "M"}${x(line.steps[i]).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  for (const line of lines) {
    const second = line.which ? " second" : "";
    if (line.soft) picture.append(drawn("path", { class: `raw${second}`, stroke: line.colour, d: path(line, line.raw) }));
    picture.append(drawn("path", { class: `curve${second}`, stroke: line.colour, d: path(line, line.soft || line.raw) }));
    if (line.steps.length === 1) picture.append(drawn("circle", { cx: x(line.steps[0]), cy: y(line.raw[0]), r: 3, fill: line.colour }));
  }
  const cursor = drawn("line", { class: "cursor", y1: 8, y2: height - bottom, visibility: "hidden" });
  picture.append(cursor);
  const [legend, numbers] = legendOf(lines, chosen.beside);
  const title = element("h3", panel.title);
  const show = (step) => {
    title.textContent = step === null ? panel.title : `${panel.title}: step ${step}`;
    lines.forEach((line, i) => { numbers[i].textContent = short(line.values[step === null ? line.values.length - 1 : nearest(line.steps, step)]); });
    cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const wanted = from + (((event.clientX - box.left) / box.width) * width - left) / (width - left - 8) * (to - from);
    const step = lines[0].steps[nearest(lines[0].steps, wanted)];
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(step));
    show(step);
  });
  picture.addEventListener("pointerleave", () => show(null));
  const figure = element("figure");
  figure.append(title, picture, legend);
  return figure;
}

// One run, or two

function settings(runs) {
  const [one, two] = runs.map((run) => run.settings);
  const keys = Object.keys(two ? { ...one, ...two } : one).filter((key) => !two || one[key] !== two[key]);
  at("settings-title").textContent = two ? `${keys.length} settings differ` : `${keys.length} settings`;
  at("settings-box").open ||= Boolean(two);
  const rows = keys.map((key) => {
    const made = element("tr");
    made.append(element("td", key), ...runs.map((run) => element("td", run.settings[key] === undefined ? "" : run.settings[key])));
    return made;
  });
  if (two) {
    const head = element("tr");
    head.append(element("th", ""), element("th", chosen.run), element("th", chosen.beside));
    rows.unshift(head);
  }
  at("settings").replaceChildren(...rows);
}

function picture(run, name) {
  const figure = element("figure");
  if (run.pictures[name] === undefined) return figure; // an empty place: those of one run are below each other
  const of = run.summary.name;
  const source = `picture?${new URLSearchParams({ run: of, name, at: run.pictures[name] })}`;
  const link = element("a", undefined, { href: source, target: "_blank", rel: "noopener" });
  link.append(element("img", undefined, { src: source, alt: `${name} of ${of}`, loading: "lazy" }));
  figure.append(link, element("figcaption", shown.length > 1 ? `${name}, ${of}` : name));
  return figure;
}

function pictures(runs) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.pictures)))].sort((a, b) => a.localeCompare(b));
  at("pictures-title").hidden = !names.length;
  at("pictures").className = runs.length > 1 ? "two" : "";
  at("pictures").replaceChildren(...names.flatMap((name) => runs.map((run) => picture(run, name))));
}

function charts(runs) {
  const steps = span(runs.flatMap((run) => Object.values(run.curves).map(([of]) => [of[0], of[of.length - 1]])));
  at("charts").replaceChildren(...PANELS.map((panel) => chart(panel, runs, steps)).filter(Boolean));
}

let shown = [];

// Add what is new of a run to what is held of it.
function merge(name, answer) {
  const run = held.get(name) || { curves: {}, settings: {}, recipe: "", log: "", version: 0 };
  if (answer.fresh) run.curves = answer.curves;
  for (const [column, [steps, values]] of answer.fresh ? [] : Object.entries(answer.curves)) {
    const curve = (run.curves[column] ||= [[], []]);
    curve[0].push(...steps);
    curve[1].push(...values);
  }
  if (answer.fresh || Object.keys(answer.curves).length) run.version += 1;
  for (const part of ["settings", "recipe", "log"]) if (answer[part] !== null) run[part] = answer[part];
  [run.summary, run.pictures, run.marks] = [answer.summary, answer.pictures, answer.marks];
  if (Object.values(run.curves).some(([steps]) => steps.length > MOST)) run.marks.rows = "";
  held.set(name, run);
  return run;
}

function changed(part, runs, of) {
  const now = JSON.stringify([chosen, runs.map(of)]);
  const different = now !== seen[part];
  seen[part] = now;
  return different;
}

function detail(runs) {
  const [run] = runs;
  at("detail").hidden = false;
  at("hint").hidden = true;
  at("name").textContent = runs.length > 1 ? `${chosen.run} (line) and ${chosen.beside} (dashed)` : chosen.run;
  const facts = run.summary;
  const parts = [facts.state + (facts.why && facts.why !== facts.state ? ` (${facts.why})` : "")];
  parts.push(facts.steps ? `step ${facts.step} of ${facts.steps}` : `step ${facts.step}`);
  if (facts.seconds_left !== null) parts.push(`about ${duration(facts.seconds_left)} left`);
  if (facts.teacher) parts.push(`taught by ${facts.teacher}`);
  if (facts.terms.length) parts.push(`terms: ${facts.terms.join(", ")}`);
  at("facts").textContent = parts.join("; ");
  if (changed("charts", runs, (each) => each.version)) charts(runs);
  if (changed("settings", runs, (each) => each.marks.recipe)) {
    settings(runs);
    at("yaml").textContent = run.recipe;
  }
  if (changed("pictures", runs, (each) => each.pictures)) pictures(runs);
  const tail = at("tail");
  const below = tail.scrollHeight - tail.scrollTop - tail.clientHeight < 40;
  if (tail.textContent !== run.log) tail.textContent = run.log;
  if (below) tail.scrollTop = tail.scrollHeight;
}

async function news() {
  const names = [chosen.run, chosen.beside].filter((name) => name !== null);
  for (const name of held.keys()) if (!names.includes(name)) held.delete(name);
  const [overview, ...answers] = await Promise.all(
    [get("api/runs"), ...names.map((name) => get("api/run", { run: name, ...(held.get(name) || {}).marks }))]);
  const found = names.flatMap((name, i) => (answers[i] === null ? [] : [merge(name, answers[i])]));
  if (names[0] !== (chosen.run ?? undefined) || names[1] !== (chosen.beside ?? undefined)) return; // others were chosen meanwhile
  listed(overview);
  shown = names.length && answers[0] !== null ? found : [];
  if (shown.length) detail(shown);
  else at("detail").hidden = true;
  at("hint").hidden = Boolean(shown.length);
  if (names.length && !shown.length) at("hint").textContent = `There is no run ${names[0]} any more.`;
}

let busy = false;
let again = false;

async function refresh() {
  again = busy;
  if (busy) return;
  busy = true;
  try {
    await news();
    at("trouble").hidden = true;
  } catch (error) {
    at("trouble").textContent = error.message;
    at("trouble").hidden = false;
  }
  busy = false;
  if (again) refresh();
}

function place(run, beside) {
  const words = new URLSearchParams({ run });
  if (beside !== null) words.set("beside", beside);
  return `#${words}`;
}

function follow() {
  const words = new URLSearchParams(location.hash.slice(1));
  chosen.run = words.get("run");
  chosen.beside = chosen.run === null ? null : words.get("beside");
  refresh();
}

for (const id of ["log", "smooth"]) at(id).addEventListener("input", () => shown.length && charts(shown));
at("filter").addEventListener("input", () => listedRuns && listed(listedRuns));
window.addEventListener("hashchange", follow);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
follow();
setInterval(() => document.hidden || refresh(), EVERY);
