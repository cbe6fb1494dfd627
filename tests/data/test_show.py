"""A dataset in the terminal, as the loss sees it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tokenizers import pre_tokenizers

from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data import show
from shiq_bench.data.dataset import write_dataset
from shiq_bench.data.schema import DATA
from shiq_bench.records.errors import UserError
from tests.data.datasets import BYTES, MADE, said

ROOT = Path(__file__).parents[2]


def shown(folder: Path, **options: Any) -> str:
    out = io.StringIO()
    show.show(folder, Console(file=out, width=80, color_system=None), **options)
    return out.getvalue()


def show_made(tmp_path: Path, *trajectories: Trajectory, **options: Any) -> str:
    write_dataset(tmp_path / "made", trajectories, BYTES, MADE)
    return shown(tmp_path / "made", **options)


def test_a_dialogue_is_shown_as_the_loss_sees_it(tmp_path: Path) -> None:
    made = said(("ask ", False), ("do one", True), (" seen ", False), ("end", True), rewards={5: 1.0, 17: -0.25})
    text = show_made(tmp_path, replace(made, truncated=True))
    assert "ask »do⟨+1⟩ one« seen »en⟨-0.25⟩d«" in text
    assert "row 0 · prompt p · reference · return 0.75 · truncated · 9 action tokens of 19" in text
    assert "task made, model made, 1 trajectories of 1 prompts, 1 truncated" in text
    assert re.search(r"^0\.75 +1$", text, re.M)


def test_a_split_character_is_shown_once(tmp_path: Path) -> None:
    """Four bytes of one, rewarded after the second, and two bytes of another cut off at the end."""
    made = said(("a", False), ("😀b", True), rewards={2: 1.0})
    lost = BYTES.convert_tokens_to_ids([pre_tokenizers.ByteLevel(False).pre_tokenize_str("é")[0][0][0]])
    made = replace(
        made, token_ids=(*made.token_ids, *lost), action_mask=(*made.action_mask, True), rewards=(*made.rewards, 0.5)
    )
    assert "a»⟨+1⟩😀b\ufffd⟨+0.5⟩«" in show_made(tmp_path, made)


def test_text_of_a_model_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;title\x07[red]x[/red]\r\x7f\x9b1m\u202eabc\u200b :smile: » ⟨+9⟩\tend"
    made = replace(said(("q\x1b[1m", False), (evil, True)), prompt_id="p\x1b[31m", source="s\x1b\n[b]")
    text = show_made(tmp_path, made)
    assert not [c for c in text if c != "\n" and (c < " " or "\x7f" <= c < "\xa0" or c in "\u202e\u200b")]
    assert (
        "»␛[2J␛]0;title␇[red]x[/red]␍⟨U+007F⟩⟨U+009B⟩1m⟨U+202E⟩abc⟨U+200B⟩ :smile: ⟨U+00BB⟩ ⟨U+27E8⟩+9⟨U+27E9⟩␉end«"
        in text
    )
    assert "prompt p␛[31m · s␛␊[b] · return 0" in text


def test_colour_comes_on_top_of_the_marks(tmp_path: Path) -> None:
    write_dataset(tmp_path / "made", [said(("ask ", False), ("do", True), rewards={5: 1.0})], BYTES, MADE)
    out = io.StringIO()
    show.show(tmp_path / "made", Console(file=out, force_terminal=True, color_system="standard"))
    assert "\x1b[2mask \x1b[0m" in out.getvalue() and "\x1b[1;32mdo\x1b[0m" in out.getvalue()
    plain = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert "ask »do⟨+1⟩«" in plain


def test_long_observations_are_shortened_on_request_only(tmp_path: Path) -> None:
    long = "".join(chr(97 + i % 26) for i in range(600))
    made = said((long, False), (long, True))
    short = show_made(tmp_path, made)
    assert f"{long[:60]}⟨… 480 tokens …⟩{long[-60:]}»{long}«" in short
    assert f"{long}»{long}«" in shown(tmp_path / "made", full=True)


def test_words_keep_their_spaces(tree: Path) -> None:
    row = pq.read_table(tree / DATA).to_pylist()[0]
    text = shown(tree, count=1).rstrip().split("\n")[-1]
    assert re.sub(r"[»«]|⟨[^⟩]*⟩", "", text) == row["text"] and "»" in text


def test_dialogues_are_chosen(tree: Path) -> None:
    def heads(**options: Any) -> list[str]:
        return [line for line in shown(tree, **options).split("\n") if line.startswith("── row")]

    assert [h.split(" · ")[0] for h in heads()] == ["── row 0", "── row 1", "── row 2"]
    assert len(heads(source="reference", count=100)) == 6
    assert all("prompt 2 " in h for h in heads(prompt="2", count=5)) and len(heads(prompt="2", count=5)) == 5
    assert heads(seed=1) == heads(seed=1) != heads(seed=2) and len(heads(seed=1)) == 3
    assert heads(count=0) == []
    for options, message in (
        ({"prompt": "7"}, "no prompt '7': try --prompt"),
        ({"source": "refrence"}, "try --source 'reference'"),
    ):
        with pytest.raises(UserError, match=message):
            shown(tree, **options)


def test_damage_is_found_before_anything_is_shown(copy: Path) -> None:
    whole = bytearray((copy / DATA).read_bytes())
    whole[len(whole) // 2] ^= 1
    (copy / DATA).write_bytes(whole)
    with pytest.raises(UserError, match="is damaged"):
        shown(copy)


def test_showing_loads_no_model_library(tree: Path) -> None:
    script = (
        "import sys\nfrom shiq_bench.cli.app import app\n"
        "app(['data', 'show', sys.argv[1], '-n', '1'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tree)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "── row 0" in done.stdout and done.stdout.rstrip().endswith("[]") and "\x1b" not in done.stdout
