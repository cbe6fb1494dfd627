"""The proof on a language model: a token tree, a transformer, Trainer, vLLM, and the exact optimum."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from shiq_bench.data.groups import prepare
from shiq_bench.generation.generator import Generator
from shiq_bench.generation.opening import make_generator
from shiq_bench.runs.settings import resolve
from shiq_bench.tabular.exact import soft_optimum
from shiq_bench.tasks.tree import Tree
from shiq_bench.training.policy import load_policy
from shiq_bench.training.reference import policy_stats, reference_pass
from shiq_bench.training.starting_policy import resolve_model
from shiq_bench.training.trainer import train
from tests import needs

BETA = 0.5
DRAWS = 2000
SETTINGS: dict[str, Any] = {
    "model": "tiny", "engine": "hf", "algorithm.beta": BETA, "depth": 3, "actions": 4, "reward_scale": 4,
    "off_policy": 0, "explore": 1, "steps": 400, "schedule": "cosine",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIQ_BENCH_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def engine() -> Iterator[Callable[[Path], Generator]]:
    """One engine for all: they start from the same model."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def opened(folder: Path) -> Generator:
            needs.vllm()
            generator = make_generator("vllm", folder, tokenizer_vocab=SETTINGS["actions"], max_length=16)
            stack.callback(generator.close)
            return generator

        yield opened


def exact_optimum(tree: Tree, reference: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """ln rho and ln pi* of every completion, from the transformer's own probabilities. ``[C, Y]``"""
    world = tree.world(0)
    paths = world.completions()
    log_rho = np.zeros_like(world.rewards)
    log_rho[paths.states, paths.actions] = [logp for logp, _ in reference]
    log_pi, _ = soft_optimum(dataclasses.replace(world, reference=log_rho), BETA)
    contexts = len(world.start)
    rho, optimum = (t[paths.states, paths.actions].sum(1).reshape(contexts, -1) for t in (log_rho, log_pi))
    return rho, optimum


@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        ("shiq", {}),
        pytest.param("dpo", {"labels": "bradley_terry"}, marks=pytest.mark.proof),
        pytest.param("copg", {}, marks=pytest.mark.proof),
        pytest.param("dro", {"steps": 600}, marks=pytest.mark.proof),  # a value head beside the logits
    ],
)
def test_reaches_the_oracle_and_samples_from_it(
    algo: str,
    settings: dict[str, Any],
    engine: Callable[[Path], Generator],
    tmp_path: Path,
    record_property: Any,
) -> None:
    """Enumerated data through the whole machinery: KL(pi* || pi) <= 1e-4, and what the sampler
    draws is distributed as pi* (chi-square over completions, rare ones pooled, p > 0.001)."""
    resolved = resolve(algo, "tree", {**SETTINGS, **settings})
    spec, tree = resolved.spec, resolved.task
    assert isinstance(tree, Tree)
    source = resolve_model(spec, tree)
    policy = load_policy(source)
    data = tree.trajectories("rl", source.codec(), spec)
    reference = reference_pass(policy, source.weights_hash, data, spec.precision)
    log_rho, log_optimum = exact_optimum(tree, reference)
    shape, oracle = log_rho.shape, np.exp(log_optimum)

    train(
        policy,
        source.tokenizer(),
        prepare(data, reference, resolved.algorithm, False),
        resolved.algorithm,
        spec,
        tmp_path,
    )

    log_pi = np.array([logp.sum() for logp, _ in policy_stats(policy, data, "fp32")]).reshape(shape)
    np.testing.assert_allclose(np.exp(log_pi).sum(1), 1, atol=1e-4)
    start = (oracle * (log_optimum - log_rho)).sum(1).max()
    kl = (oracle * (log_optimum - log_pi)).sum(1).max()
    assert start > 0.3, "the reference must not be the optimum already"

    policy.model.save_pretrained(tmp_path / "policy")
    generator = engine(source.folder)
    generator.load(tmp_path / "policy")  # weights into a live engine: stale ones would fail the test
    prompts = [data[c * shape[1]].token_ids[:2] for c in range(shape[0]) for _ in range(DRAWS)]
    drawn = generator.generate(prompts, temperature=1.0, max_tokens=tree.depth, seeds=range(len(prompts)), stop_ids=())
    place = {t.token_ids: i for i, t in enumerate(data)}
    counts = np.zeros(len(data))
    for prompt, completion in zip(prompts, drawn, strict=True):
        counts[place[(*prompt, *completion.token_ids)]] += 1
    p_values = []
    for seen, best, rho in zip(counts.reshape(shape), oracle, np.exp(log_rho), strict=True):
        p_values.append(pooled_chisquare(seen, best * DRAWS))
        assert pooled_chisquare(seen, rho * DRAWS) < 1e-6, "the test must tell pi* from the reference"
    record_property("kl", float(kl))
    numbers = f"KL(pi* || rho) {start:.3f}, KL(pi* || pi) {kl:.2e}"
    print(f"\n{algo}: {numbers}, chi-square p {min(p_values):.3f} and {max(p_values):.3f}")
    assert kl <= 1e-4, "1e-2 would do; what the machinery reaches is far below"
    assert min(p_values) > 1e-3


def pooled_chisquare(counts: np.ndarray, expected: np.ndarray) -> float:
    """p of a chi-square test, completions expected fewer than five times pooled into one bin."""
    expected = expected.astype(np.float64)
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    if wanted[-1] < 5:
        order = np.argmin(wanted[:-1])
        observed[order] += observed[-1]
        wanted[order] += wanted[-1]
        observed, wanted = observed[:-1], wanted[:-1]
    return float(chisquare(observed, wanted / wanted.sum() * observed.sum()).pvalue)


def test_the_seed_of_torch_does_not_matter_to_the_tree() -> None:
    """The task's rewards come from its own seed."""
    torch.manual_seed(1)
    first = Tree(instance=3).world(0).rewards
    torch.manual_seed(2)
    np.testing.assert_array_equal(first, Tree(instance=3).world(0).rewards)
    assert not np.array_equal(first, Tree(instance=4).world(0).rewards)
