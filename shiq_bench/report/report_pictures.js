"use strict";
// The report's page: learning curves, and reward against KL.

/** Plotly reads tags and entities in its texts: a name is neither. */
const literal = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

async function draw(place, traces, x, y) {
  if (!window.Plotly) nothing(place, "Unpacking the drawing library …");
  const library = await plotly();
  $(place).querySelector(":scope > .note")?.remove();
  const style = getComputedStyle(document.documentElement);
  const [ink, rule] = ["--ink", "--rule"].map((name) => style.getPropertyValue(name).trim());
  const axis = ({ title, ...rest }) => ({
    title: { text: literal(title) },
    gridcolor: rule,
    zerolinecolor: rule,
    linecolor: rule,
    automargin: true,
    ...rest,
  });
  await library.react(
    $(place),
    traces,
    {
      xaxis: axis(x),
      yaxis: axis(y),
      font: { color: ink, family: style.fontFamily },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 60, r: 10, t: 34, b: 50 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: ink, activecolor: style.getPropertyValue("--link").trim() },
      hovermode: "closest",
      legend: { font: { size: 12 } },
    },
    { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] },
  );
}

const nothing = (place, text) => {
  if (window.Plotly) window.Plotly.purge($(place));
  $(place).replaceChildren(h("p", { class: "note" }, text));
};

/** How a row's line is drawn: in its method's colour (alone: in one of its own), in a style of its own. */
function look(row, alone) {
  const [from, to] = blockOf(row).rows;
  const at = core.rows
    .slice(from, to)
    .filter((other) => other.algo === row.algo)
    .indexOf(row);
  return { tint: alone ? core.colours[at % core.colours.length] : colour(row.algo), dash: DASHES[at % DASHES.length] };
}

/** What the rows of a picture leave out: a mean is over finished runs. */
function notShown(block, algo) {
  const rows = core.rows.slice(...core.blocks[block].rows).filter((row) => !algo || row.algo === algo);
  const ended = [
    ["failed", "failed"],
    ["diverged", "diverged"],
    ["started", "unfinished"],
  ]
    .map(([status, word]) => [rows.reduce((sum, row) => sum + row.counts[status], 0), word])
    .filter(([count]) => count);
  const all = ended.reduce((sum, [count]) => sum + count, 0);
  const told = ended.map(([count, word]) => `${number(count)} ${word}`).join(", ");
  return all ? `${counted(all, "run")} not shown (${told}).` : "";
}

function curves() {
  const [block, place, metric, method] = ["block", "place", "metric", "method"].map((name) => $(`curves-${name}`));
  let found = [];
  const onBlock = async () => {
    found = await pack(core.blocks[block.value].curves);
    fill(method, [["", "all"], ...[...new Set(found.map((c) => core.rows[c.row].algo))].map((name) => [name, name])]);
    fill(
      place,
      [...new Set(found.map((c) => c.place))].map((name) => [name, name]),
    );
    return onPlace();
  };
  const onPlace = () => {
    const names = [...new Set(found.filter((c) => c.place === place.value).map((c) => c.metric))];
    const titles = new Map(core.blocks[block.value].metrics.map((m) => [m.name, m.title]));
    fill(
      metric,
      names.map((name) => [name, place.value === "training" ? name : (titles.get(name) ?? name)]),
      names.includes(metric.value)
        ? metric.value
        : (["reward", "loss"].find((name) => names.includes(name)) ?? names[0]),
    );
    return show();
  };
  const show = async () => {
    const shown = found.filter(
      (c) =>
        c.place === place.value &&
        c.metric === metric.value &&
        (!method.value || core.rows[c.row].algo === method.value),
    );
    if (!shown.length) {
      $("curves-note").textContent = notShown(block.value, method.value);
      return nothing("curves-plot", "No learning curves in these records.");
    }
    const traces = shown.flatMap((curve) => {
      const row = core.rows[curve.row];
      const { tint, dash } = look(row, method.value);
      const by = place.value === "training" ? 1 : scaleOf(row, metric.value);
      const shared = { legendgroup: String(curve.row), type: "scatter", name: literal(row.label) };
      const banded = curve.step.map((_, i) => i).filter((i) => curve.low[i] != null);
      const around = [...banded, ...banded.toReversed()];
      const band = {
        ...shared,
        x: around.map((i) => curve.step[i]),
        mode: "lines",
        line: { width: 0 },
        fill: "toself",
        y: around.map((i, k) => by * (k < banded.length ? curve.high[i] : curve.low[i])),
        fillcolor: `${tint}22`,
        hoverinfo: "skip",
        showlegend: false,
      };
      const line = {
        ...shared,
        x: curve.step,
        y: curve.mean.map((v) => by * v),
        mode: "lines",
        line: { color: tint, dash, width: 2 },
      };
      return banded.length && shown.length <= KEPT_BANDS ? [band, line] : [line];
    });
    const type = $("curves-log").checked ? "log" : "linear";
    await draw("curves-plot", traces, { title: "updates" }, { title: metric.selectedOptions[0].textContent, type });
    const units = Math.max(...shown.map((c) => c.units));
    const logged = place.value === "training";
    const fewer = shown.filter((c) => logged && c.fewest < core.rows[c.row].seeds);
    const least = (c) => `${core.rows[c.row].label} ${number(c.fewest)} of ${number(core.rows[c.row].seeds)}`;
    const notes = [
      shown.length > KEPT_BANDS && `No bands with more than ${KEPT_BANDS} lines: choose a method.`,
      units > 1
        ? `Means with 95% t intervals over ${logged ? "runs" : "seeds or instances"} (up to ${units}).`
        : "One run a line: no interval.",
      logged && `As the trainer logged it, at most ${core.limits.points} updates of each run.`,
      logged && "Losses of different methods are different quantities.",
      fewer.length &&
        `At some updates a mean is over fewer runs, since the rest logged none: ${fewer.map(least).join(", ")}.`,
      notShown(block.value, method.value),
    ];
    $("curves-note").textContent = notes.filter(Boolean).join(" ");
  };
  fill(block, blockOptions);
  return wired("curves", [
    [block, onBlock],
    [place, onPlace],
    [metric, show],
    [method, show],
    [$("curves-log"), show],
  ]);
}

