"""Rows of one forward pass: few of them padding, and no more of them than their masks have room for."""

from __future__ import annotations

import random

from shiq_bench.models.trees import MASK, buckets


def test_buckets_hold_every_row_once_with_little_padding() -> None:
    lengths = [5, 100, 90, 79, 6, 80, 5]
    made = buckets(lengths)
    assert sorted(row for rows, _ in made for row in rows) == list(range(7))
    for rows, longest in made:
        assert max(lengths[r] for r in rows) == longest
        assert min(lengths[r] for r in rows) >= 0.8 * longest


def test_the_masks_of_a_pass_have_a_bound() -> None:
    """In float32 256 MiB; a row whose own mask is larger goes alone."""
    assert 4 * MASK == 256 * 2**20
    rng = random.Random(0)
    lengths = [*(rng.randint(1, 30) for _ in range(200)), 40, 41]
    made = buckets(lengths, area=1000)
    assert sorted(row for rows, _ in made for row in rows) == list(range(202))
    assert all(len(rows) * longest**2 <= 1000 or len(rows) == 1 for rows, longest in made)
    assert len(buckets([8192, 8192])) == 2 and len(buckets([4096] * 4)) == 1
