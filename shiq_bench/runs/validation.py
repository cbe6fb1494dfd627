"""What an algorithm demands of a run, checked before anything is loaded, and what a record must say about it."""

from __future__ import annotations

from pathlib import Path

from shiq_bench.api.needs import BehaviourModel, Labels, Mismatched, OnPolicy, Pairs, Reference, Rewards
from shiq_bench.data.dataset import check_dataset
from shiq_bench.models.lora import parse_lora
from shiq_bench.records.errors import UserError
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.resolved import Resolved

#: Share of the reference's episodes outside the data from which a method that needs support is warned of.
MISSING = 1e-3


def missing_support(algo: str, missing: float) -> str:
    """The warning that ``missing`` of the reference's episodes are nowhere in the behaviour's support."""
    return (
        f"{algo} requires data covering the reference policy; {missing:.1%} of the reference's episodes are "
        "uncovered, and nothing is learned there"
    )


def check_demands(resolved: Resolved) -> None:
    """Refuse settings that cannot serve the algorithm or the task, on tables and on language models alike.

    Raises:
        UserError: with what to type instead.
    """
    spec, algorithm, fresh = resolved.spec, resolved.algorithm, resolved.fresh
    if spec.collect == "offline" and algorithm.need(OnPolicy) and not spec.allow_off_policy:
        raise UserError(
            f"{spec.algo} learns from its own samples; stored trajectories bias it: "
            "add --allow-off-policy to do it all the same, marked in the record"
        )
    if spec.data and fresh:
        instead = "" if spec.collect == "fresh" else ", or add --allow-off-policy"
        raise UserError(
            f"{spec.algo} is to learn from fresh samples of its own, and a dataset is stored: leave out --data{instead}"
        )
    if spec.importance != "none" and not (fresh and algorithm.need(OnPolicy)):
        data = f"{spec.algo} learns from the data of others too" if fresh else "data are stored"
        raise UserError(
            f"importance={spec.importance} weighs the fresh samples of an on-policy method, and {data}: "
            "leave importance out"
        )
    if spec.importance_cap != RunSpec.importance_cap and spec.importance == "none":
        raise UserError(f"importance_cap={spec.importance_cap} truncates nothing: set importance to token or sequence")
    resolved.task.validate_run(spec, algorithm, fresh)
    if spec.model != "table":  # tables are evaluated whole
        for split in spec.splits:
            resolved.task.prompts(split)
    if spec.lora:
        parse_lora(spec.lora)
    if spec.lm_eval:
        from shiq_bench.evaluation.lm_eval_tasks import check_tasks, task_names  # ten seconds of imports

        check_tasks(task_names(spec.lm_eval))
    if spec.data:
        check_dataset(Path(spec.data), resolved.task)
    if spec.seeds > 1 and spec.model != "table":
        raise UserError(
            f"seeds is {spec.seeds}: only tables train several at once; leave it at 1 and vary --seed, one run each"
        )
    rewards = algorithm.need(Rewards)
    if rewards and rewards.unit and spec.center_rewards:
        raise UserError(f"{spec.algo} wants returns in [0, 1], and centred ones are not: leave out --center-rewards")
    if algorithm.couples_groups and spec.micro_groups not in (0, spec.groups_per_step):
        raise UserError(
            f"{spec.algo} estimates over the whole batch, and micro_groups={spec.micro_groups} cuts it: leave it out"
        )
    if not fresh:
        return
    if algorithm.need(BehaviourModel):
        raise UserError(
            f"{spec.algo} needs a model of stored data, so it cannot collect fresh ones: set collect=offline"
        )
    each, least = resolved.fresh_samples, 2 if algorithm.need(Pairs) or algorithm.need(Labels) else 1
    if each < least:
        raise UserError(f"{each} fresh samples a prompt, and {spec.algo} needs {least}: set samples={least} or more")
    if spec.model != "table" and algorithm.need(Mismatched):
        prompts, batch = len(resolved.task.prompts("rl")), spec.groups_per_step
        if min(prompts, prompts % batch or batch) < 2:
            raise UserError(
                f"{spec.algo} needs two prompts in every batch, and {prompts} prompts in batches of {batch} leave one "
                "alone: choose another groups_per_step"
            )


def deviations(resolved: Resolved) -> list[str]:
    """What a reader of the record must know before believing its numbers."""
    spec, algorithm, fresh = resolved.spec, resolved.algorithm, resolved.fresh
    out = [*algorithm.deviations, *resolved.task.validate_run(spec, algorithm, fresh)]
    need = algorithm.need(Rewards)
    if need and spec.center_rewards:
        out.append("rewards centred by the prompt's mean return")
    if need and need.unit and resolved.task.largest_return != 1:
        out.append(f"rewards divided by {resolved.task.largest_return:g}, the largest return")
    if algorithm.need(OnPolicy) and not fresh:
        out.append("an on-policy method, trained on stored trajectories")
    reference = algorithm.need(Reference)
    if reference and reference.refresh and not fresh:
        out.append("the reference is refreshed and the data are not: they are stored, from another policy")
    return out
