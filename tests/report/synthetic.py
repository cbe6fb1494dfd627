"""Run records made of seeded noise, shaped like those of a real run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shiq_bench.records.record import Evaluation, Metric, RunRecord, Status
from shiq_bench.records.spec import RunSpec
from shiq_bench.stats.clustered import summarise

METRICS = (
    Metric("reward", "higher", "mean reward", headline=True),
    Metric("turn_success", "higher", "turn success", percent=True, headline=True),
    Metric("entry_accuracy", "higher", "entry accuracy", percent=True, headline=True),
    Metric("unparsable", "lower", "unparsable answers", percent=True),
    Metric("forced_end", "lower", "forced ends", percent=True),
)

NAMES = [m.name for m in METRICS] + ["length", "truncated"]
PROMPTS = {"rl": 80, "heldout": 40}
SMALL = {"rl": 8, "heldout": 5}


def _examples(
    split: str, mode: str, skill: float, policy: str, generator: np.random.Generator, prompts: int, samples: int
) -> list[dict[str, Any]]:
    # What makes a prompt hard is the same for every policy.
    hardness = np.random.default_rng(len(split)).normal(size=prompts)
    examples = []
    for p in range(prompts):
        turns = 3 + p % 3
        for _ in range(1 if mode == "greedy" else samples):
            chance = 1 / (1 + np.exp(hardness[p] + 1.2 - skill))
            passed = int(np.cumprod(generator.random(turns) < chance).sum())
            example: dict[str, Any] = {
                "prompt_id": f"{split}_{p:03d}",
                "reward": float(passed),
                "turn_success": float(passed),
                "turn_success/n": float(turns),
                "entry_accuracy": float(passed == turns),
                "unparsable": float(generator.random() < 0.04),
                "forced_end": 0.0,
                "length": float(generator.integers(60, 160)),
                "truncated": float(generator.random() < 0.02),
            }
            if policy == "trained" and mode == "sampled":
                kl = float(generator.gamma(4.0, 1 + skill))
                example |= {
                    "kl": kl,
                    "kl_k1": kl + float(generator.normal()),
                    "kl_token": kl,
                    "kl_token/n": example["length"],
                }
            examples.append(example)
    return examples


def evaluations(
    skill: float, seed: int, step: int, prompts: Mapping[str, int] = PROMPTS, samples: int = 4
) -> list[Evaluation]:
    """Reference and trained, two splits, two modes; the reference does not depend on the seed."""
    found = []
    for split, count in prompts.items():
        for mode in ("greedy", "sampled"):
            for policy in ("reference", "trained"):
                gain = skill if policy == "trained" else 0.0
                key = [len(split), len(mode), seed + 1 if policy == "trained" else 0, int(100 * gain)]
                examples = _examples(split, mode, gain, policy, np.random.default_rng(key), count, samples)
                names = [*NAMES, *(["kl", "kl_k1", "kl_token"] if "kl" in examples[0] else [])]
                at = step if policy == "trained" else 0
                found.append(Evaluation(policy, split, mode, at, summarise(examples, names), tuple(examples)))
    return found


def record(
    algo: str = "shiq",
    seed: int = 0,
    *,
    skill: float = 0.6,
    status: Status = "done",
    error: str | None = None,
    deviations: Sequence[str] = (),
    source_hash: str = "5ee0c0de5ee0c0de",
    prompts: Mapping[str, int] = PROMPTS,
    **spec: Any,
) -> RunRecord:
    """A finished run, unless told otherwise."""
    options = {"algo_options": {"beta": 0.1}, "task_options": {"category": "multi_turn_base"}}
    made = RunSpec(algo=algo, task="bfcl", seed=seed, **{**options, **spec})
    found = evaluations(skill, seed, made.steps, prompts, made.eval_samples)
    if status != "done":
        found = [e for e in found if e.policy == "reference"]
    return RunRecord(
        run_id=made.run_id,
        status=status,
        spec=made,
        source_hash=source_hash,
        evaluations=tuple(found),
        deviations=tuple(deviations),
        error=error,
        packages={"torch": "2.13.0"},
        gaps={"logp_mean": 0.001},
    )


def several() -> list[RunRecord]:
    """Three methods with all that can happen to runs: seeds, failures, a deviation."""
    return [
        *(record("shiq", s, skill=0.9, prompts=SMALL) for s in range(6)),
        *(record("dpo", s, skill=0.1, prompts=SMALL) for s in range(6)),
        record("dpo", 6, status="diverged", error="loss is nan at step 31\ntrace", prompts=SMALL),
        record("sft", 0, skill=0.1, algo_options={}, deviations=["clipped 3% of the ratios"], prompts=SMALL),
        record("sft", 1, status="failed", algo_options={}, error="out of memory", prompts=SMALL),
        record("sft", 2, status="started", algo_options={}, prompts=SMALL),
    ]
