"""The run store: what it keeps, what it refuses, and what it names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.records import run_store
from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import canonical_json
from shiq_bench.records.record import SCHEMA_VERSION
from shiq_bench.report.comparison import compare
from shiq_bench.report.tables import text as in_format
from tests.report.synthetic import record

SMALL = {"rl": 3, "heldout": 2}


def test_round_trip(tmp_path: Path) -> None:
    made = record(prompts=SMALL)
    path = run_store.save(made, tmp_path)
    assert path == tmp_path / made.run_id / "record.json"
    back = run_store.load(path)
    assert back.spec == made.spec
    assert canonical_json(back.to_json()) == canonical_json(made.to_json())
    assert run_store.load(path.parent).run_id == made.run_id


def test_saving_again_replaces(tmp_path: Path) -> None:
    run_store.save(record(status="started", prompts=SMALL), tmp_path)
    run_store.save(record(status="done", prompts=SMALL), tmp_path)
    records, problems = run_store.load_all(tmp_path)
    assert ([r.status for r in records], problems) == (["done"], [])


def test_load_all_is_sorted_and_selects(tmp_path: Path) -> None:
    made = [record(seed=s, prompts=SMALL) for s in range(3)]
    for r in made:
        run_store.save(r, tmp_path)
    (tmp_path / "no-run" / "checkpoints").mkdir(parents=True)
    ids = sorted(r.run_id for r in made)
    assert [r.run_id for r in run_store.load_all(tmp_path)[0]] == ids
    assert [r.run_id for r in run_store.load_all(tmp_path, run_ids=[made[1].run_id])[0]] == [made[1].run_id]
    assert run_store.load_all(tmp_path, run_ids=[]) == ([], [])


def test_an_unknown_run_suggests_the_nearest(tmp_path: Path) -> None:
    made = record(prompts=SMALL)
    run_store.save(made, tmp_path)
    with pytest.raises(UserError, match=f"did you mean '{made.run_id}'"):
        run_store.load_all(tmp_path, run_ids=[made.run_id[:-1]])


def _cut(text: str) -> str:
    return text[: len(text) // 2]


def _with(**changes: Any) -> Any:
    return lambda text: json.dumps({**json.loads(text), **changes})


def _without(name: str) -> Any:
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != name})


def _without_prompts(text: str) -> str:
    return text.replace('"prompt_id"', '"prompt"')


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_cut, "is cut or is no JSON"),
        (lambda _: "", "is cut or is no JSON"),
        (lambda _: "\x00\x00", "is cut or is no JSON"),
        (lambda _: "[1, 2]", "holds a list"),
        (lambda _: "{}", "no schema_version"),
        (_with(schema_version=SCHEMA_VERSION + 1), f"schema {SCHEMA_VERSION + 1} is newer than the {SCHEMA_VERSION}"),
        (_with(status="perhaps"), "status: Input should be"),
        (_with(unheard_of=1), "unheard_of"),
        (_without("spec"), "spec"),
        (lambda text: text.replace('"seed": 1', '"seed": NaN'), "NaN"),
        (lambda text: text.replace('"seed": 1', '"seed": "1"'), "spec.seed"),
        (lambda text: text.replace('"error": null', '"error": "\\ud800"'), "hex escape"),
        (lambda text: "[" * 100_000, "is cut or is no JSON"),
        (_with(evaluations=[{}]), "evaluations.0"),
        (_with(consumed=None), "consumed"),
        (_without_prompts, "has no prompt_id"),
    ],
)
def test_a_bad_record_is_named_and_skipped(tmp_path: Path, spoil: Any, says: str) -> None:
    good, bad = record(seed=0, prompts=SMALL), record(seed=1, prompts=SMALL)
    run_store.save(good, tmp_path)
    path = run_store.save(bad, tmp_path)
    path.write_text(spoil(path.read_text()))
    records, problems = run_store.load_all(tmp_path)
    assert [r.run_id for r in records] == [good.run_id]
    assert len(problems) == 1
    assert says in problems[0] and str(path) in problems[0]
    with pytest.raises(UserError, match=bad.run_id):
        run_store.load(path)


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        run_store.load_all(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        run_store.load_all(tmp_path / "file")
    with pytest.raises(UserError, match="no run record at"):
        run_store.load(tmp_path / "shiq-bfcl-0")


@pytest.mark.parametrize("run_id", ["", "..", "../elsewhere", "a/b", ".hidden"])
def test_a_run_id_cannot_leave_the_results(run_id: str) -> None:
    with pytest.raises(UserError, match="cannot be a run"):
        run_store.run_folder("results", run_id)


def test_nan_is_refused_and_the_old_record_stays(tmp_path: Path) -> None:
    made = record(prompts=SMALL)
    path = run_store.save(made, tmp_path)
    before = path.read_bytes()
    made.gaps["logp_mean"] = float("nan")  # type: ignore[index]
    with pytest.raises(ValueError, match="JSON"):
        run_store.save(made, tmp_path)
    assert path.read_bytes() == before


def test_several_folders_are_one(tmp_path: Path) -> None:
    one, two = record(seed=0, prompts={"rl": 3}), record(seed=1, prompts={"rl": 3})
    run_store.save(one, tmp_path / "a")
    run_store.save(two, tmp_path / "b")
    run_store.save(one, tmp_path / "b")
    folders = [tmp_path / "a", tmp_path / "b"]
    found, problems = run_store.load_all(*folders)
    assert sorted(r.run_id for r in found) == sorted([one.run_id, two.run_id]) and not problems
    assert [r.run_id for r in run_store.load_all(*folders, run_ids=[two.run_id])[0]] == [two.run_id]
    with pytest.raises(UserError, match="no folder has run 'nothing'"):
        run_store.load_all(*folders, run_ids=["nothing"])


def test_one_run_with_two_contents_is_refused(tmp_path: Path) -> None:
    made = record(prompts={"rl": 3})
    run_store.save(made, tmp_path / "a")
    run_store.save(dataclasses.replace(made, status="failed", error="boom"), tmp_path / "b")
    with pytest.raises(UserError) as caught:
        run_store.load_all(tmp_path / "a", tmp_path / "b")
    line = str(caught.value)
    assert "\n" not in line and made.run_id in line
    assert str(tmp_path / "a" / made.run_id) in line and str(tmp_path / "b" / made.run_id) in line


def test_so_it_is_within_one_folder(tmp_path: Path) -> None:
    made = record(prompts={"rl": 3})
    path = run_store.save(made, tmp_path)
    copy = tmp_path / "copy" / "record.json"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    assert [r.run_id for r in run_store.load_all(tmp_path)[0]] == [made.run_id], "an equal copy counts once"
    copy.write_text(json.dumps({**json.loads(path.read_text()), "error": "boom"}))
    with pytest.raises(UserError, match="differs between"):
        run_store.load_all(tmp_path)


def test_no_odd_value_ends_in_a_traceback(tmp_path: Path) -> None:
    """Every value in turn replaced by what does not belong there: the record is read, or refused in one line."""
    made = record(prompts={"rl": 2})
    path = run_store.save(made, tmp_path)
    data = json.loads(path.read_text())
    refused = 0
    for place in list(_places(data)):
        for odd in (None, "text", -1, [], {}, [1], {"a": None}, True):
            spoilt = json.loads(path.read_text())
            _put(spoilt, place, odd)
            (tmp_path / "x").mkdir(exist_ok=True)
            (tmp_path / "x" / "record.json").write_text(json.dumps(spoilt))
            try:
                found = run_store.load(tmp_path / "x")
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
                continue
            text = in_format(compare([found]), "csv")
            assert text
    assert refused > 100


def _places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value, of lists only the first."""
    items = data.items() if isinstance(data, dict) else enumerate(data[:1]) if isinstance(data, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from _places(value, (*at, key))


def _put(data: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        data = data[key]
    data[place[-1]] = value


def test_half_a_pair_of_surrogates_can_be_stored_and_read(tmp_path: Path) -> None:
    made = record(prompts={"rl": 1})
    made = dataclasses.replace(made, error="half \ud83d, whole \U0001f600, and é")
    found = run_store.load(run_store.save(made, tmp_path))
    assert found.error == "half \ufffd, whole \U0001f600, and é"
