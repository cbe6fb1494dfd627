"""Dialogues of a dataset as the loss sees them, for a terminal."""

from __future__ import annotations

import difflib
import math
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.dataset import decoder_of, read_manifest, rows_of, trajectories_of
from shiq_bench.data.schema import Decoder, histogram
from shiq_bench.records.errors import UserError

#: What stands around the policy's words and around marks of ours; in text of a model they are spelt out.
_OPEN, _CLOSE, _LEFT, _RIGHT = "»«⟨⟩"

#: Longest observation shown whole, and what is kept of a longer one at either end; in tokens.
_LONG, _KEPT = 160, 60


def visible(text: str) -> str:
    """Text of a model as it may be printed: only line breaks act, and none of our marks can be forged.

    Control characters become their pictures (␛ is an escape), invisible ones and our marks ⟨U+..⟩.
    """
    out = []
    for c in text:
        if c == "\n":
            out.append(c)
        elif c < " ":
            out.append(chr(0x2400 + ord(c)))
        elif c in (_OPEN, _CLOSE, _LEFT, _RIGHT) or unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            out.append(f"{_LEFT}U+{ord(c):04X}{_RIGHT}")
        else:
            out.append(c)
    return "".join(out)


def _inline(text: str) -> str:
    return visible(text).replace("\n", "␊")


def _pieces(t: Trajectory, decoder: Decoder, full: bool) -> Iterator[tuple[str, bool, float]]:
    """Text, whether the policy emitted it, and the reward at its end: runs of tokens of one kind.

    Texts of all tokens up to a place are compared, so that a character split between runs is shown
    once, where it is completed, and a space that only joins words is not lost.
    """
    ids, n = list(t.token_ids), len(t.token_ids)
    shown = ""

    def text(end: int) -> str:
        nonlocal shown
        whole = decoder.decode(ids[:end], skip_special_tokens=False)
        # An unfinished character at the end is decoded as a replacement: it waits for its other bytes.
        done = whole if end == n else whole.rstrip("\ufffd")
        new = done[len(shown) :]
        shown = max(shown, done, key=len)
        return new

    start = 0
    for end in range(1, n + 1):
        if end < n and t.action_mask[end] == t.action_mask[start] and not t.rewards[end - 1]:
            continue
        action = t.action_mask[start]
        if action or full or end - start <= _LONG:
            yield text(end), action, t.rewards[end - 1]
        else:
            yield text(start + _KEPT), False, 0.0
            text(end - _KEPT)
            yield f"{_LEFT}… {end - start - 2 * _KEPT} tokens …{_RIGHT}", False, math.nan
            yield text(end), False, 0.0
        start = end


def dialogue(t: Trajectory, decoder: Decoder, full: bool = False) -> Text:
    """One trajectory as the loss sees it: »the policy's words«, context, and ⟨+1⟩ behind the token that carries it.

    Args:
        full: do not shorten long observations.
    """
    out, inside = Text(), False
    for text, action, reward in _pieces(t, decoder, full):
        if action != inside:
            out.append(_OPEN if action else _CLOSE, style="bold cyan")
            inside = action
        if math.isnan(reward):
            out.append(text, style="italic")
            continue
        out.append(visible(text), style="bold green" if action else "dim")
        if reward:
            out.append(f"{_LEFT}{reward:+.4g}{_RIGHT}", style="bold yellow" if reward > 0 else "bold red")
    if inside:
        out.append(_CLOSE, style="bold cyan")
    return out


def show(
    folder: Path,
    console: Console,
    *,
    count: int = 3,
    prompt: str = "",
    source: str = "",
    seed: int | None = None,
    full: bool = False,
) -> None:
    """Print counts, returns and some dialogues of a dataset.

    Args:
        count: dialogues at most.
        prompt, source: only of these.
        seed: pick at random; None is the first ones.
        full: do not shorten long observations.

    Raises:
        UserError: no dataset, a damaged one, or nothing to show.
    """
    manifest = read_manifest(folder)
    table = rows_of(folder, manifest)
    prompts, sources = table.column("prompt_id").to_pylist(), table.column("source").to_pylist()
    for name, asked, known in (("prompt", prompt, prompts), ("source", source, sources)):
        if asked and asked not in known:
            near = difflib.get_close_matches(asked, sorted(set(known)), n=1, cutoff=0.5) or sorted(set(known))[:1]
            raise UserError(f"{folder} has no {name} {_inline(asked)!r}: try --{name} {_inline(near[0])!r}")
    chosen = [
        n for n in range(len(table)) if (not prompt or prompts[n] == prompt) and (not source or sources[n] == source)
    ]
    if not chosen:
        raise UserError(
            f"{folder} has prompt {_inline(prompt)!r} and source {_inline(source)!r}, and never both at once"
        )
    if seed is not None:
        chosen = sorted(random.Random(seed).sample(chosen, min(count, len(chosen))))
    chosen = chosen[:count]

    truncated = sum(table.column("truncated").to_pylist())
    told = (
        f"{folder}: task {_inline(manifest['task'])}, model {_inline(manifest['model'])}, {len(table)} trajectories "
        f"of {len(set(prompts))} prompts, {truncated} truncated"
    )
    console.print(Text(told), soft_wrap=True)
    kinds = sorted(set(sources))
    counted = Table("return", box=None, pad_edge=False)
    for kind in kinds:
        counted.add_column(Text(_inline(kind)), justify="right")
    for name, counts in histogram(list(zip(sources, table.column("total_reward").to_pylist(), strict=True))):
        counted.add_row(name, *(str(counts[kind]) for kind in kinds))
    console.print(counted)
    console.print()

    decoder = decoder_of(folder)
    legend = Text.assemble(
        (f"{_OPEN}the policy's tokens{_CLOSE}", "bold green"), "   ", ("context", "dim"), "   ",
        (f"{_LEFT}+1{_RIGHT}", "bold yellow"), " reward of the token before it   ",
        f"␛ {_LEFT}U+200B{_RIGHT} characters made visible",
    )  # fmt: skip
    console.print(legend, soft_wrap=True)
    for n in chosen:
        t = next(trajectories_of(table.slice(n, 1), [n]))
        head = (
            f"\n── row {n} · prompt {_inline(t.prompt_id)} · {_inline(t.source)} · return {t.total_reward:.4g}"
            f"{' · truncated' if t.truncated else ''} · {sum(t.action_mask)} action tokens of {len(t.token_ids)}"
            f"{'' if t.weight == 1 else f' · weight {t.weight:.4g}'}"
        )
        console.print(Text(head, style="bold"), soft_wrap=True)
        console.print(dialogue(t, decoder, full), soft_wrap=True)
