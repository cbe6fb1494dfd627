"use strict";
// The report's page: completions side by side, configurations of two runs.

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
    fill(
      place,
      places.map((p, i) => [i, p[2]]),
      best < 0 ? places.length - 1 : best,
    );
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
    held = await Promise.all(
      sides.map((select) => (select.value ? pack(Number(select.value.split(":")[1])) : { found: [] })),
    );
    const names = [...new Set(held.flatMap((side) => side.found.map((f) => f.prompt)))];
    fill(
      prompt,
      names.map((name) => [name, name]),
      names.includes(prompt.value) ? prompt.value : names[0],
    );
    show();
  };
  const show = () => {
    const found = held.map((side) => side.found.find((f) => f.prompt === prompt.value)?.episodes ?? []);
    const question = questionOf(found.flat());
    $("beside-question").replaceChildren(...(question ? [question] : []));
    $("beside-answers").replaceChildren(
      ...found.map((episodes, i) =>
        h(
          "div",
          { class: "side" },
          h("h3", {}, sides[i].selectedOptions[0]?.textContent ?? "–"),
          episodes.length ? episodes.map(episode) : h("p", { class: "note" }, "No episode of this prompt in the page."),
        ),
      ),
    );
    $("beside-note").textContent = held.some((side) => side.left_out)
      ? leftOut(held.find((side) => side.left_out))
      : "";
  };
  const move = (by) => {
    const at = prompt.selectedIndex + by;
    if (at < 0 || at >= prompt.options.length) return;
    prompt.selectedIndex = at;
    show();
  };
  const said = (build) => () =>
    guarded(build).then((problem) => problem && $("beside-answers").replaceChildren(problem));
  fill(block, blockOptions);
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
    select.append(
      ...core.rows
        .filter((row) => row.runs.length)
        .map((row) =>
          h(
            "optgroup",
            { label: [...blockOptions[row.block].slice(1), row.label].join(": ") },
            row.runs.map((n) =>
              h("option", { value: n }, `${core.runs[n].id} (seed ${core.runs[n].seed}, ${core.runs[n].status})`),
            ),
          ),
        ),
    );
  const first = core.rows.find((row) => row.runs.length);
  const second = core.rows.find((row) => row !== first && row.runs.length);
  if (second) b.value = second.runs[0];
  const compare = (title, one, other) => {
    const names = [...new Set([...Object.keys(one), ...Object.keys(other)])];
    const text = (data, name) => (name in data ? (told(data[name]) ?? "–") : "(not set)");
    const differ = (name) => JSON.stringify(one[name]) !== JSON.stringify(other[name]);
    const kept = names.filter((name) => $("config-all").checked || differ(name));
    const made = table(
      [title, core.runs[a.value].id, core.runs[b.value].id],
      kept.map((name) => [name, text(one, name), text(other, name)]),
      "config",
    );
    made.querySelectorAll("tbody tr").forEach((line, i) => line.classList.toggle("differs", differ(kept[i])));
    const equal = names.length - names.filter(differ).length;
    return [made, h("p", { class: "note" }, `${counted(names.length - equal, "difference")}, ${equal} equal.`)];
  };
  const show = async () => {
    const made = await guarded(async () => {
      const [one, other] = await Promise.all([a, b].map((select) => pack(core.runs[select.value].pack)));
      return h(
        "div",
        {},
        compare("Settings", one.spec, other.spec),
        compare("Environment", one.environment, other.environment),
      );
    });
    $("config-tables").replaceChildren(made);
  };
  for (const control of [a, b, $("config-all")]) control.addEventListener("change", show);
  return core.runs.length ? show() : null;
}
