// The table of runs, drawn a page at a time; one run's configuration and metrics; two runs side by side.

const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 50;
const picked = [];
let shown = [], page = 0, sortColumn = null, sortDown = false;
const texts = [];

const element = (name, text, kind) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
};

const from = (store, run) => (store.at[run] < 0 ? null : store.values[store.at[run]]);
const folder = (run) => `${from(data.folder, run)}/${data.run[run]}`;

function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return plain(value);
  if (Number.isInteger(value) || Math.abs(value) >= 1e4) return Math.round(value).toLocaleString("en-US");
  return Math.abs(value) < 1e-4 ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

const plain = (value) => (value === null || value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));

// What a column shows of a run. Kinds: run (its name), words, config (a flat key), metric.
function value(run, column) {
  if (column.kind === "run") return data.run[run];
  if (column.kind === "metric") return data.metrics[column.key][run];
  const found = from(data[column.kind][column.key], run);
  return found !== null && typeof found === "object" ? JSON.stringify(found) : found;
}

function configuration(run) {
  if (data.bare.includes(run)) return {};
  const flat = { ...data.common };
  for (const [key, store] of Object.entries(data.config)) if (store.at[run] >= 0) flat[key] = from(store, run);
  return flat;
}

function text(run) {
  texts[run] ??= data.columns
    .filter((column) => column.kind !== "metric")
    .map((column) => `${plain(value(run, column))} ${column.name}=${plain(value(run, column))}`)
    .join(" ").toLowerCase();
  return texts[run];
}

function choose() {
  const wanted = wordsOf(document.getElementById("run-filter"));
  shown = [];
  for (let run = 0; run < data.count; run++) if (matches(text(run), wanted)) shown.push(run);
  if (sortColumn) shown = sorted(shown, (run) => value(run, sortColumn), sortDown);
  page = 0;
  draw();
}

function draw() {
  const body = document.querySelector("#run-table tbody");
  const rows = shown.slice(page * PAGE, (page + 1) * PAGE).map((run) => {
    const row = element("tr");
    row.dataset.run = run;
    const tick = element("input");
    tick.type = "checkbox";
    tick.checked = picked.includes(run);
    tick.setAttribute("aria-label", `Pick ${data.run[run]} for a comparison`);
    row.append(element("td"));
    row.cells[0].append(tick);
    for (const column of data.columns) {
      const cell = element("td", undefined, column.kind === "metric" ? "number" : "");
      if (column.kind === "run") {
        const link = element("a", data.run[run]);
        link.href = `#run-${run}`;
        cell.append(link);
      } else cell.textContent = column.kind === "metric" ? number(value(run, column)) : plain(value(run, column));
      row.append(cell);
    }
    return row;
  });
  body.replaceChildren(...rows);
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  document.getElementById("run-count").textContent = `${shown.length.toLocaleString("en-US")} of ${data.count.toLocaleString("en-US")} runs`;
  document.getElementById("page").textContent = `Page ${page + 1} of ${pages}`;
  document.getElementById("earlier").disabled = page === 0;
  document.getElementById("later").disabled = page + 1 >= pages;
  document.querySelector(".pager").hidden = pages === 1;
}

function head() {
  const row = element("tr");
  row.append(element("th", ""));
  for (const column of data.columns) {
    const heading = element("th", undefined, column.kind === "metric" ? "number" : "");
    heading.scope = "col";
    heading.append(element("button", column.name));
    heading.addEventListener("click", () => {
      sortDown = turn(heading);
      sortColumn = column;
      choose();
    });
    row.append(heading);
  }
  document.querySelector("#run-table thead").replaceChildren(row);
}

// The flat configuration as nested YAML; what not all runs share is marked.
function yaml(flat) {
  const box = element("pre");
  let open = [];
  for (const key of Object.keys(flat).sort()) {
    const parts = key.split(".");
    let depth = 0;
    while (depth < parts.length - 1 && open[depth] === parts[depth]) depth++;
    for (; depth < parts.length - 1; depth++) box.append(`${"  ".repeat(depth)}${parts[depth]}:\n`);
    open = parts.slice(0, -1);
    const found = flat[key];
    const word = typeof found === "string" && /^[\w./+-][\w ./+-]*$/.test(found) ? found : JSON.stringify(found);
    box.append(element("span", `${"  ".repeat(depth)}${parts.at(-1)}: ${word}`, key in data.config ? "own" : ""), "\n");
  }
  return box;
}

