// What the page does beyond standing there: marks that say what they are, conditions and arms that can be hidden, tables that sort, texts that
// are searched and sorted.
"use strict";
const tip = document.getElementById("tip");

function tellAt(element, words) {
  tip.textContent = words;
  tip.hidden = false;
  const box = element.getBoundingClientRect();
  const left = Math.min(box.right + 8, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
  tip.style.top = `${box.bottom + 6 + window.scrollY}px`;
}

function tell(point) {
  tellAt(point, point.querySelector("title").textContent);
  for (const other of document.querySelectorAll(".pt")) {
    other.classList.toggle("same", other.dataset.key === point.dataset.key);
  }
}

function hush() {
  tip.hidden = true;
  for (const other of document.querySelectorAll(".pt.same")) other.classList.remove("same");
}

for (const point of document.querySelectorAll(".pt")) {
  point.addEventListener("pointerenter", () => tell(point));
  point.addEventListener("focus", () => tell(point));
  point.addEventListener("pointerleave", hush);
  point.addEventListener("blur", hush);
}

// One tab stop for a chart or a table's header; the arrow keys move inside it.
function rove(holder, selector) {
  const all = () => [...holder.querySelectorAll(selector)].filter((one) => one.style.display !== "none");
  holder.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const items = all();
    const place = items.indexOf(document.activeElement);
    if (event.key === "Escape") hush();
    if (place < 0 || (step === undefined && event.key !== "Home" && event.key !== "End")) return;
    event.preventDefault();
    const next = event.key === "Home" ? 0 : event.key === "End" ? items.length - 1 : (place + step + items.length) % items.length;
    settle(holder, selector, items[next]);
    items[next].focus();
  });
}

function settle(holder, selector, chosen) {
  for (const other of holder.querySelectorAll(selector)) other.setAttribute("tabindex", other === chosen ? "0" : "-1");
}

for (const chart of document.querySelectorAll("svg.panel")) rove(chart, ".pt");
for (const head of document.querySelectorAll("thead")) rove(head, "button");

// A header's definition is shown to the keyboard as well.
for (const button of document.querySelectorAll("thead button")) {
  const term = button.querySelector("abbr");
  if (term) {
    button.addEventListener("focus", () => tellAt(button, term.title));
    button.addEventListener("blur", hush);
  }
}

const boxes = [...document.querySelectorAll("input[data-hides]")];

function hide() {
  for (const mark of document.querySelectorAll("svg.panel [data-stage], svg.panel [data-arm]")) {
    const off = boxes.some((box) => !box.checked && mark.dataset[box.dataset.hides] === box.value);
    mark.style.display = off ? "none" : "";
  }
  for (const chart of document.querySelectorAll("svg.panel")) {
    const first = [...chart.querySelectorAll(".pt")].find((one) => one.style.display !== "none");
    if (first) settle(chart, ".pt", first);
  }
}

for (const box of boxes) box.addEventListener("change", hide);

// A cell's number is what it begins with; a cell without one comes last in either direction.
function figure(row, column) {
  const found = /^[+-]?\d+(\.\d+)?/.exec(row.cells[column].textContent);
  return found ? Number(found[0]) : null;
}

function compare(a, b, column, sign) {
  const [x, y] = [figure(a, column), figure(b, column)];
  if (column === 0 || (x === null && y === null)) {
    return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true });
  }
  if (x === null || y === null) return x === null ? 1 : -1;
  return sign * (x - y);
}

for (const head of document.querySelectorAll("th[data-sort]")) {
  head.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const rows = [...body.rows].sort((a, b) => compare(a, b, head.cellIndex, sign));
    body.append(...rows);
  });
}

const search = document.querySelector("[data-search]");
if (search) {
  const samples = [...document.querySelectorAll(".sample")];
  const texts = new Map(samples.map((one) => [one, one.textContent.toLowerCase()]));
  const count = document.querySelector("[data-count]");
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().trim();
    for (const one of samples) {
      one.hidden = words !== "" && !texts.get(one).includes(words);
      if (words !== "" && !one.hidden) one.open = true;
    }
    count.textContent = `${samples.filter((one) => !one.hidden).length} samples`;
  });
  const order = document.querySelector("[data-order]");
  order.addEventListener("change", () => {
    const value = (one) => (one.dataset[order.value] === undefined ? -Infinity : Number(one.dataset[order.value]));
    const place = (one) => Number(one.dataset.place);
    const sorted = [...samples].sort((a, b) => (order.value && value(b) - value(a)) || place(a) - place(b));
    sorted[0].parentNode.append(...sorted);
  });
}

// A link to a sample opens it.
function open() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}

window.addEventListener("hashchange", open);
open();
