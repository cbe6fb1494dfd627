"""The same tensors through TRL's losses: values and gradients agree.

TRL's trainers keep their losses inside methods, so a trainer is put together here of only the
attributes that its method reads, around a model whose logits are a table of the previous token.
What is compared is all that follows the logits.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiq_bench.algorithms.dpo import DPO
from shiq_bench.algorithms.grpo import GRPO
from shiq_bench.algorithms.ipo import IPO
from shiq_bench.algorithms.kto import KTO
from shiq_bench.algorithms.rloo import RLOO
from shiq_bench.algorithms.simpo import SimPO
from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, Stats, TokenStats
from shiq_bench.api.token_stats import stats_from_logits

pytestmark = [
    pytest.mark.filterwarnings("ignore:TRL currently supports vLLM"),
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
]
VOCAB = 7
RAGGED = ((5, 3, 1), (2, 4, 5))  # lengths of the first and the second answer of three prompts
SAME = ((3, 3, 3), (3, 3, 3))


class Bigram(nn.Module):
    """Logits are a row of a table, the previous token's; called the way TRL calls a model with a fused head."""

    is_gradient_checkpointing = False

    def __init__(self, seed: int) -> None:
        super().__init__()
        table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.table = nn.Parameter(table)

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> SimpleNamespace:
        nll = nn.functional.cross_entropy(
            self.table[input_ids[:, :-1]].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
        )
        blank = torch.zeros_like(nll)
        return SimpleNamespace(log_probs=-nll, entropy=blank, mean_logits=blank, is_top1=blank.bool())


class Answers:
    """A prompt token and a random answer a row: all first answers, then all second ones."""

    def __init__(self, lengths: Any, seed: int) -> None:
        flat = torch.tensor(lengths).flatten()
        width = int(flat.max())
        g = torch.Generator().manual_seed(seed)
        self.mask = torch.arange(width) < flat[:, None]
        prompt = torch.ones(len(flat), 1, dtype=torch.bool)
        live = torch.cat([prompt, self.mask], 1)
        self.ids = torch.randint(VOCAB, live.shape, generator=g) * live
        self.completion_mask = torch.cat([~prompt, self.mask], 1).long()
        self.attention_mask = live.long()
        self.group = torch.arange(len(lengths[0])).repeat(len(lengths))

    def trl(self, prefix: str = "") -> dict[str, Tensor]:
        return {
            f"{prefix}input_ids": self.ids,
            f"{prefix}attention_mask": self.attention_mask,
            f"{prefix}completion_mask": self.completion_mask,
        }

    def stats(self, policy: Bigram, reference: Bigram) -> Stats:
        def of(model: Bigram) -> TokenStats:
            logp, lse = stats_from_logits(model.table[self.ids[:, :-1]], self.ids[:, 1:])
            return TokenStats(logp * self.mask, lse * self.mask)

        with torch.no_grad():
            behind = of(reference)
        return Stats(of(policy), behind)

    def batch(self, **more: Any) -> Batch:
        n = len(self.mask)
        blank = torch.zeros(self.mask.shape, dtype=torch.float64)
        fields: dict[str, Any] = {
            "mask": self.mask,
            "rewards": blank,
            "sampler_logp": blank * torch.nan,
            "group": self.group,
            "weight": torch.ones(n, dtype=torch.float64),
            "pairs": torch.arange(n).reshape(2, -1).T,
            "pair_weight": torch.ones(n // 2, dtype=torch.float64),
        }
        return Batch(**{**fields, **more})


def trainer(policy: Bigram, reference: Bigram, **more: Any) -> SimpleNamespace:
    """As much of a trainer as the losses of TRL look at."""
    alone = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
    )
    fields: dict[str, Any] = {
        "model": policy,
        "ref_model": reference,
        "accelerator": alone,
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None, delta=None, use_bias_correction_kl=False),
        "aux_loss_enabled": False,
        "precompute_ref_logps": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(**{**fields, **more})


