"use strict";
// The report's page. Whatever comes from records is data: it becomes text nodes and attributes, never HTML.
(() => {
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
    const head = h("tr", {}, headings.map((text) => h("th", { scope: "col" }, text)));
    const body = rows.map(([first, ...rest]) =>
      h("tr", {}, h("th", { scope: "row" }, first), rest.map((cell) => h("td", {}, cell))));
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
    if (document.readyState === "loading") await new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
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
  const algos = [...new Set(core.rows.map((row) => row.algo).filter(Boolean))];
  const colour = (algo) => (algo ? core.colours[algos.indexOf(algo) % core.colours.length] : "#7F7F7F");
  const sorting = { id: "", descending: false };
  const openRows = new Map(); // row number -> its panel, open
  const haystacks = core.rows.map((row) =>
    [blockOf(row).title, row.label, row.settings, row.state, ...row.runs.map((n) => Object.values(core.runs[n]).join(" "))]
      .join(" ").toLowerCase());

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
    for (const at of [place, places.findIndex(([split, mode]) => place >= 0 && split === places[place][0] && mode === "sampled")])
      for (const name of KL) if (row.cells[at]?.[name]) return { ...row.cells[at][name], at: places[at][2] };
    return null;
  }

  /** Shares are kept as shares and shown as percent. */
  const scaleOf = (row, name) => (blockOf(row).metrics.find((m) => m.name === name)?.percent ? 100 : 1);
  const scaled = (x, by) => (x == null ? null : by * x);
  const countOf = (cell) => (cell?.n.length ? [...new Set([Math.min(...cell.n), Math.max(...cell.n)])].map(number).join("-") : "–");

  function hint(cell, by = 1) {
    if (!cell || cell.mean == null) return "not measured";
    const [mean, low, high] = [cell.mean, cell.low, cell.high].map((x) => number(scaled(x, by)));
    const limits = cell.low == null ? "no interval" : `95% interval ${low} to ${high}, over ${cell.over}`;
    return `mean ${mean}, ${limits}, n ${countOf(cell)}${cell.at ? `; ${cell.at}` : ""}`;
  }

  const ofCell = (find, name) => ({
    value: (row) => find(row)?.mean ?? null, text: (row) => find(row)?.text ?? "–",
    hint: (row) => hint(find(row), scaleOf(row, name)),
    best: (row) => Boolean(find(row)?.best),
  });
  const plain = (id, title, value, about = {}) =>
    ({ id, title, value, text: (row) => (value(row) == null ? "–" : typeof value(row) === "number" ? number(value(row)) : value(row)), ...about });

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
      const difference = { id: `difference ${id}`, title: "minus reference", difference: true, ...of("differences") };
      const n = plain(`n ${id}`, "n", (row) => { const n = at("cells")(row)?.n; return n?.length ? Math.max(...n) : null; },
        { quiet: true, text: (row) => countOf(at("cells")(row)) });
      return $("show-differences").checked ? [value, difference, n] : [value, n];
    });
    return [
      plain("task", "Task", (row) => blockOf(row).task, { hint: (row) => blockOf(row).title }),
      plain("method", "Method", (row) => row.label),
      plain("on", "On", (row) => blockOf(row).places[placeOf(row)]?.slice(0, 2).join(", ") ?? null),
      ...found,
      { id: "kl", title: "KL to reference (nats)", ...ofCell(klOf) },
      plain("seeds", "Seeds", (row) => (row.algo ? row.seeds : null), { hint: (row) => row.state }),
      plain("failed", "Failed", (row) => (row.algo ? row.counts.failed : null), { bad: true }),
      plain("diverged", "Diverged", (row) => (row.algo ? row.counts.diverged : null), { bad: true }),
      ...["action_tokens", "updates", "samples_drawn"].map((name, i) =>
        plain(name, ["Tokens", "Updates", "Samples"][i], (row) => row.consumed[name] ?? null,
          { quiet: true, hint: () => `${name.replace("_", " ")} consumed, mean of a finished run` })),
    ].filter((column) => ["task", "method", "kl"].includes(column.id) || rows.some((row) => column.value(row) != null));
  }

  /** Numbers as numbers, text as text, and what is missing last either way. */
  function compared(a, b) {
    if (a == null || b == null) return a == null ? (b == null ? 0 : 1) : -1;
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return sorting.descending ? -order : order;
  }

  function drawBoard() {
    const [task, method] = [$("filter-task").value, $("filter-method").value];
    const words = $("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const ofTask = core.rows.map((row, n) => ({ row, n })).filter(({ row }) => !task || blockOf(row).task === task);
    const shown = columns(ofTask.map(({ row }) => row));
    const kept = ofTask.filter(({ row, n }) =>
      (!method || (row.algo || "reference") === method) && words.every((word) => haystacks[n].includes(word)));
    const by = shown.find((column) => column.id === sorting.id);
    if (by) kept.sort((a, b) => compared(by.value(a.row), by.value(b.row)) || a.n - b.n);
    const heads = shown.map((column) => {
      const sorted = by === column ? (sorting.descending ? "descending" : "ascending") : null;
      const sort = () => {
        sorting.descending = sorting.id === column.id ? !sorting.descending : Boolean(column.falling);
        sorting.id = column.id;
        drawBoard();
        document.querySelector("#board th[aria-sort] button").focus();
      };
      return h("th", { scope: "col", "aria-sort": sorted, class: column.difference ? "difference" : null },
        h("button", { type: "button", onclick: sort }, column.title, sorted ? (sorting.descending ? " ▼" : " ▲") : ""));
    });
    const body = kept.flatMap(({ row, n }) => {
      const line = h("tr", { "data-row": n, class: row.algo ? null : "reference" }, shown.map((column) => cellOf(column, row, n)));
      return openRows.has(n) ? [line, h("tr", { class: "opened" }, h("td", { colspan: shown.length }, openRows.get(n)))] : [line];
    });
    $("board").replaceChildren(h("thead", {}, h("tr", {}, heads)), h("tbody", {}, body));
    $("shown").textContent = `${kept.length} of ${counted(core.rows.length, "row")}`;
  }

  function cellOf(column, row, n) {
    const value = column.value(row);
    const about = { title: column.hint?.(row), class: [
      typeof value === "number" || value == null ? "number" : "", column.difference ? "difference" : "",
      column.best?.(row) ? "best" : "", column.quiet ? "quiet" : "", column.bad && value ? "bad" : "",
    ].join(" ").trim() || null };
    if (column.id !== "method") return h("td", about, column.text(row));
    const toggle = () => {
      if (!openRows.delete(n)) openRows.set(n, runsOf(row));
      drawBoard();
      document.querySelector(`#board tr[data-row="${n}"] button`)?.focus();
    };
    const swatch = h("span", { class: "swatch", style: `background:${colour(row.algo)}` });
    if (!row.runs.length) return h("th", { scope: "row", title: row.state }, swatch, row.label);
    return h("th", { scope: "row", title: row.settings || null },
      h("button", { type: "button", "aria-expanded": String(openRows.has(n)), onclick: toggle }, openRows.has(n) ? "▾ " : "▸ ", swatch, row.label));
  }

  // --- runs ---

  function runsOf(row) {
    const panel = h("div", { class: "panel" });
    const below = h("div");
    let shown = null;
    const rows = row.runs.map((n) => {
      const run = core.runs[n];
      const open = async (event) => {
        for (const button of panel.querySelectorAll("[data-run]")) button.setAttribute("aria-expanded", "false");
        shown = shown === n ? null : n;
        if (shown == null) return below.replaceChildren();
        event.currentTarget.setAttribute("aria-expanded", "true");
        const made = await guarded(() => runDetails(run));
        if (shown === n) below.replaceChildren(made);
      };
      return [
        h("button", { type: "button", "data-run": run.id, "aria-expanded": "false", onclick: open }, run.id),
        number(run.seed), h("span", { class: run.status === "done" ? "" : "bad" }, run.status), number(run.steps),
        number(run.seconds), number(run.deviations), (run.commit ?? "–").slice(0, 12),
        run.dirty == null ? "–" : run.dirty ? "yes" : "no", run.source || "–", run.error || "–",
      ];
    });
    panel.append(h("p", { class: "note" }, row.settings), table(
      ["Run", "Seed", "Status", "Updates", "Seconds", "Deviations", "Commit", "Uncommitted changes", "Source", "Error"], rows), below);
    return panel;
  }

  const pairs = (data) => Object.entries(data).map(([name, value]) => [name.replaceAll("_", " "), number(value)]);

  async function runDetails(run) {
    const about = await pack(run.pack);
    const heads = about.evaluations.map((e) => `${e.policy}, ${e.split}, ${e.mode}, update ${e.step}`);
    const names = [...new Set(about.evaluations.flatMap((e) => Object.keys(e.metrics)))];
    const cell = (e, name) => {
      const m = e.metrics[name];
      return m ? `${number(m.mean)}${m.stderr == null ? "" : ` (se ${number(m.stderr)})`}, n ${number(m.n)}` : "–";
    };
    const list = (title, data) => (Object.keys(data).length ? folded(title, () => table(["", ""], pairs(data))) : null);
    return h("div", { class: "run" },
      h("h3", {}, run.id),
      about.error ? h("pre", { class: "bad" }, about.error) : null,
      about.deviations.length ? h("ul", {}, about.deviations.map((text) => h("li", {}, text))) : null,
      folded("Evaluations", () => h("div", { class: "wide" }, table(["metric", ...heads], names.map((name) => [name, ...about.evaluations.map((e) => cell(e, name))])))),
      about.evaluations.map((e, i) => (e.episodes ? folded(`Episodes: ${heads[i]}`, () => episodesOf(e)) : null)),
      folded("Settings", () => table(["", ""], Object.entries(about.spec).map(([name, value]) => [name, told(value)]))),
      list("Timings (seconds)", about.timings),
      list("Consumed", { ...about.consumed, ...(about.peak_memory_mb == null ? {} : { "peak memory (MB)": about.peak_memory_mb }) }),
      list("Data", about.data),
      list("Gap of sampler to scorer (nats a token)", about.gaps),
      list("Environment", about.environment));
  }

  function leftOut(held) {
    return held.left_out ? `${counted(held.left_out, "episode")} of ${number(held.episodes)} left out of this page: it keeps the first ` +
      `${counted(core.limits.prompts, "prompt")} of each split and mode, ${counted(core.limits.samples, "episode")} each.` : "";
  }

  async function episodesOf(evaluation) {
    const held = await pack(evaluation.pack);
    return h("div", {}, h("p", { class: "note" }, leftOut(held)), held.found.map((found) =>
      folded(found.prompt, () => h("div", {}, questionOf(found.episodes), found.episodes.map(episode)))));
  }

  // --- episodes; details have the shape that tasks give them: texts of turns and steps, or one answer ---

  const KNOWN = ["question", "questions", "answer", "texts", "results", "turns", "turn_errors", "entry_error"];
  const verdict = (passed, why) =>
    h("span", { class: passed == null ? "verdict" : passed ? "verdict good" : "verdict bad" },
      passed == null ? "not judged" : passed ? "✓ passed" : `✗ failed${why ? `: ${why}` : ""}`);

  function questionOf(episodes) {
    const found = episodes.find((e) => typeof e.details.question === "string");
    return found ? h("blockquote", {}, found.details.question) : null;
  }

  function numbersOf(numbers) {
    return Object.entries(numbers).filter(([name]) => !name.endsWith("/n")).map(([name, value]) => {
      const trials = numbers[`${name}/n`];
      return h("span", { class: "measured" }, `${name.replaceAll("_", " ")} `, h("b", {}, number(value)), trials == null ? "" : ` of ${number(trials)}`);
    });
  }

  function turnOf(details, i) {
    const [texts, results] = [details.texts?.[i] ?? [], details.results?.[i] ?? []];
    const judged = Array.isArray(details.turns) ? verdict(details.turns[i], details.turn_errors?.[i]) : null;
    return h("section", { class: "turn" }, h("h4", {}, `Turn ${i + 1} `, judged),
      details.questions?.[i] ? h("blockquote", {}, told(details.questions[i])) : null,
      texts.length ? null : h("p", { class: "note" }, "No answer."),
      texts.map((text, step) => [
        h("pre", { class: "said" }, text === "" ? h("i", {}, "(nothing)") : told(text)),
        (results[step] ?? []).length ? h("pre", { class: "result" }, [results[step]].flat().map(told).join("\n")) : null]));
  }

  function episode({ numbers, details }) {
    const turns = Math.max(details.texts?.length ?? 0, details.turns?.length ?? 0);
    const rest = Object.entries(details).filter(([name]) => !KNOWN.includes(name));
    return h("article", { class: "episode" },
      typeof details.entry_error === "string" ? h("p", {}, verdict(details.entry_error === "", details.entry_error)) : null,
      typeof details.answer === "string" ? h("pre", { class: "said" }, details.answer === "" ? h("i", {}, "(nothing)") : details.answer) : null,
      Array.from({ length: turns }, (_, i) => turnOf(details, i)),
      h("p", { class: "numbers" }, numbersOf(numbers)),
      rest.length ? h("p", { class: "numbers" }, rest.map(([name, value]) => h("span", { class: "measured" }, `${name.replaceAll("_", " ")} `, h("b", {}, number(value))))) : null);
  }

  // --- completions side by side ---

  function beside() {
    const [block, place, prompt] = [$("beside-block"), $("beside-place"), $("beside-prompt")];
    const sides = [$("beside-left"), $("beside-right")];
    const choices = () => {
      const found = [];
      const [from, to] = core.blocks[block.value].rows;
      for (let n = from; n < to; n++)
        core.rows[n].episodes.forEach((packed, i) => {
          const held = packed[place.value];
          if (held == null) return;
          const run = core.runs[core.rows[n].runs[i]];
          const ended = run && run.status !== "done" ? ` (${run.status})` : "";
          found.push([held, n, run ? `${core.rows[n].label}, seed ${run.seed}${ended}` : core.rows[n].label, !ended]);
        });
      return found;
    };
    const onBlock = () => {
      const { places } = core.blocks[block.value];
      const best = places.findIndex(([split]) => split === "heldout");
      fill(place, places.map((p, i) => [i, p[2]]), best < 0 ? places.length - 1 : best);
      return onPlace();
    };
    const onPlace = () => {
      const found = choices();
      // Two options may hold the very same episodes: the value names the option, not the pack.
      const options = found.map(([held, n, text], i) => [`${i}:${held}`, text]);
      const other = found.findIndex(([, n, , done]) => n !== found[0][1] && done);
      sides.forEach((select, i) => fill(select, options, options[i && other > 0 ? other : 0]?.[0]));
      return onSides();
    };
    let held = [];
    const onSides = async () => {
      held = await Promise.all(sides.map((select) => (select.value ? pack(Number(select.value.split(":")[1])) : { found: [] })));
      const names = [...new Set(held.flatMap((side) => side.found.map((f) => f.prompt)))];
      fill(prompt, names.map((name) => [name, name]), names.includes(prompt.value) ? prompt.value : names[0]);
      show();
    };
    const show = () => {
      const found = held.map((side) => side.found.find((f) => f.prompt === prompt.value)?.episodes ?? []);
      const question = questionOf(found.flat());
      $("beside-question").replaceChildren(...(question ? [question] : []));
      $("beside-answers").replaceChildren(...found.map((episodes, i) => h("div", { class: "side" },
        h("h3", {}, sides[i].selectedOptions[0]?.textContent ?? "–"),
        episodes.length ? episodes.map(episode) : h("p", { class: "note" }, "No episode of this prompt in the page."))));
      $("beside-note").textContent = held.some((side) => side.left_out) ? leftOut(held.find((side) => side.left_out)) : "";
    };
    const move = (by) => {
      const at = prompt.selectedIndex + by;
      if (at < 0 || at >= prompt.options.length) return;
      prompt.selectedIndex = at;
      show();
    };
    const said = (build) => () => guarded(build).then((problem) => problem && $("beside-answers").replaceChildren(problem));
    fill(block, core.blocks.map((b, i) => [i, b.title]));
    block.addEventListener("change", said(onBlock));
    place.addEventListener("change", said(onPlace));
    for (const select of sides) select.addEventListener("change", said(onSides));
    prompt.addEventListener("change", show);
    $("beside-previous").addEventListener("click", () => move(-1));
    $("beside-next").addEventListener("click", () => move(1));
    return said(onBlock)();
  }

  // --- configurations ---

  function configurations() {
    const [a, b] = [$("config-a"), $("config-b")];
    for (const select of [a, b])
      select.append(...core.rows.filter((row) => row.runs.length).map((row) =>
        h("optgroup", { label: `${blockOf(row).task}: ${row.label}` }, row.runs.map((n) =>
          h("option", { value: n }, `${core.runs[n].id} (seed ${core.runs[n].seed}, ${core.runs[n].status})`)))));
    const first = core.rows.find((row) => row.runs.length);
    const second = core.rows.find((row) => row !== first && row.runs.length);
    if (second) b.value = second.runs[0];
    const compare = (title, one, other) => {
      const names = [...new Set([...Object.keys(one), ...Object.keys(other)])];
      const text = (data, name) => (name in data ? told(data[name]) ?? "–" : "(not set)");
      const differ = (name) => JSON.stringify(one[name]) !== JSON.stringify(other[name]);
      const kept = names.filter((name) => $("config-all").checked || differ(name));
      const made = table([title, core.runs[a.value].id, core.runs[b.value].id], kept.map((name) => [name, text(one, name), text(other, name)]), "config");
      made.querySelectorAll("tbody tr").forEach((line, i) => line.classList.toggle("differs", differ(kept[i])));
      const equal = names.length - names.filter(differ).length;
      return [made, h("p", { class: "note" }, `${counted(names.length - equal, "difference")}, ${equal} equal.`)];
    };
    const show = async () => {
      const made = await guarded(async () => {
        const [one, other] = await Promise.all([a, b].map((select) => pack(core.runs[select.value].pack)));
        return h("div", {}, compare("Settings", one.spec, other.spec), compare("Environment", one.environment, other.environment));
      });
      $("config-tables").replaceChildren(made);
    };
    for (const control of [a, b, $("config-all")]) control.addEventListener("change", show);
    return core.runs.length ? show() : null;
  }

  // --- pictures ---

  /** Plotly reads tags and entities in its texts: a name is neither. */
  const literal = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  async function draw(place, traces, x, y) {
    const library = await plotly();
    const style = getComputedStyle(document.documentElement);
    const [ink, rule] = ["--ink", "--rule"].map((name) => style.getPropertyValue(name).trim());
    const axis = ({ title, ...rest }) => ({ title: { text: literal(title) }, gridcolor: rule, zerolinecolor: rule, linecolor: rule, automargin: true, ...rest });
    await library.react($(place), traces, {
      xaxis: axis(x), yaxis: axis(y), font: { color: ink, family: style.fontFamily },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 60, r: 10, t: 34, b: 50 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: ink, activecolor: style.getPropertyValue("--link").trim() },
      hovermode: "closest", legend: { font: { size: 12 } },
    }, { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
  }

  const nothing = (place, text) => {
    if (window.Plotly) window.Plotly.purge($(place));
    $(place).replaceChildren(h("p", { class: "note" }, text));
  };

  /** How a row's line is drawn: in its method's colour (alone: in one of its own), in a style of its own. */
  function look(row, alone) {
    const [from, to] = blockOf(row).rows;
    const at = core.rows.slice(from, to).filter((other) => other.algo === row.algo).indexOf(row);
    return { tint: alone ? core.colours[at % core.colours.length] : colour(row.algo), dash: DASHES[at % DASHES.length] };
  }

  function curves() {
    const [block, place, metric, method] = ["block", "place", "metric", "method"].map((name) => $(`curves-${name}`));
    let found = [];
    const onBlock = async () => {
      found = await pack(core.blocks[block.value].curves);
      fill(method, [["", "all"], ...[...new Set(found.map((c) => core.rows[c.row].algo))].map((name) => [name, name])]);
      fill(place, [...new Set(found.map((c) => c.place))].map((name) => [name, name]));
      return onPlace();
    };
    const onPlace = () => {
      const names = [...new Set(found.filter((c) => c.place === place.value).map((c) => c.metric))];
      const titles = new Map(core.blocks[block.value].metrics.map((m) => [m.name, m.title]));
      fill(metric, names.map((name) => [name, place.value === "training" ? name : titles.get(name) ?? name]),
        names.includes(metric.value) ? metric.value : ["reward", "loss"].find((name) => names.includes(name)) ?? names[0]);
      return show();
    };
    const show = async () => {
      const shown = found.filter((c) => c.place === place.value && c.metric === metric.value &&
        (!method.value || core.rows[c.row].algo === method.value));
      if (!shown.length) return nothing("curves-plot", "No learning curves in these records.");
      const traces = shown.flatMap((curve) => {
        const row = core.rows[curve.row];
        const { tint, dash } = look(row, method.value);
        const by = place.value === "training" ? 1 : scaleOf(row, metric.value);
        const shared = { legendgroup: String(curve.row), type: "scatter", name: literal(row.label) };
        const banded = curve.step.map((_, i) => i).filter((i) => curve.low[i] != null);
        const around = [...banded, ...banded.toReversed()];
        const band = { ...shared, x: around.map((i) => curve.step[i]), mode: "lines", line: { width: 0 }, fill: "toself",
          y: around.map((i, k) => by * (k < banded.length ? curve.high[i] : curve.low[i])), fillcolor: `${tint}22`, hoverinfo: "skip", showlegend: false };
        const line = { ...shared, x: curve.step, y: curve.mean.map((v) => by * v), mode: "lines", line: { color: tint, dash, width: 2 } };
        return banded.length && shown.length <= KEPT_BANDS ? [band, line] : [line];
      });
      const type = $("curves-log").checked ? "log" : "linear";
      await draw("curves-plot", traces, { title: "updates" }, { title: metric.selectedOptions[0].textContent, type });
      const units = Math.max(...shown.map((c) => c.units));
      $("curves-note").textContent = (shown.length > KEPT_BANDS ? `No bands with more than ${KEPT_BANDS} lines: choose a method. ` : "") + (units > 1 ? `Means with 95% t intervals over ${place.value === "training" ? "runs" : "seeds or instances"} (up to ${units}). ` : "One run a line: no interval. ") +
        (place.value === "training" ? `As the trainer logged it, at most ${core.limits.points} updates of each run; losses of different methods are different quantities.` : "");
    };
    fill(block, core.blocks.map((b, i) => [i, b.title]));
    return wired("curves", [[block, onBlock], [place, onPlace], [metric, show], [method, show], [$("curves-log"), show]]);
  }

  function front() {
    const [block, place, x, y] = ["block", "place", "x", "y"].map((name) => $(`front-${name}`));
    let found = [];
    const has = (at, name) => found.some((row) => row[at]?.[name]?.mean != null);
    const onBlock = async () => {
      found = await pack(core.blocks[block.value].points);
      const { places } = core.blocks[block.value];
      const measured = places.map((_, i) => i).filter((i) => KL.some((name) => has(i, name)));
      const best = measured.find((i) => places[i][0] === "heldout") ?? measured[0] ?? 0;
      fill(place, places.map((p, i) => [i, p[2]]), best);
      return onPlace();
    };
    const onPlace = () => {
      const metrics = core.blocks[block.value].metrics.filter((m) => has(place.value, m.name));
      const names = metrics.map((m) => m.name);
      const headline = metrics.find((m) => m.headline) ?? metrics.find((m) => !KL.includes(m.name));
      const options = metrics.map((m) => [m.name, m.title]);
      fill(x, options, names.includes(x.value) && x.value ? x.value : [...KL, "length"].find((name) => names.includes(name)));
      fill(y, options, names.includes(y.value) && y.value ? y.value : headline?.name);
      return show();
    };
    const show = async () => {
      const from = core.blocks[block.value].rows[0];
      const isKl = KL.includes(x.value);
      const points = found.map((row, i) => ({ row: core.rows[from + i], x: row[place.value]?.[x.value], y: row[place.value]?.[y.value] }))
        .map((p) => (isKl && !p.row.algo && p.y ? { ...p, x: { mean: 0, low: null, high: null } } : p))
        .filter((p) => p.x?.mean != null && p.y?.mean != null);
      if (!points.some((p) => p.row.algo)) return nothing("front-plot", "No method was measured in both here.");
      const [byX, byY] = [x, y].map((select) => scaleOf(core.rows[from], select.value));
      const bars = (of, by) => ({ type: "data", symmetric: false, thickness: 1, array: of.map((e) => (e.high == null ? 0 : by * (e.high - e.mean))),
        arrayminus: of.map((e) => (e.low == null ? 0 : by * (e.mean - e.low))) });
      const traces = [...new Set(points.map((p) => p.row.algo))].map((algo) => {
        const own = points.filter((p) => p.row.algo === algo);
        const [tint, symbol] = [colour(algo), SYMBOLS[Math.max(0, algos.indexOf(algo)) % SYMBOLS.length]];
        const label = (p) => literal(p.row.label.slice(algo.length).trim());
        return { type: "scatter", mode: algo && own.length <= KEPT_LABELS ? "markers+text" : "markers", name: literal(algo || "reference"),
          x: own.map((p) => byX * p.x.mean), y: own.map((p) => byY * p.y.mean),
          error_x: bars(own.map((p) => p.x), byX), error_y: bars(own.map((p) => p.y), byY),
          text: own.map((p) => (algo ? label(p) : "")), textposition: "bottom right", textfont: { size: 10, color: tint },
          hovertext: own.map((p) => `${literal(p.row.label)}: ${literal(p.y.text)} at ${literal(p.x.text ?? 0)}`), hoverinfo: "text",
          marker: { color: tint, symbol: algo ? symbol : "star", size: algo ? 9 : 12 } };
      });
      // An interval may reach where no KL can be, or so far that the means are one point.
      const largest = Math.max(...points.map((p) => p.x.mean));
      const right = Math.min(1.5 * largest, Math.max(...points.map((p) => p.x.high ?? p.x.mean)));
      const range = isKl && right > 0 ? [-0.04 * right, 1.04 * right] : undefined;
      await draw("front-plot", traces, { title: x.selectedOptions[0].textContent, range }, { title: y.selectedOptions[0].textContent });
      $("front-note").textContent = "Bars: 95% intervals, as in the leaderboard. Star: the reference" + (isKl ? ", at KL 0 by definition." : ".") +
        (KL.some((name) => has(place.value, name)) ? "" : " No KL was measured here: it takes sampled evaluations (eval_samples above 0).");
    };
    fill(block, core.blocks.map((b, i) => [i, b.title]));
    return wired("front", [[block, onBlock], [place, onPlace], [x, show], [y, show]]);
  }

  /** Draw now, and again after each change and where the page turns dark or light. */
  function wired(name, controls) {
    const said = (build) => () => guarded(build).then((problem) => problem && nothing(`${name}-plot`, problem.textContent));
    for (const [control, build] of controls) control.addEventListener("change", said(build));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", said(controls.at(-1)[1]));
    return said(controls[0][1])();
  }

  // --- the page ---

  function begin() {
    const tasks = [...new Set(core.blocks.map((block) => block.task))];
    const runs = core.runs.filter((run) => run.status === "done").length;
    $("summary").textContent = `${counted(core.runs.length, "run")} (${runs} done) of ${counted(algos.length, "method")} on ` +
      `${tasks.join(", ")}; source ${core.sources.join(", ")}`;
    $("warnings").replaceChildren(...core.notes.map((text) => h("p", { class: "warning" }, text)));
    const places = [...new Set(core.blocks.flatMap((block) => block.places.map(([split, mode]) => `${split}, ${mode}`)))];
    fill($("filter-task"), [["", "all"], ...tasks.map((name) => [name, name])]);
    fill($("filter-method"), [["", "all"], ...["reference", ...algos].map((name) => [name, name])]);
    fill($("filter-place"), [["", "held-out where there is"], ...places.map((name) => [name, name])]);
    for (const control of $("filters").querySelectorAll("select, input")) control.addEventListener("input", drawBoard);
    for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
    drawBoard();
    $("notes-list").append(...core.blocks.map((block) => h("div", {}, h("h3", {}, block.title), h("ul", {}, block.captions.map((text) => h("li", {}, text))))));
    const parts = { curves, front, beside, configurations };
    const seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        seen.unobserve(target);
        Promise.resolve(parts[target.id]()).then(() => { target.dataset.ready = "1"; });
      }
    });
    for (const id of Object.keys(parts)) seen.observe($(id));
    performance.mark("ready");
    document.documentElement.dataset.ready = "1";
  }

  begin();
})();
