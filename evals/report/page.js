// What the report does beyond standing there: points that say what they are, stages and arms that can be hidden, tables that sort.
"use strict";
const tip = document.getElementById("tip");

function tell(point) {
  tip.textContent = point.querySelector("title").textContent;
  tip.hidden = false;
  const box = point.getBoundingClientRect();
  const left = Math.min(box.right + 8, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
  tip.style.top = `${box.bottom + 6 + window.scrollY}px`;
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

const boxes = [...document.querySelectorAll("input[data-hides]")];

function hide() {
  for (const mark of document.querySelectorAll(".pt, .path")) {
    const off = boxes.some((box) => !box.checked && mark.dataset[box.dataset.hides] === box.value);
    mark.style.display = off ? "none" : "";
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
  const sort = () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const rows = [...body.rows].sort((a, b) => compare(a, b, head.cellIndex, sign));
    body.append(...rows);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      sort();
    }
  });
}
