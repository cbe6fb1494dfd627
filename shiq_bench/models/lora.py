"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): what is asked for, checked before peft is imported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shiq_bench.records.errors import UserError, suggest

#: Largest rank that the samplers serve.
LARGEST = 512

_KEYS = ("r", "alpha", "dropout", "targets")


@dataclass(frozen=True)
class Lora:
    """Adapters of a linear layer W: W + (alpha / r) B A, A ``[r, in]`` random and B ``[out, r]`` zero at the start.

    Attributes:
        r: rank.
        alpha: scale; twice the rank unless told otherwise.
        dropout: of an adapter's input while it trains.
        targets: names of the layers; empty: every linear layer but the head.
    """

    r: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ()


def parse_lora(text: str) -> Lora:
    """``r=16`` or ``r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj``.

    Raises:
        UserError: another key, a number out of range, no rank, or the head or the embedding among the targets.
    """
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not value:
            raise UserError(f"lora={text}: expected r=16, or r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj")
        if key not in _KEYS:
            raise UserError(f"lora has no setting {key!r}{suggest(key, _KEYS)}")
        if key in given:
            raise UserError(f"lora={text}: {key} is given twice; expected it once")
        given[key] = value
    try:
        rank = int(given.get("r", "0"))
        alpha, dropout = float(given.get("alpha", 2 * rank)), float(given.get("dropout", 0))
    except ValueError:
        raise UserError(f"lora={text}: expected a whole number for r, numbers for alpha and dropout") from None
    if not 1 <= rank <= LARGEST or not 0 < alpha < math.inf or not 0 <= dropout < 1:
        raise UserError(f"lora={text}: expected r from 1 to {LARGEST}, alpha above 0 and dropout from 0 to below 1")
    targets = tuple(t for t in given.get("targets", "").split("+") if t)
    if "targets" in given and not targets:
        raise UserError(f"lora={text}: expected names of layers for targets, such as q_proj+v_proj")
    # The usual names; once the model is there, its own are known.
    refuse_targets(targets, ("lm_head", "embed_tokens", "embed_out", "wte"))
    return Lora(rank, alpha, dropout, targets)


def refuse_targets(targets: Sequence[str], layers: Sequence[str]) -> None:
    """Refuse targets that name the head or the embedding.

    Args:
        layers: what those two are called.

    Raises:
        UserError: a target ends in the name of one of ``layers``, or one of ``layers`` in the target.
    """
    for target in targets:
        if any(f".{a}".endswith(f".{b}") for n in layers for a, b in ((target, n), (n, target))):
            raise UserError(
                f"lora: {target} cannot have adapters: token statistics read the head as a matrix, "
                "and an embedding may be the head; leave it out of targets"
            )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters, and no model of its own."""
    return (folder / "adapter_config.json").is_file()