def dpo_loss(policy: Bigram, reference: Bigram, answers: Answers, loss_type: str, beta: float) -> Tensor:
    from trl import DPOTrainer

    self = trainer(
        policy,
        reference,
        beta=beta,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        label_smoothing=0.0,
        use_weighting=False,
    )
    loss: Tensor = DPOTrainer._compute_loss(self, policy, answers.trl(), return_outputs=False)
    return loss


def same(algorithm: Algorithm, stats: Stats, batch: Batch, theirs: Tensor, policy: Bigram) -> None:
    """Values and gradients on the table agree; tolerances are far under 1e-5, all being float64."""
    ours = algorithm.loss(stats, batch).total / algorithm.count(batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    (mine,) = torch.autograd.grad(ours, policy.table)
    (other,) = torch.autograd.grad(theirs, policy.table)
    assert mine.abs().max() > 1e-3, "two gradients of nothing prove nothing"
    torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.fixture
def models() -> tuple[Bigram, Bigram]:
    return Bigram(0), Bigram(1)


def test_dpo(models: tuple[Bigram, Bigram]) -> None:
    answers = Answers(RAGGED, seed=2)
    theirs = dpo_loss(*models, answers, "sigmoid", beta=0.3)
    same(DPO(beta=0.3), answers.stats(*models), answers.batch(), theirs, models[0])


def test_ipo(models: tuple[Bigram, Bigram]) -> None:
    """TRL averages log-ratios over an answer's tokens and the paper sums them.

    Where every answer has L tokens, TRL at beta L is (w/L - w'/L - 1/(2 beta L))^2, so L^2 times it
    is the paper's loss at beta.
    """
    answers = Answers(SAME, seed=3)
    theirs = 3**2 * dpo_loss(*models, answers, "ipo", beta=0.3 * 3)
    same(IPO(beta=0.3), answers.stats(*models), answers.batch(), theirs, models[0])


@pytest.mark.parametrize("swap", [True, False], ids=["estimate above 0", "clamped at 0"])
def test_kto(models: tuple[Bigram, Bigram], swap: bool) -> None:
    """Labels mixed within prompts, mismatched answers of other lengths; swapped models turn the estimate's sign."""
    from trl import KTOTrainer

    policy, reference = reversed(models) if swap else models
    answers, other = Answers(RAGGED, seed=4), Answers(((2, 2, 6), (1, 3, 3)), seed=5)
    label = torch.tensor([1, 0, 1, 0, 0, 1])
    self = trainer(
        policy,
        reference,
        beta=0.3,
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=1.25,
        undesirable_weight=0.75,
    )
    self._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(self, model, batch)
    inputs = {**answers.trl(), **other.trl("KL_"), "label": label.bool()}
    theirs = KTOTrainer._compute_loss(self, policy, inputs, return_outputs=False)
    stats = answers.stats(policy, reference)
    stats = Stats(stats.policy, stats.reference, mismatched=other.stats(policy, reference))
    batch = answers.batch(label=label.double())
    algorithm = KTO(beta=0.3, desirable=1.25, undesirable=0.75)
    same(algorithm, stats, batch, theirs, policy)
    kl = algorithm.loss(stats, batch).metrics["kl"].item()
    assert kl == pytest.approx(self._metrics["train"]["kl"][0])
    assert (kl > 0.1) == swap


def test_simpo(models: tuple[Bigram, Bigram]) -> None:
    """TRL's SimPO is a loss of its CPO trainer, whose likelihood term is added elsewhere and left out here."""
    from trl.experimental.cpo import CPOTrainer

    policy, _ = models
    answers = Answers(RAGGED, seed=6)
    self = trainer(*models, beta=1.5, simpo_gamma=0.6, alpha=0.0, loss_type="simpo", label_smoothing=0.0)
    labels = answers.ids.masked_fill(answers.completion_mask == 0, -100)
    logps = CPOTrainer.get_batch_logps(policy.table[answers.ids], labels, average_log_prob=True)
    theirs = CPOTrainer.cpo_loss(self, *logps.chunk(2))[0].mean()
    same(SimPO(beta=1.5, gamma=0.6), answers.stats(*models), answers.batch(), theirs, policy)


def on_policy(models: tuple[Bigram, Bigram]) -> tuple[Answers, Stats, Tensor, dict[str, Any]]:
    """Two prompts with three answers each, final rewards, and what TRL calls the inputs of a step."""
    answers = Answers(((5, 3), (1, 2), (4, 5)), seed=7)
    stats = answers.stats(*models)
    returns = torch.tensor([1.0, 0.5, 0.0, 0.25, 0.5, 2.0], dtype=torch.float64)
    inputs = {
        "prompt_ids": answers.ids[:, :1],
        "prompt_mask": answers.attention_mask[:, :1],
        "completion_ids": answers.ids[:, 1:],
        "completion_mask": answers.mask.long(),
    }
    return answers, stats, returns, inputs


def by_prompt(x: Tensor) -> Tensor:
    """Answers of a prompt in a column: rows come answer by answer."""
    return x.reshape(3, 2)


@pytest.mark.parametrize("drift", [0.0, 0.5], ids=["fresh", "samples of an older policy"])
def test_grpo(models: tuple[Bigram, Bigram], drift: float) -> None:
    """TRL's loss around given advantages: clipping, k3 and means over tokens.

    Advantages are ours by documented choice, of the population's deviation; TRL's have Bessel's
    correction and 1e-4 added.
    """
    from trl import GRPOTrainer

    answers, stats, returns, inputs = on_policy(models)
    assert stats.reference is not None
    g = torch.Generator().manual_seed(8)
    old = stats.policy.logp.detach() + drift * torch.randn(answers.mask.shape, generator=g, dtype=torch.float64)
    columns = by_prompt(returns)
    inputs["advantages"] = ((columns - columns.mean(0)) / columns.std(0, unbiased=False)).flatten()
    inputs["old_per_token_logps"] = old
    inputs["ref_per_token_logps"] = stats.reference.logp
    blank = torch.zeros(answers.mask.shape)
    self = trainer(
        *models,
        beta=0.1,
        epsilon_low=0.3,
        epsilon_high=0.3,
        loss_type="grpo",
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (stats.policy.logp, blank, None),
    )
    theirs = GRPOTrainer._compute_loss(self, models[0], inputs)
    rewards = torch.zeros_like(old)
    rewards[:, 0] = returns
    batch = answers.batch(rewards=rewards, sampler_logp=old)
    same(GRPO(beta=0.1, clip=0.3), answers.stats(*models), batch, theirs, models[0])
    clipped = self._metrics["train"]["clip_ratio/region_mean"][0]
    assert (clipped > 0.1) == (drift > 0)


def test_rloo(models: tuple[Bigram, Bigram]) -> None:
    """On fresh samples TRL's ratio is 1 and its gradient ours; its value is another, the mean advantage.

    The baseline is written here as TRL computes it, by leaving each answer out of its prompt's sum.
    """
    from trl import RLOOTrainer

    answers, stats, returns, inputs = on_policy(models)
    assert stats.reference is not None
    old = stats.policy.logp.detach()
    gain = by_prompt(returns - 0.2 * (old - stats.reference.logp).sum(-1))
    inputs["advantages"] = (gain - (gain.sum(0) - gain) / 2).flatten()
    inputs["old_logps"] = old.sum(-1)
    blank = torch.zeros(answers.mask.shape)
    self = trainer(
        *models,
        epsilon_low=0.2,
        epsilon_high=0.2,
        _get_per_token_logps_and_entropies=lambda *_, **__: (stats.policy.logp, blank, None),
    )
    theirs = RLOOTrainer._compute_loss(self, models[0], inputs)
    rewards = torch.zeros_like(old)
    rewards[:, 0] = returns
    algorithm, batch = RLOO(beta=0.2), answers.batch(rewards=rewards)
    ours = algorithm.loss(answers.stats(*models), batch).total / algorithm.count(batch)
    (mine,), (other,) = (torch.autograd.grad(loss, models[0].table) for loss in (ours, theirs))
    assert mine.abs().max() > 1e-3
    torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
