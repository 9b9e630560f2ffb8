// The page: sliders, choice of methods, the patch that is looked at, the card.

const data = JSON.parse(document.getElementById("data").textContent);
const [layerSlider, budgetSlider, modeMenu] = ["layer", "budget", "mode"].map(id => document.getElementById(id));
const panels = new Map();                   // method -> its Panel, of those that are shown
let looked = null;                          // { panel, token }: the patch that is looked at

function layer() {
  return Number(layerSlider.value);
}

function budget() {
  return data.budgets[Number(budgetSlider.value)] ?? null;
}

function layerName() {
  return layer() < 0 ? "in the vision tower" : `before layer ${layer()} (0 to ${data.layers - 1})`;
}

/** Bring everything up to date. */
function update() {
  tell(layerSlider, layerName());
  tell(budgetSlider, budget() || "the methods' own");
  for (const panel of panels.values()) panel.show(budget(), layer(), modeMenu.value);
  const shown = new Set([...panels.values()].map(panel => panel.run && panel.run.label));
  for (const row of document.querySelectorAll("tr[data-run]")) {
    row.classList.toggle("shown", shown.has(row.dataset.run));
  }
  if (looked && looked.panel.cells[looked.token]) look(looked.panel, looked.token);
}

function tell(slider, words) {
  slider.setAttribute("aria-valuetext", words);
  document.getElementById(`${slider.id}-value`).textContent = words;
}

/** Show the panels of the methods that are chosen, in their order. */
function choose() {
  const boxes = [...document.querySelectorAll("input[name=method]")];
  const chosen = boxes.filter(box => box.checked).map(box => box.value);
  for (const method of panels.keys()) if (!chosen.includes(method)) panels.delete(method);
  for (const method of chosen) if (!panels.has(method)) panels.set(method, listening(new Panel(data, method)));
  const inOrder = chosen.map(method => panels.get(method).element);
  document.getElementById("pictures").replaceChildren(...inOrder);
  document.getElementById("chosen-count").textContent = `${chosen.length} of ${boxes.length}`;
  if (looked && !chosen.includes(looked.panel.method)) looked = null;
  update();
}

// --- the patch that is looked at -------------------------------------------------------------------------------------

function listening(panel) {
  panel.picture.addEventListener("pointerover", event => lookAt(panel, event));
  panel.picture.addEventListener("focusin", event => lookAt(panel, event));
  panel.picture.addEventListener("keydown", event => press(panel, event));
  panel.button.addEventListener("click", () => {
    showCard(panel.method);
    document.getElementById("cards").focus();
  });
  return panel;
}

function lookAt(panel, event) {
  const cell = event.target.closest(".patch");
  if (!cell) return;
  if (event.type === "focusin") rove(cell);
  look(panel, Number(cell.dataset.token));
  showCard(panel.method);
}

/** Of each grid one cell is reached by Tab: the one that was reached last. */
function rove(cell) {
  for (const other of cell.closest(".grid").querySelectorAll(".patch[tabindex='0']")) other.tabIndex = -1;
  cell.tabIndex = 0;
}

/** Outline the patch here and in the other pictures, and what was merged; tell what is known of it. */
function look(panel, token) {
  looked = { panel, token };
  for (const cell of document.querySelectorAll("#pictures :is(.active, .peer, .source)")) {
    cell.classList.remove("active", "peer", "source");
  }
  const at = panel.cells[token].dataset.place;
  for (const other of panels.values()) {
    const same = other.cells[other.tokens.get(at)];
    if (same) same.classList.add(other === panel ? "active" : "peer");
  }
  const sources = panel.situation.others(token).map(([source]) => source);
  const into = panel.situation.into.get(token) || [];
  for (const other of [...sources, ...into]) panel.cells[other].classList.add("source");
  document.getElementById("sentence").textContent = sentence(panel, token);
  document.getElementById("comparison").replaceChildren(...rows(panel, at));
}