function pairs(rows, headings) {
  const table = element("table", undefined, "sides");
  const top = table.createTHead().insertRow();
  headings.forEach((name, i) => top.append(element("th", name, i && headings.numeric ? "number" : "")));
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((cell, i) => line.append(element("td", cell, i && headings.numeric ? "number" : "")));
  }
  return table;
}

const numeric = (...names) => Object.assign(names, { numeric: true });

function titled(title, ...content) {
  const box = element("div");
  box.append(element("h3", title), ...content);
  return box;
}

function open(title, ...content) {
  const dialog = document.getElementById("details");
  document.getElementById("details-title").textContent = title;
  document.getElementById("details-body").replaceChildren(...content);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function details(run) {
  const facts = element("p");
  const link = element("a", folder(run));
  link.href = folder(run).split("/").map(encodeURIComponent).join("/") + "/";
  facts.append(`${from(data.words.state, run)}, in `, link);
  const error = from(data.words.error, run);
  const metrics = Object.keys(data.metrics).filter((name) => data.metrics[name][run] !== null);
  const sides = element("div", undefined, "columns");
  sides.append(
    titled("Configuration (what not all runs share is marked)", yaml(configuration(run))),
    titled("Metrics", pairs(metrics.map((name) => [name, number(data.metrics[name][run])]), numeric("metric", "value"))),
  );
  open(data.run[run], facts, ...(error ? [element("p", error)] : []), sides);
}

function compare(a, b) {
  const one = configuration(a), two = configuration(b);
  const keys = [...new Set([...Object.keys(one), ...Object.keys(two)])].sort();
  const differ = keys.filter((key) => key !== "overrides" && JSON.stringify(one[key]) !== JSON.stringify(two[key]));
  const metrics = Object.entries(data.metrics).filter(([, column]) => column[a] !== null || column[b] !== null);
  const ratio = (x, y) => (x === null || y === null || !x ? "–" : `${(100 * (y / x - 1)).toFixed(2)} %`);
  const names = [data.run[a], data.run[b]];
  open(
    "Two runs",
    titled(
      differ.length ? `${differ.length} keys differ` : "No key differs",
      pairs(differ.map((key) => [key, plain(one[key]), plain(two[key])]), ["key", ...names]),
    ),
    titled("Metrics", pairs(metrics.map(([name, column]) => [name, number(column[a]), number(column[b]), ratio(column[a], column[b])]), numeric("metric", ...names, "difference"))),
  );
}

function pick(run, on) {
  const at = picked.indexOf(run);
  if (on && at < 0) picked.push(run);
  if (!on && at >= 0) picked.splice(at, 1);
  if (picked.length > 2) picked.shift();
  const button = document.getElementById("compare");
  button.disabled = picked.length !== 2;
  for (const row of document.querySelectorAll("#run-table tbody tr")) row.querySelector("input").checked = picked.includes(Number(row.dataset.run));
}

function follow() {
  const run = /^#run-(\d+)$/.exec(location.hash);
  if (run && Number(run[1]) < data.count) details(Number(run[1]));
}

head();
choose();
follow();
addEventListener("hashchange", follow);
document.getElementById("run-filter").addEventListener("input", choose);
document.getElementById("earlier").addEventListener("click", () => { page--; draw(); });
document.getElementById("later").addEventListener("click", () => { page++; draw(); });
document.getElementById("compare").addEventListener("click", () => compare(...picked));
document.getElementById("details").addEventListener("close", () => {
  if (/^#run-\d/.test(location.hash)) history.replaceState(null, "", location.pathname + location.search);
});
document.querySelector("#run-table tbody").addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  const run = Number(row.dataset.run);
  if (event.target.type === "checkbox") pick(run, event.target.checked);
  else if (event.target.closest("a") === null && !event.target.closest("td:first-child")) location.hash = `run-${run}`;
});
