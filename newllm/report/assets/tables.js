"use strict";
// Tables that sort and filter, and groups that are switched on and off in all figures at once.

// Numbers before words, numbers by size, words by alphabet with numbers in them by size; what is absent comes last.
function compareValues(a, b) {
  const absentA = a === null || a === "", absentB = b === null || b === "";
  if (absentA || absentB) return absentA && absentB ? 0 : absentA ? 1 : -1;
  const x = Number(a), y = Number(b);
  const numberA = !Number.isNaN(x), numberB = !Number.isNaN(y);
  if (numberA && numberB) return x - y;
  if (numberA !== numberB) return numberA ? -1 : 1;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

// The order of `items` by `value(item)`; stable, and what is absent is last in both directions.
function sorted(items, value, down) {
  const keyed = items.map((item) => [value(item), item]);
  const absent = (v) => v === null || v === "";
  keyed.sort(([a], [b]) => (down && !absent(a) && !absent(b) ? compareValues(b, a) : compareValues(a, b)));
  return keyed.map(([, item]) => item);
}

// Marks the heading as sorted, upwards first; says whether the order goes down.
function turn(heading) {
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  return down;
}

function matches(text, wanted) {
  return wanted.every((word) => text.includes(word));
}

function wordsOf(input) {
  return input.value.toLowerCase().split(/\s+/).filter(Boolean);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.addEventListener("click", () => {
      const value = (row) => row.cells[column].dataset.value ?? null;
      body.append(...sorted([...body.rows], value, turn(heading)));
    });
  });
}

for (const input of document.querySelectorAll("figure.table .filter")) {
  const rows = input.closest("figure").querySelector("tbody").rows;
  input.addEventListener("input", () => {
    const wanted = wordsOf(input);
    for (const row of rows) row.classList.toggle("off", !matches(row.textContent.toLowerCase(), wanted));
  });
}

const hidden = new Set();

function toggleGroup(index) {
  const off = !hidden.has(index);
  if (off) hidden.add(index);
  else hidden.delete(index);
  for (const part of document.querySelectorAll(`.group-${index}`)) part.classList.toggle("off", off);
  for (const key of document.querySelectorAll(`.key-${index}`)) key.classList.toggle("faded", off);
  for (const chip of document.querySelectorAll(`.chip[data-group="${index}"]`)) chip.setAttribute("aria-pressed", String(!off));
}

document.addEventListener("click", (event) => {
  const chip = event.target.closest(".chip");
  if (chip) return toggleGroup(chip.dataset.group);
  const key = event.target.closest(".key");
  if (key) toggleGroup([...key.classList].find((name) => /^key-\d/.test(name)).slice(4));
});
