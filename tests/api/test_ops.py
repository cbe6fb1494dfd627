"""Token statistics against the naive float64 form, and the reductions against hand-worked numbers."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import partial

import pytest
import torch

from shiq_bench.api.batch import Stats, TokenStats, log_ratio, masked_mean, next_step, scatter_actions, sum_to_end
from shiq_bench.api.token_stats import kl_rows, stats_from_logits, token_stats


def naive(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, vocab: int) -> tuple[torch.Tensor, ...]:
    logits = hidden.double() @ weight[:vocab].double().T
    return torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1), torch.logsumexp(logits, -1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("positions", "width", "rows", "vocab"), [(1, 3, 5, 5), (7, 8, 11, 11), (64, 16, 40, 33), (130, 4, 9, 2)]
)
@pytest.mark.parametrize("chunk", [1, 16, 1000])
def test_equals_the_naive_form(
    dtype: torch.dtype, positions: int, width: int, rows: int, vocab: int, chunk: int
) -> None:
    """Values and both gradients, with rows beyond the vocabulary that must have no part in either."""
    g = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, width, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(rows, width, generator=g).to(dtype).requires_grad_()
    targets = torch.randint(vocab, (positions,), generator=g)
    up = [torch.randn(positions, generator=g) for _ in range(2)]
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]

    ours = token_stats(hidden, weight, targets, vocab, chunk)
    assert all(x.dtype == torch.promote_types(dtype, torch.float32) for x in ours)
    theirs = naive(hidden, weight, targets, vocab)
    for a, b in zip(ours, theirs, strict=True):
        # Half-precision inputs, float32 arithmetic: the values agree far better than the inputs are exact.
        torch.testing.assert_close(a.double(), b, rtol=min(tolerance, 2e-5), atol=min(tolerance, 2e-5))
    mine = torch.autograd.grad(sum((x * u.to(x.dtype)).sum() for x, u in zip(ours, up, strict=True)), [hidden, weight])
    exact = torch.autograd.grad(sum((x * u.double()).sum() for x, u in zip(theirs, up, strict=True)), [hidden, weight])
    for a, b in zip(mine, exact, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)
    assert not mine[1][vocab:].any()


@pytest.mark.parametrize(("scale", "cap"), [(1.0, 0.0), (0.3, 0.0), (1.0, 0.5), (2.0, 1.5)])
def test_gradcheck(scale: float, cap: float) -> None:
    """And the values of scaled and softly capped logits are those of the formula, written out."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 3, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 3, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 5, 1, 1])
    shape = {"scale": scale, "cap": cap}
    ours = partial(token_stats, targets=targets, vocab=6, chunk=2, **shape)
    assert torch.autograd.gradcheck(ours, (hidden, weight), raise_exception=False)
    logits = scale * hidden @ weight.T
    expected = stats_from_logits(cap * torch.tanh(logits / cap) if cap else logits, targets, 6)
    for a, b in zip(token_stats(hidden, weight, targets, 6, 2, **shape), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_by_hand() -> None:
    """Logits ln 1, ln 2, ln 5: p = 1/8, 2/8, 5/8 and lse = ln 8; the padding row would make it ln 108."""
    weight = torch.tensor([[math.log(1)], [math.log(2)], [math.log(5)], [math.log(100)]])
    logp, lse = token_stats(torch.ones(1, 1), weight, torch.tensor([1]), vocab=3)
    assert logp.item() == pytest.approx(math.log(2 / 8), abs=1e-6)
    assert lse.item() == pytest.approx(math.log(8), abs=1e-6)


def test_large_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    logp, lse = token_stats(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0]))
    assert logp.tolist() == [0.0, -2e4]
    assert lse.tolist() == [1e4, 1e4]
    (grad,) = torch.autograd.grad((logp + lse).sum(), hidden)
    assert torch.isfinite(grad).all()


def test_statistics_are_float32_under_autocast() -> None:
    hidden, weight = torch.randn(6, 8), torch.randn(10, 8)
    targets = torch.arange(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp, lse = token_stats(hidden, weight, targets)
    exact, exact_lse = naive(hidden, weight, targets, 10)
    torch.testing.assert_close(logp.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


def test_no_positions() -> None:
    hidden = torch.zeros(0, 3, requires_grad=True)
    logp, lse = token_stats(hidden, torch.ones(4, 3), torch.zeros(0, dtype=torch.long))
    assert logp.shape == lse.shape == (0,)


def test_peak_memory_is_two_chunks_and_the_heads_gradient() -> None:
    """In a process of its own: what the pass adds to its inputs, against the bound the bench prints."""
    code = (
        "from shiq_bench.bench.engine import measure_tokens;"
        "print(*(measure_tokens(form, 2048, 256, 32768, 256)['mib'] for form in ('chunked', 'naive')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours, naive_extra = map(float, done.stdout.split())
    bound = (2 * 256 * 32768 + 32768 * 256) * 4 / 2**20
    assert ours <= bound + 24, "24 MiB for hidden gradients and the allocator's slack"
    assert naive_extra > bound, "the naive form must need more, or the measurement measures nothing"


def test_stats_from_logits_leaves_padding_rows_out() -> None:
    logits = torch.tensor([[0.0, math.log(3), 50.0]])
    logp, lse = stats_from_logits(logits, torch.tensor([1]), vocab=2)
    assert logp.item() == pytest.approx(math.log(3 / 4))
    assert lse.item() == pytest.approx(math.log(4))


def test_kl_by_hand() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = ln 2 - ln(3) / 2, with padding rows that must not count."""
    p = torch.tensor([[0.0, 0.0, 9.0]])
    q = torch.tensor([[0.0, math.log(3), -9.0]])
    assert kl_rows(p, q, 2).item() == pytest.approx(math.log(2) - math.log(3) / 2, abs=1e-6)


def test_reductions_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 4.0]])
    assert sum_to_end(x).tolist() == [[7.0, 6.0, 4.0]]
    assert next_step(x).tolist() == [[2.0, 4.0, 0.0]]
    mask = torch.tensor([[True, False], [True, True]])
    assert scatter_actions(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[1.0, 0.0], [2.0, 3.0]]
    assert masked_mean(torch.tensor([[1.0, 9.0], [2.0, 6.0]]), mask).item() == 3.0


def test_log_ratio_needs_a_declared_reference() -> None:
    one = TokenStats(torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="does not declare Reference"):
        log_ratio(Stats(one))
