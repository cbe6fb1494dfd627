"use strict";
// The report's page: building blocks and the leaderboard. Whatever comes from records is data: it becomes text nodes
// and attributes, never HTML. The scripts of the page run one after the other and share their names.

const core = JSON.parse(document.getElementById("core").textContent);
const $ = (id) => document.getElementById(id);
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "pentagon", "star"];
const KL = ["kl", "kl_reference"];
const KEPT_LABELS = 12; // with more points of one method, labels would cover each other
const KEPT_BANDS = 10; // with more lines, bands would

// --- building blocks ---

/** An element. `about`: attributes, `on…` handlers, true and false for those without a value. */
function h(tag, about = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child != null));
  return made;
}

/** Fill a select with [value, text] pairs, keeping what was chosen where it is still there. */
function fill(select, options, chosen = select.value) {
  select.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
  if (options.some(([value]) => String(value) === String(chosen))) select.value = chosen;
}

const told = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const number = (x) => {
  if (typeof x !== "number") return x == null ? "–" : told(x);
  if (Number.isInteger(x)) return x.toLocaleString("en");
  return Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : String(Number(x.toPrecision(4)));
};
const counted = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

function table(headings, rows, className = "") {
  const head = h(
    "tr",
    {},
    headings.map((text) => h("th", { scope: "col" }, text)),
  );
  const body = rows.map(([first, ...rest]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, first),
      rest.map((cell) => h("td", {}, cell)),
    ),
  );
  return h("table", { class: className }, h("thead", {}, head), h("tbody", {}, body));
}

/** A section that is built when it is first opened. */
function folded(title, build) {
  const made = h("details", {}, h("summary", {}, title));
  made.addEventListener("toggle", async () => {
    if (!made.open || made.dataset.built) return;
    made.dataset.built = "1";
    made.append(await guarded(build));
  });
  return made;
}

/** What `build` makes, or why it could not: a browser too old to unpack, say. */
async function guarded(build) {
  try {
    return await build();
  } catch (error) {
    return h("p", { class: "warning" }, `This part of the page cannot be shown: ${error.message}`);
  }
}

// --- packs: gzip in base64, unpacked when they are opened ---

