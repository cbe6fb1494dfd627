"""The official table: beside the official code on the same scores, and by hand."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from shiq_bench.tasks.bfcl import data
from shiq_bench.tasks.bfcl.aggregate import PARTS, SIZES, aggregate, weights

#: The official aggregation, which prints its tables as files; a category's score is all it reads of a model.
OFFICIAL = """
import json, sys, types
from pathlib import Path
root, out = sys.argv[1:]
sys.path.insert(0, root)
config = types.ModuleType("bfcl_eval.constants.model_config")
nothing = dict(display_name="m", url="", org="", license="", input_price=None, output_price=None)
config.MODEL_CONFIG_MAPPING = {"m": types.SimpleNamespace(**nothing)}
sys.modules[config.__name__] = config
from bfcl_eval.eval_checker.eval_runner_helper import generate_leaderboard_csv
for number, table in enumerate(json.load(sys.stdin)):
    folder = Path(out, str(number))
    folder.mkdir()
    generate_leaderboard_csv({"m": table}, folder)
"""

#: Official file and column of each score.
COLUMNS = {
    "overall": ("overall", "Overall Acc"),
    "non_live": ("non_live", "Non_Live Overall Acc"),
    "non_live_ast": ("non_live", "AST Summary"),
    "non_live_simple": ("non_live", "Simple AST"),
    "live": ("live", "Live Overall Acc"),
    "live_ast": ("live", "AST Summary"),
    "multi_turn": ("multi_turn", "Multi Turn Overall Acc"),
    "java": ("non_live", "Java Simple AST"),
    "live_relevance": ("live", "Relevance Detection"),
    "multi_turn_miss_func": ("multi_turn", "Miss Func"),
}


def shares(results: dict[str, tuple[int, int]]) -> dict[str, tuple[float, int]]:
    return {name: (valid / size, size) for name, (valid, size) in results.items()}


def test_scores_are_the_official_ones(bfcl_root: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    # Two of them run a part of every category only, which weighs the live categories otherwise.
    sizes = [{name: rng.randint(1, size) if case < 2 else size for name, size in SIZES.items()} for case in range(8)]
    results = [{name: (rng.randint(0, size), size) for name, size in some.items()} for some in sizes]
    tables = [
        {name: {"accuracy": valid / size, "total_count": size} for name, (valid, size) in result.items()}
        for result in results
    ]
    # Where nothing else is said, the official configuration makes folders inside the package.
    environment = {**os.environ, "BFCL_PROJECT_ROOT": str(tmp_path / "project")}
    command = [sys.executable, "-W", "ignore", "-c", OFFICIAL, str(bfcl_root), str(tmp_path)]
    done = subprocess.run(
        command, input=json.dumps(tables), capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    for number, result in enumerate(results):
        ours = {row.name: row.accuracy for row in aggregate(shares(result))}
        for name, (file, column) in COLUMNS.items():
            with (tmp_path / str(number) / f"data_{file}.csv").open() as lines:
                (row,) = csv.DictReader(lines)
            assert f"{100 * (ours[name] or 0):.2f}%" == row[column], (number, name)


def test_a_model_that_always_refuses() -> None:
    results = {name: (size if "irrelevance" in name else 0, size) for name, size in SIZES.items()}
    rows = {row.name: row for row in aggregate(shares(results))}
    assert f"{100 * (rows['overall'].accuracy or 0):.2f}" == "19.73"
    assert rows["non_live"].accuracy == 0.2
    assert rows["multi_turn"].accuracy == 0
    assert rows["overall"].scored == rows["overall"].entries == 4441


def test_what_was_not_run_has_no_score() -> None:
    results = {name: (0.5, 2) for name in SIZES if name not in ("javascript", "live_relevance")}
    rows = {row.name: row for row in aggregate(results | {"live_relevance": (0.0, 0)})}
    unknown = {"javascript", "live_relevance", "non_live_simple", "non_live_ast", "non_live", "live", "overall"}
    assert {name for name, row in rows.items() if row.accuracy is None} == unknown
    assert {row.accuracy for name, row in rows.items() if name not in unknown} == {0.5}
    assert (rows["non_live_simple"].scored, rows["non_live_simple"].entries) == (4, 550)
    assert [row.accuracy for row in aggregate({})] == [None] * (len(SIZES) + len(PARTS))


@pytest.mark.parametrize("score", [*SIZES, *PARTS])
def test_weights_are_those_of_the_score(score: str) -> None:
    rng = random.Random(score)
    results = {name: (rng.randint(0, size), size) for name, size in SIZES.items()}
    expected = next(row.accuracy for row in aggregate(shares(results)) if row.name == score)
    weighted = sum(weight * results[name][0] / results[name][1] for name, weight in weights(score).items())
    assert weighted == pytest.approx(expected)
    assert sum(weights(score).values()) == pytest.approx(1)


def test_what_the_scores_are_made_of() -> None:
    single = set(data.NON_LIVE) | set(data.LIVE)
    asked = {name for name in single if "relevance" in name}
    assert set(weights("overall")) == set(SIZES) == {*single, *data.MULTI_TURN}
    assert set(weights("live_ast")) | set(weights("non_live_ast")) == single - asked
    assert asked == {"irrelevance", "live_irrelevance", "live_relevance"}
    assert set(weights("non_live_simple")) == {"simple", "java", "javascript"}


def test_sizes_are_those_of_the_data(bfcl_root: Path) -> None:
    found = dict.fromkeys(data.CATEGORIES, 0)
    for entry in data.entries(bfcl_root, data.CATEGORIES).values():
        found[entry.category] += 1
    assert found == SIZES and list(found) == list(SIZES)
    assert set(data.SCORES) <= set(PARTS)
