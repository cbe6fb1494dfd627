"""One evaluation: episodes of a policy on a split, the task's verdicts, and KL to the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, Literal

import numpy as np
from torch import Tensor

from shiq_bench.api.task import Codec, Episode, Task
from shiq_bench.api.trajectory import Score, Trajectory
from shiq_bench.generation.generator import Generator
from shiq_bench.generation.rollout import Progress, rollout
from shiq_bench.records.errors import UserError
from shiq_bench.records.record import Evaluation
from shiq_bench.records.spec import RunSpec
from shiq_bench.stats.clustered import summarise
from shiq_bench.training.policy import Scorer
from shiq_bench.training.reference import model_inputs, over_actions

#: Mean gap per token, in nats, between the sampler's log-probabilities and the scoring path's,
#: above which a run fails: the samples would come from another policy than the one scored.
MAX_GAP = 0.05

Mode = Literal["greedy", "sampled"]


def sample(
    task: Task,
    codec: Codec,
    generator: Generator,
    prompt_ids: Sequence[str],
    spec: RunSpec,
    *,
    n: int,
    temperature: float,
    seed: str,
    source: str,
    on_progress: Progress = lambda done, total: None,
) -> list[tuple[Trajectory, Score]]:
    """``n`` fresh scored episodes a prompt, in the order of the prompts; all live ones are stepped together."""
    episodes: list[Episode] = task.episodes([p for p in prompt_ids for _ in range(n)], codec, spec.max_length)
    if episodes and all(episode.done for episode in episodes):
        shortest = min(len(episode.transcript.token_ids) for episode in episodes)
        raise UserError(
            f"no prompt leaves room for an answer: the shortest of {len(prompt_ids)} takes {shortest} tokens and "
            f"max_length is {spec.max_length}: raise max_length"
        )
    rollout(
        task,
        episodes,
        generator,
        codec,
        temperature=temperature,
        max_tokens=spec.max_tokens,
        max_length=spec.max_length,
        seed=seed,
        on_progress=on_progress,
    )
    return task.finish(episodes, source)


def evaluate(
    task: Task,
    codec: Codec,
    generator: Generator,
    policy: Scorer,
    reference: Scorer | None,
    spec: RunSpec,
    *,
    who: str,
    split: str,
    mode: Mode,
    step: int,
    on_progress: Progress = lambda done, total: None,
    against: Sequence[Mapping[str, Any]] = (),
) -> tuple[Evaluation, float]:
    """Evaluate one policy on one split.

    Args:
        against: the reference's episodes in the same place, for metrics that compare the two.
        policy: what the generator samples from, as the transformers models that score it.
        reference: where given, KL to it is measured on the sampled paths.

    Returns:
        The evaluation, and the mean absolute gap between the sampler's and the scorer's
        log-probabilities, in nats a token.

    Raises:
        UserError: the gap exceeds :data:`MAX_GAP`.
    """
    prompts = task.prompts(split)[: spec.eval_limit or None]
    greedy = mode == "greedy"
    drawn = sample(
        task, codec, generator, prompts, spec,
        n=1 if greedy else spec.eval_samples,
        temperature=0.0 if greedy else 1.0,
        # The purpose is part of the seed: evaluation samples are fresh even where data_seed is the same number.
        seed=f"evaluation {split} {spec.eval_seed}", source=who, on_progress=on_progress,
    )  # fmt: skip
    gap, paths = score_paths([t for t, _ in drawn], policy, reference if mode == "sampled" else None)
    if gap > MAX_GAP:
        raise UserError(
            f"the sampler's log-probabilities are {gap:.3f} nats a token off the scoring path's (limit {MAX_GAP}): "
            "the sampled policy is not the scored one; try --set engine=hf, or another dtype"
        )
    examples: list[dict[str, Any]] = []
    for (trajectory, score), path in zip(drawn, paths, strict=True):
        # Where nothing was said, nothing was cut, and nothing can have moved away from the reference.
        said = any(trajectory.action_mask)
        about = {"truncated": float(trajectory.truncated), **path} if said else {}
        examples.append(
            {
                "prompt_id": trajectory.prompt_id,
                **{k: float(v) for k, v in score.metrics.items()},
                **{k: v if math.isfinite(v) else None for k, v in about.items()},
                "details": dict(score.details),
            }
        )
    known = [*(m.name for m in task.metrics if not m.exact), "truncated", "kl", "kl_k1", "kl_token"]
    names = [name for name in known if any(name in example for example in examples)]
    metrics = summarise(examples, names)
    return Evaluation(who, split, mode, step, {**metrics, **task.aggregate(metrics, examples, against)}, examples), gap


def evaluate_stored(
    policy: Scorer,
    trajectories: Sequence[Trajectory],
    reference: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    split: str,
    step: int,
) -> Evaluation:
    """How the policy's implicit reward, w_y = sum_t ln pi - ln rho, orders stored answers that somebody has judged.

    One example a prompt: ``preference_accuracy``, the share of its pairs of unequal worth in which the better answer
    has the larger w (ties half); ``preference_margin``, the mean of w_better - w_worse (nats); and ``logratio_data``,
    the mean w, which is no KL, for somebody else said these answers.

    Args:
        reference: the reference's ``logp`` and ``lse`` over the actions of each trajectory, in float32. ``[T]`` each
    """

    def compute(inputs: dict[str, Tensor]) -> list[Tensor]:
        return [policy(**model_inputs(inputs))["logp"]]

    policy.eval()
    groups: dict[str, list[tuple[float, float]]] = {}
    columns = over_actions(trajectories, policy, compute)
    for t, (logp,), (ref_logp, _) in zip(trajectories, columns, reference, strict=True):
        groups.setdefault(t.prompt_id, []).append((t.preference_score, float((logp - ref_logp).sum(dtype=np.float64))))
    examples: list[dict[str, Any]] = []
    for prompt, judged in groups.items():
        gaps = [w - v for worth, w in judged for other, v in judged if worth > other]
        if gaps:
            examples.append(
                {
                    "prompt_id": prompt,
                    "preference_accuracy": sum(0.5 if gap == 0 else gap > 0 for gap in gaps) / len(gaps),
                    "preference_margin": sum(gaps) / len(gaps),
                    "logratio_data": sum(w for _, w in judged) / len(judged),
                }
            )
    names = ("preference_accuracy", "preference_margin", "logratio_data")
    return Evaluation("trained", split, "stored", step, summarise(examples, names), examples)


def score_paths(
    trajectories: Sequence[Trajectory], policy: Scorer, reference: Scorer | None
) -> tuple[float, list[dict[str, float]]]:
    """The scoring path: float32, one model pass a policy.

    Returns:
        The mean gap to the sampler's log-probabilities (nats a token), and for each trajectory
        ``kl`` (exact, summed over its actions: Rao-Blackwellised along the path), ``kl_k1`` (sum of
        log-ratios, its check) and ``kl_token`` with its count ``kl_token/n``; empty without a reference.
    """

    def compute(inputs: dict[str, Tensor]) -> list[Tensor]:
        if reference is None:
            return [policy(**model_inputs(inputs))["logp"]]
        logp, ref_logp, kl = policy.compare(reference, inputs)
        return [logp, kl, logp - ref_logp]

    policy.eval()
    columns = over_actions(trajectories, policy, compute)
    gaps: list[np.ndarray] = []
    paths: list[dict[str, float]] = []
    for trajectory, parts in zip(trajectories, columns, strict=True):
        if trajectory.sampler_logp is not None:
            gaps.append(np.abs(np.array([*compress(trajectory.sampler_logp, trajectory.action_mask)]) - parts[0]))
        if reference is None:
            paths.append({})
        else:
            kl = float(parts[1].sum())
            paths.append({"kl": kl, "kl_k1": float(parts[2].sum()), "kl_token": kl, "kl_token/n": float(len(parts[1]))})
    flat = np.concatenate(gaps) if gaps else np.zeros(0)
    return float(flat.mean()) if flat.size else 0.0, paths