async function inflated(id) {
  if (typeof DecompressionStream === "undefined") throw new Error("the browser has no DecompressionStream");
  // The packs stand behind this script: the tables are there before the last of them is read.
  if (document.readyState === "loading")
    await new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
  const binary = atob($(id).textContent);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

const packs = new Map();
function pack(n) {
  if (!packs.has(n)) packs.set(n, inflated(`pack-${n}`).then(JSON.parse));
  return packs.get(n);
}

let drawing;
/** The drawing library, once it is needed; its hash stands in the page's security policy. */
function plotly() {
  drawing ??= inflated("plotly").then((source) => {
    const script = document.createElement("script");
    script.textContent = source;
    document.head.append(script);
    return window.Plotly;
  });
  return drawing;
}

// --- leaderboard ---

const blockOf = (row) => core.blocks[row.block];
const blockOptions = core.blocks.map((block, i) => [i, [block.task, block.conditions].filter(Boolean).join(": ")]);
const algos = [...new Set(core.rows.map((row) => row.algo).filter(Boolean))];
const colour = (algo) => (algo ? core.colours[algos.indexOf(algo) % core.colours.length] : ink());
const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
const sorting = { id: "", descending: false };
const openRows = new Map(); // row number -> its panel, open
const haystacks = core.rows.map((row) =>
  [
    blockOf(row).title,
    row.label,
    row.settings,
    row.state,
    ...row.runs.map((n) => Object.values(core.runs[n]).join(" ")),
  ]
    .join(" ")
    .toLowerCase(),
);

/** Number of the place that a row is shown at, -1 where its runs were not evaluated there. */
function placeOf(row) {
  const places = blockOf(row).places;
  const wanted = $("filter-place").value;
  if (wanted) return places.findIndex(([split, mode]) => `${split}, ${mode}` === wanted);
  const heldout = places.findIndex(([split]) => split === "heldout");
  return heldout >= 0 ? heldout : places.length - 1;
}

/** The KL of a row at its place, or else where the same prompts were sampled. */
function klOf(row) {
  const place = placeOf(row);
  const places = blockOf(row).places;
  for (const at of [
    place,
    places.findIndex(([split, mode]) => place >= 0 && split === places[place][0] && mode === "sampled"),
  ])
    for (const name of KL) if (row.cells[at]?.[name]) return { ...row.cells[at][name], at: places[at][2] };
  return null;
}

/** Shares are kept as shares and shown as percent. */
const scaleOf = (row, name) => (blockOf(row).metrics.find((m) => m.name === name)?.percent ? 100 : 1);
const scaled = (x, by) => (x == null ? null : by * x);
const countOf = (cell) =>
  cell?.n.length ? [...new Set([Math.min(...cell.n), Math.max(...cell.n)])].map(number).join("-") : "–";

function hint(cell, by = 1) {
  if (!cell || cell.mean == null) return "not measured";
  const [mean, low, high] = [cell.mean, cell.low, cell.high].map((x) => number(scaled(x, by)));
  const limits = cell.low == null ? "no interval" : `95% interval ${low} to ${high}, over ${cell.over}`;
  return `mean ${mean}, ${limits}, n ${countOf(cell)}${cell.at ? `; ${cell.at}` : ""}`;
}

const ofCell = (find, name) => ({
  value: (row) => find(row)?.mean ?? null,
  text: (row) => find(row)?.text ?? "–",
  hint: (row) => hint(find(row), scaleOf(row, name)),
  best: (row) => Boolean(find(row)?.best),
});
const plain = (id, title, value, about = {}) => ({
  id,
  title,
  value,
  text: (row) => (value(row) == null ? "–" : typeof value(row) === "number" ? number(value(row)) : value(row)),
  ...about,
});

function columns(rows) {
  const metrics = new Map();
  for (const row of rows)
    for (const metric of blockOf(row).metrics)
      if (metric.headline) metrics.set(`${metric.name} ${metric.title}`, metric);
  const found = [...metrics].flatMap(([id, metric]) => {
    const has = (row) => blockOf(row).metrics.some((m) => m.name === metric.name && m.title === metric.title);
    const at = (part) => (row) => (has(row) ? row[part][placeOf(row)]?.[metric.name] : null);
    const of = (part) => ({ ...ofCell(at(part), metric.name), falling: metric.better !== "lower" });
    const value = { id: `metric ${id}`, title: metric.title, ...of("cells") };
    const spoken = `${metric.title} minus reference`;
    const about = { id: `difference ${id}`, title: "minus reference", spoken, difference: true };
    const difference = { ...about, ...of("differences") };
    const n = plain(
      `n ${id}`,
      "n",
      (row) => {
        const n = at("cells")(row)?.n;
        return n?.length ? Math.max(...n) : null;
      },
      { quiet: true, text: (row) => countOf(at("cells")(row)) },
    );
    return $("show-differences").checked ? [value, difference, n] : [value, n];
  });
  return [
    plain("task", "Task", (row) => blockOf(row).task, { hint: (row) => blockOf(row).title }),
    plain("conditions", "Conditions", (row) => blockOf(row).conditions || null, { hint: (row) => blockOf(row).title }),
    plain("method", "Method", (row) => row.label),
    plain("on", "On", (row) => blockOf(row).places[placeOf(row)]?.slice(0, 2).join(", ") ?? null),
    ...found,
    { id: "kl", title: "KL to reference (nats)", ...ofCell(klOf) },
    plain("seeds", "Seeds", (row) => (row.algo ? row.seeds : null), { hint: (row) => row.state }),
    plain("failed", "Failed", (row) => (row.algo ? row.counts.failed : null), { bad: true }),
    plain("started", "Unfinished", (row) => row.counts.started || null, { bad: true }),
    plain("diverged", "Diverged", (row) => (row.algo ? row.counts.diverged : null), { bad: true }),
    ...["action_tokens", "updates", "samples_drawn"].map((name, i) =>
      plain(name, ["Tokens", "Updates", "Samples"][i], (row) => row.consumed[name] ?? null, {
        quiet: true,
        hint: () => `${name.replace("_", " ")} consumed, mean of a finished run`,
      }),
    ),
  ].filter((column) => ["task", "method", "kl"].includes(column.id) || rows.some((row) => column.value(row) != null));
}

/** Numbers as numbers, text as text, and what is missing last either way. */
function compared(a, b) {
  if (a == null || b == null) return a == null ? (b == null ? 0 : 1) : -1;
  const order =
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true });
  return sorting.descending ? -order : order;
}

