"use strict";

// --- tables: a click on a heading sorts, the box above filters -------------------------------------------------------

// the number of a cell, or its text; empty cells are last in either direction
function keyOf(cell) {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "–" ? null : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a === b ? 0 : a < b ? -1 : 1;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

function sortBy(table, heading) {
  const column = heading.cellIndex;
  const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [keyOf(row.cells[column]), row]);
  rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b)));
  body.append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("th");
    if (heading && heading.querySelector("button")) sortBy(table, heading);
  });
  const block = table.closest(".block");
  const box = block.querySelector(".filter");
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      left += row.hidden ? 0 : 1;
    }
    block.querySelector(".count").textContent = `${left} of ${table.tBodies[0].rows.length} rows`;
  };
  box.addEventListener("input", filter);
  filter();
}

// --- columns: chosen by boxes, by group; remembered behind # together with the section -------------------------------

// #section&columns=a,b
function readHash() {
  const parts = location.hash.slice(1).split("&").filter(Boolean);
  const columns = parts.find((part) => part.startsWith("columns="));
  return {
    section: parts.find((part) => !part.includes("=")),
    columns: columns && columns.slice("columns=".length).split(",").filter(Boolean).map(decodeURIComponent),
  };
}

function writeHash({ section, columns }) {
  const parts = [section, columns && `columns=${columns.map(encodeURIComponent).join(",")}`];
  history.replaceState(null, "", `#${parts.filter((part) => part !== undefined).join("&")}`);
}

function goTo(section) {
  const heading = document.querySelector(`#${CSS.escape(section)} h2`);
  if (!heading) return;
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
  heading.parentElement.scrollIntoView();
}

const LEADING = 3; // cells of a row before its columns
const chooser = document.querySelector(".chooser");
const boxes = [...chooser.querySelectorAll(".column")];

function showColumns() {
  const table = chooser.closest(".block").querySelector("table");
  boxes.forEach((each, i) => {
    for (const row of [table.tHead.rows[1], ...table.tBodies[0].rows]) row.cells[LEADING + i].hidden = !each.checked;
  });
  chooser.querySelectorAll("fieldset").forEach((set, i) => {
    const own = [...set.querySelectorAll(".column")];
    const shown = own.filter((each) => each.checked).length;
    const all = set.querySelector(".group");
    all.checked = shown === own.length;
    all.indeterminate = shown > 0 && shown < own.length;
    const heading = table.tHead.rows[0].cells[1 + i];
    heading.hidden = shown === 0;
    heading.colSpan = Math.max(1, shown);
  });
  chooser.querySelector(".count").textContent = `(${boxes.filter((each) => each.checked).length} of ${boxes.length} shown)`;
}

function choose(wanted) {
  for (const each of boxes) each.checked = wanted(each);
  showColumns();
}

const isUsual = (each) => each.dataset.usual !== undefined;

function followHash() {
  const { section, columns } = readHash();
  if (columns) choose((each) => columns.includes(each.value));
  if (section) goTo(section);
}

function remember() {
  const usual = boxes.every((each) => each.checked === isUsual(each));
  const chosen = boxes.filter((each) => each.checked).map((each) => each.value);
  writeHash({ ...readHash(), columns: usual ? undefined : chosen });
}

chooser.hidden = false;
chooser.addEventListener("change", (event) => {
  if (event.target.matches(".group")) {
    for (const each of event.target.closest("fieldset").querySelectorAll(".column")) each.checked = event.target.checked;
  }
  showColumns();
  remember();
});
chooser.querySelector(".usual").addEventListener("click", () => { choose(isUsual); remember(); });
chooser.querySelector(".every").addEventListener("click", () => { choose(() => true); remember(); });
document.querySelector("nav").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link) return;
  event.preventDefault();
  writeHash({ ...readHash(), section: link.hash.slice(1) });
  goTo(link.hash.slice(1));
});
addEventListener("hashchange", followHash);
choose(isUsual);
followHash();

// --- figures: as wide as the screen, or so large that letters are as large as the text's ------------------------------

for (const button of document.querySelectorAll(".enlarge")) {
  button.addEventListener("click", () => {
    const figure = button.closest("figure");
    const large = figure.classList.toggle("large");
    button.setAttribute("aria-pressed", String(large));
    const frame = figure.querySelector("div");
    if (large) frame.tabIndex = 0; // scrolls by keyboard
    else frame.removeAttribute("tabindex");
  });
}

// --- answers: one question at a time; nothing is built before it is shown --------------------------------------------

const data = JSON.parse(document.getElementById("data").textContent);
const box = (id) => document.getElementById(id);
let found = []; // indices of the questions that pass the filters
let at = 0;

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text; // never HTML: answers are what a model says
  return made;
}

function shownModels() {
  const [method, optim, seed] = ["method", "optim", "seed"].map((id) => box(id).value);
  const firsts = new Set();
  return data.models.map((_, i) => i).filter((i) => {
    const model = data.models[i];
    if (model.seed === null) return method === "" || model.method === method || isReference(model);
    if ((method && model.method !== method) || (optim && model.optim !== optim)) return false;
    if (seed !== "first") return seed === "" || String(model.seed) === seed;
    const row = `${model.method} ${model.optim}`;
    return !firsts.has(row) && firsts.add(row);
  });
}

const isReference = (model) => model.method === "original" || model.method === "retain-trained";

function line(who, scores, what, className) {
  const row = element("div", className, "");
  const name = element("div", "who", who);
  if (scores.length) name.append(element("small", "", scores.map(([k, v]) => `${k} ${v}`).join(" · ")));
  row.append(name, element("div", what === "" ? "what empty" : "what", what === "" ? "(empty)" : what));
  return row;
}

function show() {
  box("position").textContent = found.length ? `${at + 1} of ${found.length} questions` : "no question passes the filters";
  box("previous").disabled = at === 0;
  box("next").disabled = at >= found.length - 1;
  const card = element("div", "card", "");
  if (found.length) {
    const one = data.questions[found[at]];
    card.append(line(one.place, [], one.question, "asked"), line("gold", [], one.gold, ""));
    for (const i of shownModels()) {
      if (one.answers[i]) card.append(line(data.models[i].name, one.answers[i][1], one.answers[i][0], ""));
    }
  }
  box("example").replaceChildren(card);
}

function search() {
  const split = box("split").value;
  const words = box("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const models = shownModels();
  found = data.questions.map((_, i) => i).filter((i) => {
    const one = data.questions[i];
    if (split && one.split !== split) return false;
    if (!words.length) return true;
    const texts = [one.question, one.gold, ...models.map((m) => (one.answers[m] ? one.answers[m][0] : ""))];
    const all = texts.join("\n").toLowerCase();
    return words.every((word) => all.includes(word));
  });
  at = 0;
  show();
}

if (data.questions.length) {
  const fill = (id, values) => {
    for (const value of new Set(values)) box(id).append(new Option(value, value));
  };
  fill("split", Object.keys(data.counts));
  fill("method", data.models.filter((m) => !isReference(m)).map((m) => m.method));
  fill("optim", data.models.map((m) => m.optim).filter(Boolean));
  fill("seed", data.models.map((m) => m.seed).filter((s) => s !== null).sort((a, b) => a - b));
  for (const id of ["split", "method", "optim", "seed"]) {
    box(id).addEventListener("change", search);
    box(id).parentElement.hidden = box(id).options.length - (id === "seed" ? 2 : 1) < 2; // nothing to choose from
  }
  box("text").addEventListener("input", search);
  box("previous").addEventListener("click", () => { at -= 1; show(); });
  box("next").addEventListener("click", () => { at += 1; show(); });
  search();
}
