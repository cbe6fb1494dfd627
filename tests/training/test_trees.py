"""The tree layout against one row a trajectory: the same numbers and gradients, where the attention allows it."""

from __future__ import annotations

import copy
import functools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from shiq_bench.api.needs import BehaviourModel
from shiq_bench.api.registry import algorithms
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data import collation
from shiq_bench.data.collation import Collator, Layout, cost, cut, forest, lay_out, plant, to_batch, to_stats
from shiq_bench.data.groups import prepare
from shiq_bench.training.policy import Policy
from shiq_bench.training.reference import Companions, batches, model_inputs

VOCAB = 50
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.2,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL, use_sliding_window=False),
    "gemma": GemmaConfig(**SMALL, head_dim=4),
}


def group(rng: random.Random, prompt: str = "p") -> list[Trajectory]:
    """Answers to one prompt that share turns, are each other's beginnings, or are the same."""
    made: list[Trajectory] = []
    start = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))]
    for _ in range(rng.randint(1, 5)):
        before = list(rng.choice(made).token_ids) if made and rng.random() < 0.5 else start
        kept = before[: rng.randint(len(start), len(before))]
        ids = (*kept, *(rng.randrange(3) for _ in range(rng.randint(1, 8))))
        mask = (*tuple(i >= len(start) and i % 4 != 3 for i in range(len(ids) - 1)), True)
        made.append(Trajectory(prompt, ids, mask, (0.0,) * len(ids)))
    return made


def test_a_tree_holds_each_prefix_once_and_nodes_see_their_ancestors() -> None:
    rng = random.Random(0)
    for _ in range(200):
        made = group(rng)
        (tree,) = forest(made, "tree")
        prefixes = {t.token_ids[: i + 1] for t in made for i in range(len(t.token_ids))}
        assert len(tree.ids) == len(prefixes)
        for n, path in zip(tree.members, tree.nodes, strict=True):
            assert [tree.ids[node] for node in path] == list(made[n].token_ids)
            assert [tree.depth[node] for node in path] == list(range(len(path)))
            for q in path:
                seen = [k for k in range(len(tree.ids)) if k <= q < tree.end[k]]
                assert seen == path[: tree.depth[q] + 1]