function drawBoard() {
  const [task, method] = [$("filter-task").value, $("filter-method").value];
  const words = $("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const ofTask = core.rows.map((row, n) => ({ row, n })).filter(({ row }) => !task || blockOf(row).task === task);
  const shown = columns(ofTask.map(({ row }) => row));
  const kept = ofTask.filter(
    ({ row, n }) =>
      (!method || (row.algo || "reference") === method) && words.every((word) => haystacks[n].includes(word)),
  );
  const by = shown.find((column) => column.id === sorting.id);
  if (by) kept.sort((a, b) => compared(by.value(a.row), by.value(b.row)) || a.n - b.n);
  const arrow = () => (sorting.descending ? " ▼" : " ▲");
  const heads = shown.map((column) => {
    const sorted = by === column ? (sorting.descending ? "descending" : "ascending") : null;
    const sort = () => {
      sorting.descending = sorting.id === column.id ? !sorting.descending : Boolean(column.falling);
      sorting.id = column.id;
      drawBoard();
      document.querySelector("#board th[aria-sort] button").focus();
    };
    return h(
      "th",
      { scope: "col", "aria-sort": sorted, class: column.difference ? "difference" : null },
      h("button", { type: "button", onclick: sort }, column.title, sorted ? arrow() : ""),
    );
  });
  const body = kept.flatMap(({ row, n }) => {
    const line = h(
      "tr",
      { "data-row": n, class: row.algo ? null : "reference" },
      shown.map((column) => cellOf(column, row, n)),
    );
    return openRows.has(n)
      ? [line, h("tr", { class: "opened" }, h("td", { colspan: shown.length }, openRows.get(n)))]
      : [line];
  });
  $("board").replaceChildren(h("thead", {}, h("tr", {}, heads)), h("tbody", {}, body));
  $("shown").textContent = `${kept.length} of ${counted(core.rows.length, "row")}`;
}

const swatchOf = (row) => h("span", { class: "swatch", style: `background:${colour(row.algo)}` });

/** A cell; the name of a row and every number in it open the runs behind them. */
function cellOf(column, row, n) {
  const value = column.value(row);
  const about = {
    title: column.hint?.(row),
    class:
      [
        typeof value === "number" || value == null ? "number" : "",
        column.difference ? "difference" : "",
        column.best?.(row) ? "best" : "",
        column.quiet ? "quiet" : "",
        column.bad && value ? "bad" : "",
      ]
        .join(" ")
        .trim() || null,
  };
  const named = column.id === "method";
  if (!row.behind.length || (!named && typeof value !== "number")) {
    if (!named) return h("td", about, column.text(row));
    return h("th", { scope: "row", title: row.state }, swatchOf(row), row.label);
  }
  const toggle = () => {
    if (!openRows.delete(n)) openRows.set(n, runsOf(row));
    drawBoard();
    const buttons = document.querySelectorAll(`#board tr[data-row="${n}"] button`);
    [...buttons].find((button) => button.dataset.column === column.id)?.focus();
  };
  const button = {
    type: "button",
    "aria-expanded": String(openRows.has(n)),
    "aria-label": named ? null : `${column.text(row)}, ${column.spoken ?? column.title} of ${row.label}: its runs`,
    "data-column": column.id,
    onclick: toggle,
  };
  if (!named) return h("td", about, h("button", button, column.text(row)));
  const mark = openRows.has(n) ? "▾ " : "▸ ";
  return h(
    "th",
    { scope: "row", title: row.settings || null },
    h("button", button, mark, swatchOf(row), row.label),
  );
}
