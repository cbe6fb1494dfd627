"""The one training loop for language models: ``transformers.Trainer`` with an algorithm's loss."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.needs import Mismatched
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.collation import Collator, to_batch, to_stats
from shiq_bench.data.groups import Row, prepare, seed_of, with_mismatches
from shiq_bench.models.lora import is_adapter
from shiq_bench.records.errors import UserError
from shiq_bench.records.spec import RunSpec
from shiq_bench.training.importance import weighed
from shiq_bench.training.policy import Policy
from shiq_bench.training.reference import Companions, model_inputs
from shiq_bench.training.stopping import STATE, Diverged, Interrupted, StopFlag, last_checkpoint

#: The micro-batches that a batch is cut into, under one name.
Parts = dict[str, list[dict[str, Tensor]]]

#: Beside the policy's own weights, where there are heads.
HEADS = "heads.safetensors"


@dataclass
class _Callback(TrainerCallback):
    stop: StopFlag
    updated: Callable[[int], None]
    on_step: Callable[[Mapping[str, float]], None]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.updated(state.global_step)
        if self.stop.raised:
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        self.on_step(logs or {})


@dataclass(frozen=True)
class Collect:
    """Where fresh data come from.

    Attributes:
        prompts: ids of the prompts to learn from.
        sample: ``(prompt ids, step) -> trajectories`` of the policy as it is now; those that could
            not be scored are left out. What it draws depends on the policy and its arguments alone.
    """

    prompts: Sequence[str]
    sample: Callable[[Sequence[str], int], list[Trajectory]]


class PolicyTrainer(Trainer):
    """Trainer whose loss is an :class:`~shiq_bench.api.algorithm.Algorithm`'s, divided by the global count."""

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        companions: Companions,
        spec: RunSpec,
        fresh: Callable[[Sequence[Sequence[int]], int], tuple[list[Parts], float]] | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=policy, **kwargs)
        self.algorithm = algorithm
        self.companions = companions
        self.importance = spec.importance, spec.importance_cap
        self.fresh = fresh
        # The loss is already divided by the count of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._pending: list[dict[str, float]] = []

    def _get_num_items_in_batch(self, batch_samples: list[Parts], device: torch.device) -> Tensor:
        """The algorithm's count over every micro-batch of the step, on every process."""
        counts = [self.algorithm.count(to_batch(part)) for inputs in batch_samples for part in inputs["parts"]]
        total = torch.stack(counts).sum().to(device) if counts else torch.zeros((), device=device)
        total = self.accelerator.gather(total).sum()
        return torch.where(total > 0, total, torch.ones_like(total))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of an update; fresh ones are drawn here, from the policy as it is now."""
        if self.fresh is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        asked = [batch["prompt"].tolist() for batch in itertools.islice(epoch_iterator, num_batches)]
        # Neither a sampler that draws from torch's global state nor one just opened may move it.
        with torch.random.fork_rng():
            batches, mean = self.fresh(asked, self.state.global_step)
        self._pending.append({"prompts": float(sum(map(len, asked))), "return": mean})
        return batches, self._get_num_items_in_batch(batches, device)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """A backward pass for every part; one that moves nothing where all prompts failed, for Trainer counts steps."""
        step = super().training_step
        return torch.stack(
            [step(model, part, num_items_in_batch) for part in inputs["parts"] or [{"nothing": torch.zeros(1)}]]
        ).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """``total / global count``; gradients are averaged over processes, hence their number."""
        if "mask" not in inputs:
            return 0.0 * sum(p.sum() for p in model.parameters())
        policy = self.accelerator.unwrap_model(model)
        outputs = model(**model_inputs(inputs))
        stats = to_stats(outputs, inputs, **self.companions.statistics(inputs), actions=policy.vocab)
        batch = to_batch(inputs)
        numbers: Mapping[str, Tensor] = {}
        if self.fresh is not None:
            stats, batch, numbers = weighed(stats, batch, *self.importance)
        result = self.algorithm.loss(stats, batch)
        loss = result.total * self.accelerator.num_processes / num_items_in_batch
        if not torch.isfinite(loss):
            raise Diverged(self.state.global_step, "the loss")
        logged = {name: value.item() for name, value in {**numbers, **result.metrics}.items()}
        if stats.reference is not None:
            gap = ((stats.policy.logp - stats.reference.logp).detach().abs() * batch.mask).sum() / batch.mask.sum()
            logged["abs_w"] = gap.item()
        logged["tokens"] = float(batch.mask.sum())
        logged["trajectories"] = float(len(batch.weight))
        self._pending.append(logged)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the algorithm's metrics, means over parts weighted by their action tokens.

        Raises:
            Diverged: a number is not finite: nothing goes on, or is saved.
        """
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise Diverged(self.state.global_step, "the loss" if name == "loss" else "the gradient")
        if "loss" in logs:
            for name in sorted({name for entry in self._pending for name in entry}):
                # A metric that is no number (0/0 in a batch without pairs) is left out, not written as one.
                found = [e for e in self._pending if math.isfinite(e.get(name, math.nan))]
                if name in ("tokens", "trajectories", "prompts"):
                    logs[name] = sum(e[name] for e in found)
                elif found:
                    weights = [e.get("tokens", 1.0) for e in found]
                    total = sum(e[name] * w for e, w in zip(found, weights, strict=True))
                    logs[name] = total / max(1.0, sum(weights))
            self._pending.clear()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The bare model, by ``save_pretrained`` (tied weights saved through a wrapper would crash); then the rest."""
        folder = output_dir or str(self.args.output_dir)
        policy = self.accelerator.unwrap_model(self.model)
        if state_dict is not None:
            state_dict = {k.removeprefix("model."): v for k, v in state_dict.items() if k.startswith("model.")}
        policy.model.save_pretrained(folder, state_dict=state_dict)
        save_heads(policy, Path(folder))
        self.companions.save(Path(folder))
        if self.processing_class is not None and self.args.should_save:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        policy, folder = self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint)
        if is_adapter(folder):
            from peft import load_peft_weights, set_peft_model_state_dict

            result: Any = set_peft_model_state_dict(policy.model, load_peft_weights(str(folder), device="cpu"))
            # The weights below the adapters are never there.
            if absent := sorted(n for n in result.missing_keys if "lora_" in n):
                raise UserError(f"{folder} lacks adapters of the model: {', '.join(absent)}")
        else:
            tensors: dict[str, Tensor] = {}
            for file in sorted(folder.glob("model*.safetensors")):
                tensors |= load_file(file)
            missing = set(policy.model.load_state_dict(tensors, strict=False).missing_keys)
            # save_pretrained leaves out what is tied; anything else that is missing would stay untrained unnoticed.
            if missing - set(policy.model.all_tied_weights_keys):
                raise UserError(f"{folder} lacks weights of the model: {', '.join(sorted(missing))}")
            policy.model.tie_weights()
        if policy.heads is not None:
            policy.heads.load_state_dict(load_file(folder / HEADS))
        self.companions.load(folder)


def save_heads(policy: Policy, folder: Path) -> None:
    """The heads of a policy that has any, as :data:`HEADS` in a folder that exists."""
    if policy.heads is not None:
        save_file(policy.heads.state_dict(), folder / HEADS)


def train(
    policy: Policy,
    tokenizer: Any,
    groups: Sequence[Sequence[Row]],
    algorithm: Algorithm,
    spec: RunSpec,
    folder: Path,
    *,
    resume: bool = False,
    stop: StopFlag | None = None,
    on_step: Callable[[Mapping[str, float]], None] = lambda logs: None,
    behaviour: Policy | None = None,
    collect: Collect | None = None,
) -> list[dict[str, float]]:
    """Train ``policy`` in place, adding the heads that ``algorithm`` needs.

    Args:
        groups: rows of each prompt; a step sees ``spec.groups_per_step`` whole groups.
        folder: where checkpoints go.
        resume: continue from the last complete checkpoint of ``folder``, if there is one.
        stop: set it to end after the current step, with a checkpoint.
        behaviour: the fitted behaviour model, for algorithms that need one.
        collect: fresh data at every update, in place of ``groups``.

    Returns:
        The numbers of each update.

    Raises:
        Diverged: the loss or gradient became NaN or infinite; earlier checkpoints stay.
        Interrupted: ``stop`` was set.
        UserError: the global batch cannot be cut as asked, or there is nothing to learn from.
    """
    stop = stop or StopFlag()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "several processes for one run are not supported: start it without torchrun or accelerate launch"
        )
    micro = spec.micro_groups or spec.groups_per_step
    if collect is None and (not groups or not all(groups)):
        which = "no prompt has a trajectory" if not any(groups) else "a prompt has no trajectory"
        raise UserError(f"there is nothing to train on: {which}")
    policy.equip(algorithm, spec.seed)
    collator = Collator(algorithm, policy.layout, spec.labels, spec.data_seed, spec.pairs, spec.tokens_per_pass)
    if groups and spec.tokens_per_pass:  # before the first update, not when the largest comes up
        largest = sorted(groups, key=collator.together)[-spec.groups_per_step if algorithm.couples_groups else -1 :]
        collator.parts(largest)
    companions = Companions(policy, algorithm, behaviour, live_reference=collect is not None, precision=spec.precision)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=spec.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=spec.groups_per_step // micro,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.schedule if spec.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(spec.warmup * spec.steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        bf16=spec.precision == "bf16",
        seed=spec.seed,
        data_seed=spec.seed,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=spec.save_every,
        save_total_limit=2,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=trackers(spec),
        run_name=spec.run_id,
        log_level="error",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel would cut our flat tensors across devices
    with _tracked_in(folder.parent / "tracker"):
        trainer = PolicyTrainer(
            policy,
            algorithm,
            companions,
            spec,
            None if collect is None else lambda asked, step: _collected(collect, collator, spec, asked, step),
            args=arguments,
            train_dataset=groups if collect is None else range(len(collect.prompts)),
            data_collator=(lambda batch: {"parts": collator.parts(batch)})
            if collect is None
            else (lambda numbers: {"prompt": torch.tensor(numbers)}),
            processing_class=tokenizer,
            callbacks=[_Callback(stop, lambda step: companions.update(policy, step), on_step)],
        )
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(folder) if resume else None
    if checkpoint is not None:
        state = json.loads((checkpoint / STATE).read_text())
        if state["global_step"] >= spec.steps:  # Trainer would do one update more before it looks
            trainer._load_from_checkpoint(str(checkpoint))
            return _history(state["log_history"])
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Diverged as error:
        error.history = _history(trainer.state.log_history)
        raise
    finally:
        # Accelerate wraps forward in autocast; left in place, scoring would quietly be in bfloat16.
        trainer.accelerator.unwrap_model(policy, keep_fp32_wrapper=False)
    if stop.raised:
        raise Interrupted(trainer.state.global_step)
    return _history(trainer.state.log_history)


def trackers(spec: RunSpec) -> list[str]:
    """The trackers asked for.

    Raises:
        UserError: one is not known, or not installed here.
    """
    from transformers.integrations import get_available_reporting_integrations

    here = get_available_reporting_integrations() if spec.track else []
    for name in (found := [name.strip() for name in spec.track.split(",") if name.strip()]):
        if name not in here:
            installed = ", ".join(here) or "none"
            raise UserError(f"track={spec.track}: {name} is no tracker that is installed here; those are: {installed}")
    return found


@contextlib.contextmanager
def _tracked_in(folder: Path) -> Iterator[None]:
    """Have TensorBoard write to a folder of the run: its callback takes it from the environment, when it is made."""
    name = "TENSORBOARD_LOGGING_DIR"
    before = os.environ.get(name)
    os.environ[name] = before or str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _collected(
    collect: Collect, collator: Collator, spec: RunSpec, asked: Sequence[Sequence[int]], step: int
) -> tuple[list[Parts], float]:
    """Fresh micro-batches, one for each list of prompt numbers and empty where nothing was scored; their mean return.

    Raises:
        UserError: not one episode was scored, or the sampler does not say what importance weights need.
    """
    names = [[collect.prompts[i] for i in batch] for batch in asked]
    found = [t for t in collect.sample([p for batch in names for p in batch], step) if any(t.action_mask)]
    if not found:
        raise UserError(
            f"not one fresh episode of {sum(map(len, names))} prompts could be scored at step {step}: "
            "there is nothing to learn from"
        )
    if spec.importance != "none" and any(t.sampler_logp is None or any(map(math.isnan, t.sampler_logp)) for t in found):
        raise UserError(
            f"importance={spec.importance} needs the log-probabilities of the sampler, and engine {spec.engine} gives "
            "none: leave importance out"
        )
    algorithm = collator.algorithm
    by_prompt, mismatches = with_mismatches(found, spec.max_length) if algorithm.need(Mismatched) else (found, None)
    rows = prepare(by_prompt, None, algorithm, spec.center_rewards, mismatches)
    groups = {group[0].trajectory.prompt_id: group for group in rows}
    # Labels that are drawn are drawn anew at every update.
    collator = replace(collator, seed=seed_of(spec.seed, step))
    kept = [[groups[p] for p in batch if p in groups] for batch in names]
    mean = sum(t.total_reward for t in found) / len(found)
    return [{"parts": collator.parts(batch)} for batch in kept], mean


def _history(log: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The numbers of each update, out of what Trainer logs."""
    return [{k: v for k, v in entry.items() if isinstance(v, int | float)} for entry in log if "loss" in entry]
