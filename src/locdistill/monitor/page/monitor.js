"use strict";

// All text comes from files and is set as text, never as HTML.
const COLOURS = ["#1f6fd2", "#d1652f", "#2f9e6e", "#8a5bc7", "#c23b6b", "#8c7a1f", "#2b9db3", "#6b7280"];
const EVERY = 4000;
const SVG = "http://www.w3.org/2000/svg";
const chosen = { run: null, beside: null };
const seen = { run: "", beside: "" };

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

async function get(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(answer.statusText);
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
  box.addEventListener("change", () => go(chosen.run, box.checked ? run.name : null));
  const cell = element("td");
  cell.append(box);
  cell.addEventListener("click", (event) => event.stopPropagation());
  return cell;
}

function row(run) {
  const made = element("tr", undefined, run.name === chosen.run ? { class: "chosen" } : {});
  made.append(element("td", run.name, { title: run.name }));
  const state = element("td");
  state.append(element("span", run.state, { class: `state ${run.state}`, title: run.why }));
  const steps = element("td", run.steps ? `${run.step} / ${run.steps}` : String(run.step));
  if (run.steps) {
    const bar = element("div", undefined, { class: "bar" });
    const filled = element("i");
    filled.style.width = `${Math.min(100, (100 * run.step) / run.steps)}%`;
    bar.append(filled);
    steps.append(bar);
  }
  made.append(beside(run), state, steps, element("td", duration(run.seconds_left)), element("td", score(run.last, "AP")));
  for (const name of ["AP", "AP50", "AP75"]) made.append(element("td", score(run.best, name)));
  made.append(element("td", run.detector, { class: "text" }), element("td", run.teacher, { class: "text" }));
  made.append(element("td", duration(run.age)));
  made.addEventListener("click", () => go(run.name, run.name === chosen.beside ? null : chosen.beside));
  return made;
}

function listed(overview) {
  at("root").textContent = overview.root;
  const body = document.createDocumentFragment();
  for (const run of overview.runs) body.append(row(run));
  at("runs").tBodies[0].replaceChildren(body);
  const reports = at("reports");
  reports.replaceChildren();
  if (overview.reports.length) reports.append("Pages: ");
  overview.reports.forEach((name, i) => {
    if (i) reports.append(", ");
    reports.append(element("a", name, { href: `report?name=${encodeURIComponent(name)}`, target: "_blank", rel: "noopener" }));
  });
  if (!overview.runs.length) at("hint").textContent = "There is no run below this folder yet; this page looks again by itself.";
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

function smoothed(values, factor) {
  let mean = null;
  return values.map((value) => (mean = mean === null ? value : factor * mean + (1 - factor) * value));
}

function linesOf(panel, runs) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))]
    .filter((name) => (panel.names ? panel.names.includes(name) : name.startsWith(panel.prefix)))
    .sort((a, b) => (a.endsWith("/total") ? -1 : b.endsWith("/total") ? 1 : a.localeCompare(b)));
  return names.flatMap((name, i) =>
    runs.map((run, which) => ({ name: name.split("/").pop(), colour: COLOURS[i % COLOURS.length], which, curve: run.curves[name] }))
      .filter((line) => line.curve && line.curve[0].length));
}

function ticks(low, high, log) {
  if (log) {
    const found = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power += 1)
      for (const step of high - low < 2 ? [1, 2, 5] : [1]) {
        const value = power + Math.log10(step);
        if (value >= low && value <= high) found.push(value);
      }
    return found;
  }
  const size = 10 ** Math.floor(Math.log10((high - low) / 4 || 1));
  const step = [1, 2, 5, 10].map((n) => n * size).find((n) => (high - low) / n <= 5) || size;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step) found.push(value);
  return found;
}