def test_an_action_that_two_answers_share_is_computed_once() -> None:
    a = Trajectory("p", (1, 2, 3, 4), (False, True, True, True), (0.0,) * 4)
    b = Trajectory("p", (1, 2, 3, 5), (False, True, True, True), (0.0,) * 4)
    got = lay_out([a, b], "tree")
    assert got["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert got["end"].tolist() == [[5, 5, 5, 4, 5]]
    assert (got["index"].tolist(), got["targets"].tolist()) == ([0, 1, 2, 2], [2, 3, 4, 5])
    assert got["spread"].tolist() == [0, 1, 2, 0, 1, 3]
    assert plant([a.token_ids, b.token_ids], [1])[0].ids == [1, 2, 3, 5]


def test_answers_share_a_row_where_that_costs_less() -> None:
    """Never more than a row each, as attention costs a row's square; far less where prompts are long."""
    rng = random.Random(3)
    for prompt, answer, trees in [(4000, 35, 1), (600, 35, 1), (100, 300, 4), (10, 900, 8)]:
        start = [rng.randrange(VOCAB) for _ in range(prompt)]
        rows = [[*start, n, *(rng.randrange(VOCAB) for _ in range(answer - 1))] for n in range(8)]
        made = plant(rows, range(8))
        assert len(made) == trees
        assert sum(cost(len(tree.ids)) for tree in made) <= sum(map(cost, map(len, rows)))
    assert cost(4000 + 8 * 35) < sum(map(cost, [4035] * 8)) / 7


def test_what_is_cut() -> None:
    assert cut([3, 3, 3, 9, 1], 6) == [range(2), range(2, 3), range(3, 4), range(4, 5)]
    assert cut([], 6) == []
    rng = random.Random(1)
    made = [t for n in range(9) for t in group(rng, f"p{n}")]
    parts = list(batches(made, "tree", tokens=30))
    assert sorted(i for part in parts for i in part) == list(range(len(made)))
    for part in parts:
        trees = forest([made[i] for i in part], "tree")
        assert len(trees) == 1 or len(trees) * max(len(tree.ids) for tree in trees) <= 30


class Norm(torch.nn.Module):
    """A root-mean-square norm that keeps float64, as transformers' own do not."""

    def __init__(self, weight: Tensor, plus: float) -> None:
        super().__init__()
        self.weight, self.plus = torch.nn.Parameter(weight), plus

    def forward(self, x: Tensor) -> Tensor:
        return (self.plus + self.weight) * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def exact(config: PretrainedConfig) -> Any:
    """A random model that computes in float64 throughout."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, last = name.rpartition(".")
            plus = float(type(module).__name__.startswith("Gemma"))
            setattr(model.get_submodule(parent), last, Norm(module.weight.detach(), plus))
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_in_float64_equal_those_of_padded_rows(kind: str) -> None:
    """Of a random function of all statistics, on 67 random batches of groups a model."""
    policy, rng = Policy(exact(CONFIGS[kind]), VOCAB), random.Random(kind)
    assert policy.layout == "tree"
    worst = 0.0
    for _ in range(67):
        made = [t for n in range(rng.randint(1, 3)) for t in group(rng, f"p{n}")]
        weights = torch.randn(2, sum(sum(t.action_mask) for t in made), dtype=torch.float64)
        gradients = []
        for layout in ("tree", "padded"):
            inputs = lay_out(made, layout)  # type: ignore[arg-type]
            out = policy(**model_inputs(inputs))
            total = sum((w * out[k][inputs["spread"]]).sum() for w, k in zip(weights, ("logp", "lse"), strict=True))
            gradients.append(torch.autograd.grad(total, list(policy.parameters())))  # type: ignore[arg-type]
        worst = max(worst, *(float((a - b).norm() / b.norm()) for a, b in zip(*gradients, strict=True)))
    assert worst < 1e-9


def test_a_tree_that_is_too_large_is_cut_between_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every member once, none over the limit but a single one that is, and the same statistics."""
    rng, policy = random.Random(2), Policy(exact(CONFIGS["llama"]), VOCAB)
    made = [t for n in range(6) for t in group(rng, f"p{n}")]
    one, several = forest(made, "tree"), forest(made, "tree", 12)
    assert len(several) > len(one) == 6
    assert sorted(n for tree in several for n in tree.members) == list(range(len(made)))
    assert all(len(tree.ids) <= 12 or len(tree.members) == 1 for tree in several)
    with torch.no_grad():
        inputs = lay_out(made, "tree")
        expected = policy(**model_inputs(inputs))["logp"][inputs["spread"]]
        monkeypatch.setattr(collation, "forest", functools.partial(forest, largest=12))
        inputs = lay_out(made, "tree")
        got = policy(**model_inputs(inputs))["logp"][inputs["spread"]]
    assert len(inputs["input_ids"]) == len(several)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("algo", [name for name in algorithms.names() if not algorithms.get(name)().couples_answers])
def test_gradients_of_a_prompt_cut_between_its_answers(algo: str, layout: Layout) -> None:
    """Parts of few tokens, the prompt in each, against everything at once: of each method that couples no answers."""
    algorithm, rng = algorithms.get(algo)(), random.Random(algo)
    model = exact(CONFIGS["llama"])
    policy = Policy(model, VOCAB).equip(algorithm, 0)
    behaviour = Policy(copy.deepcopy(model), VOCAB) if algorithm.need(BehaviourModel) else None
    companions = Companions(policy, algorithm, behaviour, live_reference=True, precision="fp32")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    made = [t for n in range(6) for t in group(rng, f"p{n}")]
    made = [replace(t, rewards=(*t.rewards[:-1], rng.random())) for t in made]
    groups = prepare(made, None, algorithm, False)
    longest = max(len(t.token_ids) for t in made)
    gradients, laid = [], []
    for tokens in (0, longest):
        collator = Collator(algorithm, layout, "hard", tokens=tokens, dtype=torch.float64)
        parts = collator.parts(groups)
        filled = [p["end" if "end" in p else "attention_mask"] > 0 for p in parts]
        laid.append(max(int(f.sum()) for f in filled))
        policy.zero_grad()
        for part in parts:
            stats = to_stats(policy(**model_inputs(part)), part, **companions.statistics(part), actions=VOCAB)
            algorithm.loss(stats, to_batch(part)).total.backward()
        gradients.append({n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None})
    assert max(map(collator.size, groups)) > longest >= laid[1] and laid[0] > laid[1], "no prompt was cut"
    assert gradients[0].keys() == gradients[1].keys()
    whole, cut_up = (torch.cat([g.flatten().double() for g in found.values()]) for found in gradients)
    assert float((cut_up - whole).norm() / whole.norm()) < 1e-6 and float(whole.norm()) > 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_attention_that_takes_a_mask(attention: str) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"], attn_implementation=attention)
    assert Policy(model, VOCAB).layout == "tree"
    assert Policy(model, VOCAB, "padded").layout == "padded"


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=8),
        Gemma2Config(**SMALL, head_dim=4),
        GPTNeoConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=16,
        ),
        MambaConfig(vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=2),
    ],
    ids=["a window", "windows in some layers", "a window of another name", "a state space"],
)
def test_models_without_a_mask_of_their_own_are_padded(config: PretrainedConfig) -> None:
    assert Policy(AutoModelForCausalLM.from_config(config), VOCAB).layout == "padded"
