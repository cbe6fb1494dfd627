"""The report: what it holds against the records, and what a reader sees of it in a real browser."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.cli.app import main
from shiq_bench.records import run_store
from shiq_bench.records.errors import UserError
from shiq_bench.records.record import RunRecord
from shiq_bench.report import tables
from shiq_bench.report.comparison import compare
from shiq_bench.report.page import SCRIPTS, Limits, Payload, embedded, evenly, pack, page, payload
from shiq_bench.stats.intervals import mean_ci_t
from tests import needs
from tests.report.synthetic import METRICS, record

ROOT = Path(__file__).parents[2]
SMALL = {"rl": 3, "heldout": 5}

#: Text of a model that wants to be more than text.
HOSTILE = (
    '</script><img src=x onerror="window.hacked=1"><script>window.hacked=2</script>\u2028\u2029<!-- '
    "<svg/onload=window.hacked=3> {{ 7*7 }} &lt;b&gt; ]]> \ud800 javascript:window.hacked=4"
)


def unpack(text: str) -> Any:
    """The JSON value in a pack."""
    return json.loads(gzip.decompress(base64.b64decode(text)))


def told(
    made: RunRecord, say: Callable[[str, int], Mapping[str, Any]], training: Sequence[Mapping[str, float]] = ()
) -> RunRecord:
    """The record with details of its episodes, by policy and number, and a history."""
    evaluations = tuple(
        replace(e, examples=[{**x, "details": say(e.policy, i)} for i, x in enumerate(e.examples)])
        for e in made.evaluations
    )
    return replace(made, evaluations=evaluations, training=tuple(training))


def dialogue(policy: str, i: int) -> dict[str, Any]:
    return {
        "texts": [[f"[ls(a='{policy} {i}')]", ""], ["[cd(folder='x')]"]],
        "results": [[["notes.txt"], []], [["no such folder"]]],
        "turns": [True, False],
        "turn_errors": ["", "multi_turn:instance_state_mismatch"],
        "entry_error": "multi_turn:instance_state_mismatch",
    }


def history(seed: int, steps: int = 200) -> list[dict[str, float]]:
    return [{"step": s, "epoch": s / 100, "loss": 1 / s + seed} for s in range(1, steps + 1)]


def some() -> list[RunRecord]:
    """Two methods, three seeds and one that failed."""
    return [
        *(
            told(record(algo, seed, skill=skill, prompts=SMALL), dialogue, history(seed))
            for algo, skill in (("dpo", 0.3), ("shiq", 0.9))
            for seed in range(3)
        ),
        record("shiq", 3, prompts=SMALL, status="failed", error="out of memory\nsecond line"),
    ]


def row_of(made: Payload, label: str) -> dict[str, Any]:
    (found,) = [r for r in made.core["rows"] if r["label"] == label]
    return dict(found)


# --- the payload against the records ---


def test_the_leaderboard_is_the_table() -> None:
    records = some()
    made, (block,) = payload(records, METRICS), compare(records, METRICS).blocks
    assert [r["label"] for r in made.core["rows"]] == [c.label for c in block.columns]
    texts = tables.texts(block)
    for column in block.columns:
        row = row_of(made, column.label)
        for at, place in enumerate(block.places):
            for metric in (m for m in block.metrics if m.headline):
                cell, shown = block.cells[(*place, column.label, metric.name)], row["cells"][at][metric.name]
                assert shown["mean"] == pytest.approx(cell.estimate.mean)
                assert shown["low"] == pytest.approx(cell.estimate.low)
                assert (shown["n"], shown["over"]) == (list(cell.n), cell.over)
                assert shown["text"] == texts[(*place, column.label, metric.name)]
                if column.runs:
                    difference = block.differences[(*place, column.label, metric.name)].estimate
                    assert row["differences"][at][metric.name]["mean"] == pytest.approx(difference.mean)
    shiq = row_of(made, "shiq")
    assert (shiq["seeds"], shiq["counts"]["failed"], shiq["state"]) == (3, 1, "3 seeds, 1 failed")
    sampled = next(i for i, p in enumerate(block.places) if p == ("heldout", "sampled"))
    assert shiq["cells"][sampled]["kl"]["mean"] > 0
    assert not made.core["notes"]


def test_consumed_is_the_mean_of_finished_runs() -> None:
    records = [replace(r, consumed={"updates": 10.0 * (r.spec.seed + 1)}) for r in some()]
    assert row_of(payload(records, METRICS), "shiq")["consumed"] == {"updates": 20.0}


def test_a_row_leads_to_its_runs_and_they_to_their_episodes() -> None:
    records = some()
    made = payload(records, METRICS)
    row = row_of(made, "shiq")
    found = [made.core["runs"][n] for n in row["runs"]]
    assert [(r["seed"], r["status"]) for r in found] == [(0, "done"), (1, "done"), (2, "done"), (3, "failed")]
    assert found[3]["error"] == "out of memory"
    about = unpack(made.packs[found[0]["pack"]])
    (real,) = [r for r in records if r.run_id == found[0]["id"]]
    assert about["spec"]["algo_options.beta"] == 0.1 and about["spec"]["seed"] == 0
    assert about["environment"]["packages.torch"] == "2.13.0"
    assert about["environment"]["source_hash"] == real.source_hash
    assert [e["metrics"] for e in about["evaluations"]] == [e.metrics for e in real.evaluations]
    for at, (split, mode, _) in enumerate(made.core["blocks"][0]["places"]):
        held = unpack(made.packs[row["episodes"][0][at]])
        (trained,) = [e for e in real.evaluations if (e.policy, e.split, e.mode) == ("trained", split, mode)]
        assert held["episodes"] == len(trained.examples) and not held["left_out"]
        first = held["found"][0]
        assert first["prompt"] == trained.examples[0]["prompt_id"]
        assert first["episodes"][0]["details"] == trained.examples[0]["details"]
        assert first["episodes"][0]["numbers"]["reward"] == trained.examples[0]["reward"]
    assert row["episodes"][3] == [None] * 4  # it failed before its policy was evaluated


def test_the_reference_is_kept_once() -> None:
    made = payload(some(), METRICS)
    (episodes,) = row_of(made, "reference")["episodes"]
    for run in (r for r in made.core["runs"] if r["status"] == "done"):
        own = [e for e in unpack(made.packs[run["pack"]])["evaluations"] if e["policy"] == "reference"]
        assert {e["pack"] for e in own} == set(episodes)


def test_what_is_too_much_is_left_out_and_counted() -> None:
    long = told(record(prompts={"rl": 30}, eval_samples=6), lambda policy, i: {"answer": "x" * 50, "list": [0] * 9})
    made = payload([long], METRICS, limits=Limits(prompts=4, samples=2, characters=10, items=3))
    (episodes,) = row_of(made, "shiq")["episodes"]
    greedy, sampled = (unpack(made.packs[n]) for n in episodes)
    assert (greedy["prompts"], greedy["episodes"], greedy["left_out"]) == (30, 30, 26)
    assert (sampled["prompts"], sampled["episodes"], sampled["left_out"]) == (30, 180, 172)
    assert [f["prompt"] for f in sampled["found"]] == [f"rl_{i:03d}" for i in range(4)]
    assert {len(f["episodes"]) for f in sampled["found"]} == {2}
    details = sampled["found"][0]["episodes"][0]["details"]
    assert details == {"answer": "x" * 10 + " … [40 more characters]", "list": [0, 0, 0, "… [6 more]"]}


def test_learning_curves_are_means_over_seeds() -> None:
    records = some()
    made = payload(records, METRICS, limits=Limits(points=5))
    curves = unpack(made.packs[made.core["blocks"][0]["curves"]])
    row = made.core["rows"].index(row_of(made, "dpo"))
    (loss,) = [c for c in curves if (c["row"], c["metric"]) == (row, "loss")]
    assert loss["step"] == [1, 51, 101, 150, 200]
    expected = [mean_ci_t(1 / s + seed for seed in range(3)) for s in loss["step"]]
    assert loss["mean"] == pytest.approx([e.mean for e in expected])
    assert loss["low"] == pytest.approx([e.low for e in expected])
    assert loss["high"] == pytest.approx([e.high for e in expected])
    assert (loss["units"], loss["fewest"]) == (3, 3)


def test_a_curve_tells_the_fewest_runs_behind_a_mean() -> None:
    records = some()
    for i, since in enumerate((0, 100)):
        lines = [{**line, **({"kl": 0.5} if line["step"] > since else {})} for line in history(0)]
        records[i] = replace(records[i], training=lines)
    made = payload(records, METRICS)
    (kl,) = [c for c in unpack(made.packs[made.core["blocks"][0]["curves"]]) if c["metric"] == "kl"]
    assert (kl["units"], kl["fewest"]) == (2, 1)


def test_the_reference_has_the_runs_that_measured_it() -> None:
    made = payload(some()[::-1], METRICS)
    reference = row_of(made, "reference")
    behind = [made.core["runs"][n] for n in reference["behind"]]
    assert reference["runs"] == [] and [r["status"] for r in behind] == ["done"] * 6 + ["failed"]
    done = [r["id"] for r in behind[:-1]]
    assert done == sorted(done)
    assert all(row["behind"] == row["runs"] for row in made.core["rows"] if row["algo"])


def test_curves_of_tables_are_those_of_their_evaluations() -> None:
    made = record(prompts={"rl": 6}, steps=20)
    reference, trained = (e for e in made.evaluations if e.mode == "greedy")
    points = (replace(reference, policy="trained"), trained)
    found = payload([replace(made, curve=points)], METRICS)
    (curve,) = [c for c in unpack(found.packs[found.core["blocks"][0]["curves"]]) if c["metric"] == "reward"]
    assert (curve["place"], curve["step"], curve["units"]) == ("rl, greedy", [0, 20], 6)
    assert curve["mean"] == pytest.approx([e.metrics["reward"]["mean"] for e in points])
    assert all(low < mean < high for low, mean, high in zip(curve["low"], curve["mean"], curve["high"], strict=True))


def test_rows_of_different_conditions_say_which(tmp_path: Path) -> None:
    records = [record(prompts=SMALL, seed=0), record(prompts=SMALL, task_options={"reward": "final"})]
    two = payload(records, METRICS).core["blocks"]
    assert sorted(b["conditions"] for b in two) == ["category=multi_turn_base", "reward=final"]
    judged = [replace(record(prompts=SMALL, seed=n), judges_hash=str(n)) for n in range(2)]
    assert [b["conditions"] for b in payload(judged, METRICS).core["blocks"]] == ["judges=0", "judges=1"]
    assert [b["conditions"] for b in payload(some(), METRICS).core["blocks"]] == [""]


def test_evenly_keeps_both_ends() -> None:
    assert evenly([1, 2, 3], 5) == [1, 2, 3]
    assert evenly(range(1, 1001), 3) == [1, 501, 1000]


def test_no_number_that_json_cannot_carry() -> None:
    made = replace(record(prompts={"rl": 3}), gaps={"a": float("inf")}, timings={"b": float("nan")})
    content = payload([made], METRICS)
    about = unpack(content.packs[content.core["runs"][0]["pack"]])
    assert about["gaps"] == {"a": None} and about["timings"] == {"b": None}


def test_mixed_sources_are_refused_or_said() -> None:
    records = [record(seed=0, prompts=SMALL), record(seed=1, prompts=SMALL, source_hash="another")]
    with pytest.raises(UserError, match="different versions"):
        payload(records, METRICS)
    assert "MIXED SOURCES" in payload(records, METRICS, allow_mixed=True).core["notes"][0]


# --- the page ---


def hostile() -> RunRecord:
    say = {"question": HOSTILE, "answer": HOSTILE, "texts": [[HOSTILE]], "turns": [None], HOSTILE: HOSTILE}
    made = told(record("dpo", prompts=SMALL, algo_options={"note": HOSTILE}), lambda policy, i: say)
    return replace(made, error=HOSTILE, deviations=(HOSTILE,), packages={HOSTILE: HOSTILE})


def test_the_same_records_give_the_same_bytes() -> None:
    records = some()
    assert page(payload(records, METRICS)) == page(payload(records[::-1], METRICS))


def test_the_same_value_is_the_same_pack_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pack(b"{}")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert pack(b"{}") == before and unpack(before) == {}


def test_nothing_in_the_data_is_html() -> None:
    text = embedded({"a": HOSTILE})
    assert not set("<>&\u2028\u2029") & set(text) and text.isascii()
    assert json.loads(text) == {"a": HOSTILE}
    html = page(payload([hostile(), *some()], METRICS)).decode()
    assert "<img" not in html and "\u2028" not in html
    kinds = re.findall(r"<script([^>]*)>", html)
    assert [k for k in kinds if "type=" not in k] == [""] * len(SCRIPTS)
    assert html.count("</script") == len(kinds)


def test_only_its_own_scripts_may_run() -> None:
    html = page(payload(some(), METRICS)).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
    assert "unsafe-eval" not in policy and "unsafe-inline" not in policy.partition("style-src")[0]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert len(scripts) == len(SCRIPTS)
    assert all(base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() in policy for s in scripts)
    assert not re.findall(r"""(?:src|href)=(?!["']?#)""", html.partition('id="core"')[0])


def test_the_script_builds_no_html() -> None:
    script = "".join((ROOT / "shiq_bench/report" / name).read_text() for name in SCRIPTS)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert word not in script


# --- the command ---


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """The command, as typed: its exit code and the lines on stderr."""

    def run(folder: Path, *options: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["shiq-bench", "report", "--results", str(folder), *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err.splitlines()

    return run


def test_the_command_writes_the_page_and_names_what_it_skips(tmp_path: Path, report: Any) -> None:
    for made in some():
        run_store.save(made, tmp_path)
    assert report(tmp_path) == (0, [])
    first = (tmp_path / "report.html").read_bytes()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "record.json").write_text('{"schema')
    code, (line,) = report(tmp_path, "--out", str(tmp_path / "out" / "page.html"))
    assert code == 1 and line.startswith("skipped:") and "broken" in line
    assert (tmp_path / "out" / "page.html").read_bytes() == first


def test_the_command_takes_several_folders(tmp_path: Path, report: Any) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for i, made in enumerate(some()):
        run_store.save(made, other if i % 2 else one)
    assert report(one, "--results", str(other)) == (0, [])
    html = (one / "report.html").read_text(encoding="utf-8")
    assert all(made.run_id in html for made in some()) and not (other / "report.html").exists()


def test_the_command_refuses_mixed_sources(tmp_path: Path, report: Any) -> None:
    run_store.save(record(seed=0, prompts=SMALL), tmp_path)
    run_store.save(record(seed=1, prompts=SMALL, source_hash="another"), tmp_path)
    code, (line,) = report(tmp_path)
    assert code == 2 and "--allow-mixed" in line and not (tmp_path / "report.html").exists()
    assert report(tmp_path, "--allow-mixed") == (0, [])
    code, lines = report(tmp_path / "nowhere")
    assert code == 2 and len(lines) == 1


# --- in a browser ---


class Page:
    """A page in headless Chromium."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, folder: Path, content: Payload) -> None:
        (folder / "report.html").write_bytes(page(content))
        self.logs()
        self.driver.get((folder / "report.html").as_uri())
        self.until("document.documentElement.dataset.ready")

    def __call__(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: str) -> None:
        end = time.monotonic() + 20
        while not self(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"never: {condition}"
            time.sleep(0.02)

    def section(self, name: str) -> None:
        """Scroll there, and wait until it is built."""
        self(f"document.getElementById('{name}').scrollIntoView({{behavior: 'instant'}})")
        self.until(f"document.getElementById('{name}').dataset.ready")

    def click(self, selector: str, n: int = 0) -> None:
        self(f"document.querySelectorAll({selector!r})[{n}].click()")

    def choose(self, name: str, text: str) -> None:
        """The option of a select whose text contains ``text``."""
        script = """
            const select = document.getElementById(arguments[0]);
            const option = [...select.options].find((o) => o.textContent.includes(arguments[1]));
            select.value = option.value;
            for (const kind of ["input", "change"]) select.dispatchEvent(new Event(kind, { bubbles: true }));
        """
        self(script, name, text)

    def column(self, title: str) -> list[str]:
        """What stands in a column of the leaderboard, from top to bottom."""
        script = """
            const at = [...document.querySelectorAll("#board thead th")]
              .findIndex((th) => th.textContent.startsWith(arguments[0]));
            return [...document.querySelectorAll("#board tbody tr[data-row]")].map((tr) => tr.children[at].textContent);
        """
        return [str(text) for text in self(script, title)]

    def sort(self, title: str) -> None:
        script = "[...document.querySelectorAll('#board thead button')]"
        self(f"{script}.find((b) => b.textContent.startsWith(arguments[0])).click()", title)

    def logs(self) -> tuple[list[str], list[str]]:
        """What the console said, and what was asked of the network, since the last time."""
        said = [str(e["message"]) for e in self.driver.get_log("browser")]
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return said, [url for url in asked if not url.startswith(("data:", "blob:"))]


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    chromium = needs.program("chromium", "chromium-browser", "google-chrome")
    driver_path = needs.program("chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    try:
        yield Page(driver)
    finally:
        driver.quit()


def numeric(texts: Sequence[str]) -> list[float | None]:
    return [None if t == "–" else float(t.split(" ")[0].replace(",", "")) for t in texts]


def test_the_leaderboard_sorts_and_filters(browser: Page, tmp_path: Path) -> None:
    skills = {2.0: 0.3, 9.0: 0.6, 10.0: 0.9}  # as text, 10 would stand before 2 and 9
    records = [
        replace(record("shiq", prompts=SMALL, skill=s, algo_options={"beta": b}), consumed={"updates": b})
        for b, s in skills.items()
    ]
    records += [record("dpo", prompts=SMALL, status="diverged", error="loss is infinite")]
    browser.open(tmp_path, payload(records, METRICS))
    browser.sort("Updates")
    assert browser.column("Updates") == ["2", "9", "10", "–", "–"]
    browser.sort("Updates")
    assert browser.column("Updates") == ["10", "9", "2", "–", "–"]
    assert browser("return document.querySelector('#board th[aria-sort]').getAttribute('aria-sort')") == "descending"
    browser.sort("mean reward")
    found = numeric(browser.column("mean reward"))
    present = [x for x in found if x is not None]
    assert present == sorted(present, reverse=True) and found[-1] is None and len(present) == 4

    browser.choose("filter-method", "shiq")
    assert sorted(browser.column("Method")) == ["▸ shiq beta=10.0", "▸ shiq beta=2.0", "▸ shiq beta=9.0"]
    browser.choose("filter-method", "all")
    search = "const e = document.getElementById('filter-text'); e.value = arguments[0];"
    browser(search + "e.dispatchEvent(new Event('input', { bubbles: true }))", "Diverged infinite")
    assert browser.column("Method") == ["▸ dpo"]
    assert browser("return document.getElementById('shown').textContent") == "1 of 5 rows"
    browser(search + "e.dispatchEvent(new Event('input', { bubbles: true }))", "")
    browser.choose("filter-place", "rl, sampled")
    assert set(browser.column("On")) == {"rl, sampled"}
    assert browser.logs()[0] == []


def test_a_row_opens_its_runs_and_a_run_its_episodes(browser: Page, tmp_path: Path) -> None:
    records = some()
    browser.open(tmp_path, payload(records, METRICS))
    browser.click("#board tbody tr[data-row] th button", 2)
    listed = browser("return [...document.querySelectorAll('[data-run]')].map((b) => b.dataset.run)")
    assert listed == [r.run_id for r in records if r.spec.algo == "shiq"]
    assert "out of memory" in browser("return document.querySelector('.panel table').textContent")
    browser.click("[data-run]")
    browser.until("document.querySelector('.run')")
    browser("for (const d of document.querySelectorAll('.run > details')) d.open = true")
    browser.until("document.querySelector('.run > details details')")
    browser("for (const d of document.querySelectorAll('.run > details details')) d.open = true")
    browser.until("document.querySelector('.run .verdict')")
    text = browser("return document.querySelector('.run').textContent")
    assert "packages.torch" in text and "algo_options.beta" in text and "[ls(a='trained 0')]" in text


def test_every_number_opens_the_runs_behind_it(browser: Page, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    records = some()
    browser.open(tmp_path, payload(records, METRICS))
    bare = """
        return [...document.querySelectorAll('#board tbody tr[data-row] td')]
          .filter((td) => /^[-+]?[0-9]/.test(td.textContent) && !td.querySelector(':scope > button')).length;
    """
    assert browser(bare) == 0 and browser("return document.querySelectorAll('#board td button').length") > 20
    cell = "document.querySelectorAll('#board tr[data-row] td button[data-column^=\"metric reward\"]')"
    label = browser(f"return {cell}[2].getAttribute('aria-label')")
    assert label.endswith(" of shiq: its runs") and browser(f"return {cell}[2].textContent") in label
    browser(f"{cell}[2].focus()")
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    runs_of = "return [...document.querySelectorAll('[data-run]')].map((b) => b.dataset.run)"
    assert browser(runs_of) == [r.run_id for r in records if r.spec.algo == "shiq"]
    now = browser.driver.switch_to.active_element
    assert (now.get_attribute("aria-label"), now.get_attribute("aria-expanded")) == (label, "true")
    now.send_keys(Keys.ENTER)
    assert browser(runs_of) == []
    browser(f"{cell}[0].click()")
    measured = [r.run_id for r in sorted(records, key=lambda r: (r.status != "done", r.run_id))]
    assert browser(runs_of) == measured
    assert browser.logs()[0] == []


def test_a_picture_tells_what_it_leaves_out(browser: Page, tmp_path: Path) -> None:
    records = [*some(), record("shiq", 4, prompts=SMALL, status="diverged", error="loss is infinite")]
    records[0] = replace(records[0], training=[{**line, "kl": 0.5} for line in records[0].training])
    browser.open(tmp_path, payload(records, METRICS))
    for name in ("curves", "front"):
        browser.section(name)
        note = browser(f"return document.getElementById('{name}-note').textContent")
        assert "2 runs not shown (1 failed, 1 diverged)." in note and "fewer runs" not in note
    browser.choose("curves-metric", "kl")
    browser.until("document.getElementById('curves-note').textContent.includes('fewer runs')")
    note = browser("return document.getElementById('curves-note').textContent")
    assert "a mean is over fewer runs, since the rest logged none: dpo 1 of 3." in note
    browser.choose("curves-metric", "loss")
    browser.choose("curves-method", "dpo")
    browser.until("!document.getElementById('curves-note').textContent.includes('not shown')")


def test_two_methods_side_by_side(browser: Page, tmp_path: Path) -> None:
    browser.open(tmp_path, payload(some(), METRICS))
    browser.section("beside")
    browser.choose("beside-place", "heldout, greedy")
    browser.until("document.querySelectorAll('.side .episode').length == 2")
    browser.choose("beside-left", "dpo, seed 1")
    browser.choose("beside-right", "shiq, seed 2")
    browser.until("document.querySelectorAll('.side h3')[1].textContent == 'shiq, seed 2'")
    browser.click("#beside-next")
    assert browser("return document.getElementById('beside-prompt').value") == "heldout_001"
    sides = browser("return [...document.querySelectorAll('.side')].map((s) => s.textContent)")
    assert [s.startswith(name) for s, name in zip(sides, ("dpo, seed 1", "shiq, seed 2"), strict=True)] == [True, True]
    for side in sides:
        assert "[ls(a='trained 1')]" in side and "notes.txt" in side and "Turn 1 ✓ passed" in side
        assert "Turn 2 ✗ failed: multi_turn:instance_state_mismatch" in side
    assert browser.logs()[0] == []


def test_configurations_of_two_runs(browser: Page, tmp_path: Path) -> None:
    one = record("shiq", prompts=SMALL)
    other = replace(record("shiq", prompts=SMALL, algo_options={"beta": 0.5}), packages={"torch": "2.12.0"})
    browser.open(tmp_path, payload([one, other], METRICS))
    browser.section("configurations")
    rows = "[...document.querySelectorAll('.config tbody tr')]"
    cells = f"return {rows}.map((row) => [...row.children].map((cell) => cell.textContent))"
    browser.until("document.querySelector('.config tbody tr')")
    assert browser(cells) == [["algo_options.beta", "0.1", "0.5"], ["packages.torch", "2.13.0", "2.12.0"]]
    browser.click("#config-all")
    browser.until("document.querySelectorAll('.config tbody tr').length > 10")
    assert len(browser("return [...document.querySelectorAll('.config tr.differs')]")) == 2
    assert ["task", "bfcl", "bfcl"] in browser(cells)


def test_the_pictures_are_drawn_when_they_are_seen(browser: Page, tmp_path: Path) -> None:
    browser.driver.set_window_size(1400, 400)
    browser.open(tmp_path, payload(some(), METRICS))
    assert not browser("return Boolean(window.Plotly)")
    browser.driver.set_window_size(1400, 1000)
    browser.section("curves")
    lines = browser("return document.getElementById('curves-plot').data.filter((t) => t.showlegend !== false)")
    assert [(line["name"], line["x"][-1]) for line in lines] == [("dpo", 200), ("shiq", 200)]
    assert lines[0]["y"][0] == pytest.approx(2.0)
    browser.section("front")
    points = browser("return document.getElementById('front-plot').data")
    assert [p["name"] for p in points] == ["reference", "dpo", "shiq"]
    assert points[0]["x"] == [0] and points[2]["x"][0] > 0 and points[2]["error_x"]["array"][0] > 0
    said, asked = browser.logs()
    assert said == [] and [url.rpartition("/")[2] for url in asked] == ["report.html"]


def test_what_a_model_writes_never_runs(browser: Page, tmp_path: Path) -> None:
    other = told(record("shiq", prompts=SMALL), lambda policy, i: {"answer": HOSTILE}, history(0))
    diverged = replace(record("dpo", 1, prompts=SMALL), status="diverged", error=HOSTILE)
    browser.open(tmp_path, payload([hostile(), other, diverged], METRICS))
    for name in ("curves", "front", "beside", "configurations"):
        browser.section(name)
    browser.click("#board tbody tr[data-row]:not(.reference) td button")
    browser.click("[data-run]")
    browser.until("document.querySelector('.run')")
    for depth in (".run > details", ".run > details details"):
        browser(f"for (const d of document.querySelectorAll({depth!r})) d.open = true")
        time.sleep(0.2)
    browser.until("document.querySelector('.side .said')")
    answers = browser("return JSON.stringify([...document.querySelectorAll('.side .said')].map((e) => e.textContent))")
    assert HOSTILE in json.loads(answers)  # as JSON, for the driver itself cannot carry half a surrogate pair
    assert browser("return [window.hacked ?? null, document.querySelectorAll('main img').length]") == [None, 0]
    from selenium.common.exceptions import NoAlertPresentException

    with pytest.raises(NoAlertPresentException):
        _ = browser.driver.switch_to.alert
    said, asked = browser.logs()
    assert said == [] and [url.rpartition("/")[2] for url in asked] == ["report.html"]