function chart(panel, runs) {
  const log = panel.scale === "log" && at("log").checked;
  const factor = panel.smooth ? Number(at("smooth").value) : 0;
  const scaled = (value) => (log ? Math.log10(value) : value * (panel.factor || 1));
  const lines = linesOf(panel, runs).map((line) => {
    const [steps, values] = line.curve;
    const kept = steps.map((step, i) => [step, values[i]]).filter(([, value]) => !log || value > 0);
    const soft = smoothed(kept.map(([, value]) => value), factor);
    return { ...line, last: values[values.length - 1] * (panel.factor || 1), steps: kept.map(([step]) => step), raw: kept.map(([, value]) => scaled(value)), soft: soft.map(scaled) };
  }).filter((line) => line.steps.length);
  if (!lines.length) return null;
  const [width, height, left, bottom] = [480, 250, 46, 24];
  const shown = lines.flatMap((line) => (factor ? line.soft : line.raw));
  let [low, high] = [Math.min(...shown), Math.max(...shown)];
  if (high - low < 1e-12) [low, high] = [low - 0.5, high + 0.5];
  const [from, to] = [Math.min(...lines.map((line) => line.steps[0])), Math.max(...lines.map((line) => line.steps[line.steps.length - 1]), 1)];
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
    if (factor) picture.append(drawn("path", { class: `raw${second}`, stroke: line.colour, d: path(line, line.raw) }));
    picture.append(drawn("path", { class: `curve${second}`, stroke: line.colour, d: path(line, factor ? line.soft : line.raw) }));
    if (line.steps.length === 1) picture.append(drawn("circle", { cx: x(line.steps[0]), cy: y(line.raw[0]), r: 3, fill: line.colour }));
  }
  const figure = element("figure");
  const legend = element("div", undefined, { class: "legend" });
  for (const line of lines) {
    const entry = element("span");
    const mark = element("i");
    mark.style.background = line.which ? `repeating-linear-gradient(90deg, ${line.colour} 0 4px, transparent 4px 7px)` : line.colour;
    entry.append(mark, line.which ? `${line.name}, beside ` : `${line.name} `, element("b", short(line.last)));
    legend.append(entry);
  }
  figure.append(element("h3", panel.title), picture, legend);
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

function pictures(runs) {
  const names = [chosen.run, chosen.beside];
  const made = runs.flatMap((run, which) => Object.entries(run.pictures).map(([name, time]) => ({ name, time, which })));
  made.sort((a, b) => a.name.localeCompare(b.name) || a.which - b.which);
  at("pictures").replaceChildren(...made.map(({ name, time, which }) => {
    const source = `picture?run=${encodeURIComponent(names[which])}&name=${encodeURIComponent(name)}&at=${time}`;
    const figure = element("figure");
    const link = element("a", undefined, { href: source, target: "_blank", rel: "noopener" });
    link.append(element("img", undefined, { src: source, alt: `${name} of ${names[which]}`, loading: "lazy" }));
    figure.append(link, element("figcaption", runs.length > 1 ? `${name}, ${names[which]}` : name));
    return figure;
  }));
}

function charts(runs) {
  at("charts").replaceChildren(...PANELS.map((panel) => chart(panel, runs)).filter(Boolean));
}

let shown = [];

function detail(runs) {
  const [run] = runs;
  at("detail").hidden = false;
  at("hint").hidden = true;
  at("name").textContent = runs.length > 1 ? `${chosen.run} (line) and ${chosen.beside} (dashed)` : chosen.run;
  const facts = run.summary;
  const parts = [facts.why || facts.state, facts.steps ? `step ${facts.step} of ${facts.steps}` : `step ${facts.step}`];
  if (facts.seconds_left !== null) parts.push(`about ${duration(facts.seconds_left)} left`);
  if (facts.teacher) parts.push(`taught by ${facts.teacher}`);
  parts.push(`terms: ${facts.terms.join(", ")}`);
  at("facts").textContent = parts.join("; ");
  const stamps = JSON.stringify(runs.map((each) => [Object.values(each.pictures), Object.keys(each.settings).length]));
  charts(runs);
  if (stamps !== seen.run || seen.beside !== `${chosen.run}\n${chosen.beside}`) {
    settings(runs);
    pictures(runs);
  }
  [seen.run, seen.beside] = [stamps, `${chosen.run}\n${chosen.beside}`];
  const tail = at("tail");
  const below = tail.scrollHeight - tail.scrollTop - tail.clientHeight < 40;
  if (tail.textContent !== run.log) tail.textContent = run.log;
  if (below) tail.scrollTop = tail.scrollHeight;
}

async function refresh() {
  try {
    listed(await get("api/runs"));
    if (chosen.run !== null) {
      const names = [chosen.run, chosen.beside].filter((name) => name !== null);
      const found = await Promise.all(names.map((name) => get(`api/run?run=${encodeURIComponent(name)}`)));
      if (found[0] === null) at("detail").hidden = true;
      else if (names[0] === chosen.run) detail((shown = found.filter(Boolean)));
    }
    at("trouble").hidden = true;
  } catch {
    at("trouble").hidden = false;
  }
}

function go(run, beside) {
  const words = new URLSearchParams();
  if (run !== null) words.set("run", run);
  if (beside !== null) words.set("beside", beside);
  location.hash = words.toString();
}

function follow() {
  const words = new URLSearchParams(location.hash.slice(1));
  chosen.run = words.get("run");
  chosen.beside = words.get("beside");
  refresh();
}

for (const id of ["log", "smooth"]) at(id).addEventListener("input", () => shown.length && charts(shown));
window.addEventListener("hashchange", follow);
follow();
setInterval(() => document.hidden || refresh(), EVERY);