function front() {
  const [block, place, x, y] = ["block", "place", "x", "y"].map((name) => $(`front-${name}`));
  let found = [];
  const has = (at, name) => found.some((row) => row[at]?.[name]?.mean != null);
  const onBlock = async () => {
    found = await pack(core.blocks[block.value].points);
    for (const select of [x, y]) select.replaceChildren(); // each task has its own idea of what stands against what
    const { places } = core.blocks[block.value];
    const measured = places.map((_, i) => i).filter((i) => KL.some((name) => has(i, name)));
    const best = measured.find((i) => places[i][0] === "heldout") ?? measured[0] ?? 0;
    fill(
      place,
      places.map((p, i) => [i, p[2]]),
      best,
    );
    return onPlace();
  };
  const onPlace = () => {
    const metrics = core.blocks[block.value].metrics.filter((m) => has(place.value, m.name));
    const names = metrics.map((m) => m.name);
    const headline = metrics.find((m) => m.headline) ?? metrics.find((m) => !KL.includes(m.name));
    const options = metrics.map((m) => [m.name, m.title]);
    fill(
      x,
      options,
      names.includes(x.value) && x.value ? x.value : [...KL, "length"].find((name) => names.includes(name)),
    );
    fill(y, options, names.includes(y.value) && y.value ? y.value : headline?.name);
    return show();
  };
  const show = async () => {
    const from = core.blocks[block.value].rows[0];
    const isKl = KL.includes(x.value);
    const points = found
      .map((row, i) => ({ row: core.rows[from + i], x: row[place.value]?.[x.value], y: row[place.value]?.[y.value] }))
      .map((p) => (isKl && !p.row.algo && p.y ? { ...p, x: { mean: 0, low: null, high: null } } : p))
      .filter((p) => p.x?.mean != null && p.y?.mean != null);
    if (!points.some((p) => p.row.algo)) {
      $("front-note").textContent = notShown(block.value);
      return nothing("front-plot", "No method was measured in both here.");
    }
    const [byX, byY] = [x, y].map((select) => scaleOf(core.rows[from], select.value));
    const bars = (of, by) => ({
      type: "data",
      symmetric: false,
      thickness: 1,
      array: of.map((e) => (e.high == null ? 0 : by * (e.high - e.mean))),
      arrayminus: of.map((e) => (e.low == null ? 0 : by * (e.mean - e.low))),
    });
    const traces = [...new Set(points.map((p) => p.row.algo))].map((algo) => {
      const own = points.filter((p) => p.row.algo === algo);
      const [tint, symbol] = [colour(algo), SYMBOLS[Math.max(0, algos.indexOf(algo)) % SYMBOLS.length]];
      const label = (p) => literal(p.row.label.slice(algo.length).trim());
      return {
        type: "scatter",
        mode: algo && own.length <= KEPT_LABELS ? "markers+text" : "markers",
        name: literal(algo || "reference"),
        x: own.map((p) => byX * p.x.mean),
        y: own.map((p) => byY * p.y.mean),
        error_x: bars(
          own.map((p) => p.x),
          byX,
        ),
        error_y: bars(
          own.map((p) => p.y),
          byY,
        ),
        text: own.map((p) => (algo ? label(p) : "")),
        textposition: "bottom right",
        textfont: { size: 10, color: tint },
        hovertext: own.map((p) => `${literal(p.row.label)}: ${literal(p.y.text)} at ${literal(p.x.text ?? 0)}`),
        hoverinfo: "text",
        marker: { color: tint, symbol: algo ? symbol : "star", size: algo ? 9 : 12 },
      };
    });
    // An interval may reach where no KL can be, or so far that the means are one point.
    const largest = Math.max(...points.map((p) => p.x.mean));
    const right = Math.min(1.5 * largest, Math.max(...points.map((p) => p.x.high ?? p.x.mean)));
    const range = isKl && right > 0 ? [-0.04 * right, 1.04 * right] : undefined;
    await draw(
      "front-plot",
      traces,
      { title: x.selectedOptions[0].textContent, range },
      { title: y.selectedOptions[0].textContent },
    );
    const measured = KL.some((name) => has(place.value, name));
    const notes = [
      `Bars: 95% intervals, as in the leaderboard. Star: the reference${isKl ? ", at KL 0 by definition" : ""}.`,
      !measured && "No KL was measured here: it takes sampled evaluations (eval_samples above 0).",
      notShown(block.value),
    ];
    $("front-note").textContent = notes.filter(Boolean).join(" ");
  };
  fill(block, blockOptions);
  return wired("front", [
    [block, onBlock],
    [place, onPlace],
    [x, show],
    [y, show],
  ]);
}

/** Draw now, and again after each change and where the page turns dark or light. */
function wired(name, controls) {
  const said = (build) => () =>
    guarded(build).then((problem) => problem && nothing(`${name}-plot`, problem.textContent));
  for (const [control, build] of controls) control.addEventListener("change", said(build));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", said(controls.at(-1)[1]));
  return said(controls[0][1])();
}
