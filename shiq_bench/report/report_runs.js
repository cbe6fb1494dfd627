"use strict";
// The report's page: a row's runs, and their episodes.

function runsOf(row) {
  const panel = h("div", { class: "panel" });
  const below = h("div");
  let shown = null;
  const rows = row.behind.map((n) => {
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
      number(run.seed),
      h("span", { class: run.status === "done" ? "" : "bad" }, run.status),
      number(run.steps),
      number(run.seconds),
      number(run.deviations),
      (run.commit ?? "–").slice(0, 12),
      run.dirty == null ? "–" : run.dirty ? "yes" : "no",
      run.source || "–",
      run.error || "–",
    ];
  });
  const measured = "The runs that measured it; each number is of the first of them that did.";
  panel.append(
    h("p", { class: "note" }, row.algo ? row.settings : measured),
    table(
      ["Run", "Seed", "Status", "Updates", "Seconds", "Deviations", "Commit", "Uncommitted changes", "Source", "Error"],
      rows,
    ),
    below,
  );
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
  return h(
    "div",
    { class: "run" },
    h("h3", {}, run.id),
    about.error ? h("pre", { class: "bad" }, about.error) : null,
    about.deviations.length
      ? h(
          "ul",
          {},
          about.deviations.map((text) => h("li", {}, text)),
        )
      : null,
    folded("Evaluations", () =>
      h(
        "div",
        { class: "wide" },
        table(
          ["metric", ...heads],
          names.map((name) => [name, ...about.evaluations.map((e) => cell(e, name))]),
        ),
      ),
    ),
    about.evaluations.map((e, i) => (e.episodes ? folded(`Episodes: ${heads[i]}`, () => episodesOf(e)) : null)),
    folded("Settings", () =>
      table(
        ["", ""],
        Object.entries(about.spec).map(([name, value]) => [name, told(value)]),
      ),
    ),
    list("Timings (seconds)", about.timings),
    list("Consumed", {
      ...about.consumed,
      ...(about.peak_memory_mb == null ? {} : { "peak memory (MB)": about.peak_memory_mb }),
    }),
    list("Data", about.data),
    list("Gap of sampler to scorer (nats a token)", about.gaps),
    list("Environment", about.environment),
  );
}

function leftOut(held) {
  return held.left_out
    ? `${counted(held.left_out, "episode")} of ${number(held.episodes)} left out of this page: it keeps the first ` +
        `${counted(core.limits.prompts, "prompt")} of each split and mode, ` +
        `${counted(core.limits.samples, "episode")} each.`
    : "";
}

async function episodesOf(evaluation) {
  const held = await pack(evaluation.pack);
  return h(
    "div",
    {},
    h("p", { class: "note" }, leftOut(held)),
    held.found.map((found) =>
      folded(found.prompt, () => h("div", {}, questionOf(found.episodes), found.episodes.map(episode))),
    ),
  );
}

// --- episodes; details have the shape that tasks give them: texts of turns and steps, or one answer ---

const KNOWN = ["question", "questions", "answer", "texts", "results", "turns", "turn_errors", "entry_error"];
const verdict = (passed, why) =>
  h(
    "span",
    { class: passed == null ? "verdict" : passed ? "verdict good" : "verdict bad" },
    passed == null ? "not judged" : passed ? "✓ passed" : `✗ failed${why ? `: ${why}` : ""}`,
  );

function questionOf(episodes) {
  const found = episodes.find((e) => typeof e.details.question === "string");
  return found ? h("blockquote", {}, found.details.question) : null;
}

function numbersOf(numbers) {
  return Object.entries(numbers)
    .filter(([name]) => !name.endsWith("/n"))
    .map(([name, value]) => {
      const trials = numbers[`${name}/n`];
      return h(
        "span",
        { class: "measured" },
        `${name.replaceAll("_", " ")} `,
        h("b", {}, number(value)),
        trials == null ? "" : ` of ${number(trials)}`,
      );
    });
}

function turnOf(details, i) {
  const [texts, results] = [details.texts?.[i] ?? [], details.results?.[i] ?? []];
  const judged = Array.isArray(details.turns) ? verdict(details.turns[i], details.turn_errors?.[i]) : null;
  return h(
    "section",
    { class: "turn" },
    h("h4", {}, `Turn ${i + 1} `, judged),
    details.questions?.[i] ? h("blockquote", {}, told(details.questions[i])) : null,
    texts.length ? null : h("p", { class: "note" }, "No answer."),
    texts.map((text, step) => [
      h("pre", { class: "said" }, text === "" ? h("i", {}, "(nothing)") : told(text)),
      (results[step] ?? []).length ? h("pre", { class: "result" }, [results[step]].flat().map(told).join("\n")) : null,
    ]),
  );
}

function episode({ numbers, details }) {
  const turns = Math.max(details.texts?.length ?? 0, details.turns?.length ?? 0);
  const rest = Object.entries(details).filter(([name]) => !KNOWN.includes(name));
  return h(
    "article",
    { class: "episode" },
    typeof details.entry_error === "string"
      ? h("p", {}, verdict(details.entry_error === "", details.entry_error))
      : null,
    typeof details.answer === "string"
      ? h("pre", { class: "said" }, details.answer === "" ? h("i", {}, "(nothing)") : details.answer)
      : null,
    Array.from({ length: turns }, (_, i) => turnOf(details, i)),
    h("p", { class: "numbers" }, numbersOf(numbers)),
    rest.length
      ? h(
          "p",
          { class: "numbers" },
          rest.map(([name, value]) =>
            h("span", { class: "measured" }, `${name.replaceAll("_", " ")} `, h("b", {}, number(value))),
          ),
        )
      : null,
  );
}
