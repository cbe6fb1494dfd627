"use strict";
// The report's page: how it begins. What is out of sight is built when it is seen.

function begin() {
  const tasks = [...new Set(core.blocks.map((block) => block.task))];
  const runs = core.runs.filter((run) => run.status === "done").length;
  $("summary").textContent =
    `${counted(core.runs.length, "run")} (${runs} done) of ${counted(algos.length, "method")} on ` +
    `${tasks.join(", ")}; source ${core.sources.join(", ")}`;
  $("warnings").replaceChildren(...core.notes.map((text) => h("p", { class: "warning" }, text)));
  const places = [...new Set(core.blocks.flatMap((block) => block.places.map(([split, mode]) => `${split}, ${mode}`)))];
  fill($("filter-task"), [["", "all"], ...tasks.map((name) => [name, name])]);
  fill($("filter-method"), [["", "all"], ...["reference", ...algos].map((name) => [name, name])]);
  fill($("filter-place"), [["", "held-out where there is"], ...places.map((name) => [name, name])]);
  for (const control of $("filters").querySelectorAll("select, input"))
    control.addEventListener(control.tagName === "SELECT" ? "change" : "input", drawBoard);
  for (const form of document.querySelectorAll("form"))
    form.addEventListener("submit", (event) => event.preventDefault());
  drawBoard();
  $("notes-list").append(
    ...core.blocks.map((block) =>
      h(
        "div",
        {},
        h("h3", {}, block.title),
        h(
          "ul",
          {},
          block.captions.map((text) => h("li", {}, text)),
        ),
      ),
    ),
  );
  const parts = { curves, front, beside, configurations };
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      Promise.resolve(parts[target.id]()).then(() => {
        target.dataset.ready = "1";
      });
    }
  });
  for (const id of Object.keys(parts)) seen.observe($(id));
  performance.mark("ready");
  document.documentElement.dataset.ready = "1";
}

begin();