/** All that is known of a patch, as a sentence or two. */
function sentence(panel, token) {
  const judged = panel.situation.judged(token);
  const words = [`${panel.run.label}, ${panel.names[token]}: ${panel.fate(token)}`, ranked(judged)];
  if (judged && judged.reason !== null) words.push(`reason: ${judged.reasons[judged.reason]}`);
  if (panel.cells[token].classList.contains("evidence")) words.push("it is evidence");
  const others = panel.situation.others(token);
  const merged = others.map(([source, weight]) => `${panel.names[source]} (${digits(weight)})`);
  if (merged.length) words.push(`merged into it, with weights: ${merged.join(", ")}`);
  return `${words.join("; ")}.`;
}

function ranked(judged) {
  if (!judged) return "no step has ranked it yet";
  if (judged.rank === null) return `${judged.where} it was one of ${judged.of}, without a score`;
  return `${judged.where} its score is ${digits(judged.score)}, rank ${judged.rank} of ${judged.of}`;
}

const SHORT = { kept: "kept", into: "merged", dropped: "dropped" };

/** A row for each method that is shown. */
function rows(active, at) {
  const having = [...panels.values()].filter(panel => panel.tokens.has(at));
  return having.map(panel => row(panel, panel.tokens.get(at), panel === active));
}

function row(panel, token, isActive) {
  const judged = panel.situation.judged(token);
  const hasRank = judged !== null && judged.rank !== null;
  const hasReason = judged !== null && judged.reason !== null;
  const others = panel.situation.others(token).length;
  const cells = [
    SHORT[panel.situation.state(token)],
    hasRank ? digits(judged.score) : "–",
    hasRank ? `${judged.rank} of ${judged.of}` : "–",
    hasReason ? judged.reasons[judged.reason] : "–",
    others || "–",
  ];
  const made = element("tr", isActive ? "shown" : "");
  const head = element("th", "", panel.run.label);
  head.scope = "row";
  made.append(head, ...cells.map(text => element("td", "", text)));
  return made;
}

// --- keyboard --------------------------------------------------------------------------------------------------------

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const SLIDES = {
  PageUp: [layerSlider, -1],
  PageDown: [layerSlider, 1],
  "+": [budgetSlider, 1],
  "-": [budgetSlider, -1],
};

function press(panel, event) {
  const cell = event.target.closest(".patch");
  if (!cell || event.altKey || event.metaKey) return;
  if (SLIDES[event.key]) slide(...SLIDES[event.key]);
  else if (STEPS[event.key] || event.key === "Home" || event.key === "End") next(cell, event).focus();
  else return;
  event.preventDefault();
}

/** The cell that a key leads to; at an edge the cell itself. */
function next(cell, event) {
  const rowsOfGrid = [...cell.closest(".grid").children];
  const row = rowsOfGrid.indexOf(cell.parentElement);
  const column = [...cell.parentElement.children].indexOf(cell);
  if (event.key === "Home") return (event.ctrlKey ? rowsOfGrid[0] : cell.parentElement).firstElementChild;
  if (event.key === "End") return (event.ctrlKey ? rowsOfGrid.at(-1) : cell.parentElement).lastElementChild;
  const [down, right] = STEPS[event.key];
  const nextRow = rowsOfGrid[row + down] || cell.parentElement;
  return nextRow.children[column + right] || cell;
}

/** Move a slider by a step; the focus stays on the patch. */
function slide(slider, step) {
  slider.value = Number(slider.value) + step;
  update();
}

// --- cards -----------------------------------------------------------------------------------------------------------

function showCard(method) {
  const names = data.cards[method];
  for (const card of document.querySelectorAll("[data-card]")) card.hidden = !names.includes(card.dataset.card);
  document.getElementById("no-card").hidden = names.length > 0;
  document.getElementById("card-name").textContent = method;
}

for (const control of [layerSlider, budgetSlider, modeMenu]) control.addEventListener("input", update);
document.getElementById("choose").addEventListener("change", choose);
choose();
showCard([...panels.keys()].find(method => method !== "none") || data.runs[0].method);
