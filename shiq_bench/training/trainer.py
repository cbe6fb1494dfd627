"""The one training loop for language models: ``transformers.Trainer`` with an algorithm's loss."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from shiq_bench.api import Algorithm
from shiq_bench.records import RunSpec, UserError
from shiq_bench.training.data import Collator, Row, to_batch, to_stats
from shiq_bench.training.policy import Policy
from shiq_bench.training.reference import model_inputs

#: The last file of a checkpoint to be written.
STATE = "trainer_state.json"


class Diverged(Exception):
    """The loss or the gradient is no longer a finite number."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} is not finite at step {step}")
        self.step = step
        self.history: list[dict[str, float]] = []


class Interrupted(Exception):
    """Training stopped on request, after a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted at step {step}")
        self.step = step


class StopFlag:
    """A signal handler: raises a flag that training reads between steps; elsewhere it stops at once."""

    def __init__(self) -> None:
        self.active = False
        self.raised = False

    def __call__(self, *_: Any) -> None:
        if self.raised or not self.active:  # asked twice: do not wait for the step to end
            raise KeyboardInterrupt
        self.raised = True


class _Callback(TrainerCallback):
    def __init__(self, stop: StopFlag, on_step: Callable[[Mapping[str, float]], None]) -> None:
        self.stop = stop
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.stop.raised:
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        self.on_step(logs or {})


class PolicyTrainer(Trainer):
    """Trainer whose loss is an :class:`~shiq_bench.api.Algorithm`'s, divided by the global count."""

    def __init__(self, policy: Policy, algorithm: Algorithm, **kwargs: Any) -> None:
        super().__init__(model=policy, **kwargs)
        self.algorithm = algorithm
        # The loss is already divided by the count of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._pending: list[dict[str, float]] = []

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """The algorithm's count over every micro-batch of the step, on every process."""
        counts = [self.algorithm.count(to_batch(inputs)) for inputs in batch_samples]
        total = torch.stack(counts).sum().to(device) if counts else torch.zeros((), device=device)
        total = self.accelerator.gather(total).sum()
        return torch.where(total > 0, total, torch.ones_like(total))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """``total / global count``; gradients are averaged over processes, hence their number."""
        outputs = model(**model_inputs(inputs))
        stats = to_stats(outputs, inputs)
        batch = to_batch(inputs)
        result = self.algorithm.loss(stats, batch)
        loss = result.total * self.accelerator.num_processes / num_items_in_batch
        if not torch.isfinite(loss):
            raise Diverged(self.state.global_step, "the loss")
        logged = {name: value.item() for name, value in result.metrics.items()}
        if stats.reference is not None:
            gap = ((stats.policy.logp - stats.reference.logp).detach().abs() * batch.mask).sum() / batch.mask.sum()
            logged["abs_w"] = gap.item()
        logged["tokens"] = float(batch.mask.sum())
        logged["trajectories"] = float(len(batch.weight))
        self._pending.append(logged)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the algorithm's metrics; refuse to go on, or to save, once a number is not finite."""
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise Diverged(self.state.global_step, "the loss" if name == "loss" else "the gradient")
        if "loss" in logs:
            for name in sorted({name for entry in self._pending for name in entry}):
                # A metric that is no number (0/0 in a batch without pairs) is left out, not written as one.
                found = [e for e in self._pending if math.isfinite(e.get(name, math.nan))]
                if name in ("tokens", "trajectories"):
                    logs[name] = sum(e[name] for e in found)
                elif found:
                    logs[name] = sum(e[name] * e["tokens"] for e in found) / max(1.0, sum(e["tokens"] for e in found))
            self._pending.clear()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The bare model, by ``save_pretrained``: tied weights saved through a wrapper would crash."""
        folder = output_dir or self.args.output_dir
        policy = self.accelerator.unwrap_model(self.model)
        if state_dict is not None:
            state_dict = {k.removeprefix("model."): v for k, v in state_dict.items() if k.startswith("model.")}
        policy.model.save_pretrained(folder, state_dict=state_dict)
        if self.processing_class is not None and self.args.should_save:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        policy = self.accelerator.unwrap_model(model or self.model)
        tensors: dict[str, Tensor] = {}
        for file in sorted(Path(resume_from_checkpoint).glob("*.safetensors")):
            tensors |= load_file(file)
        missing = set(policy.model.load_state_dict(tensors, strict=False).missing_keys)
        # save_pretrained leaves out what is tied; anything else that is missing would stay untrained unnoticed.
        if missing - set(policy.model.all_tied_weights_keys):
            raise UserError(f"{resume_from_checkpoint} lacks weights of the model: {', '.join(sorted(missing))}")
        policy.model.tie_weights()


@dataclass(frozen=True)
class TrainResult:
    """What training left behind: one dict of numbers an update, and the last update's number."""

    history: list[dict[str, float]]
    step: int


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: ``trainer_state.json`` is the last file of one to be written."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        try:
            found.append((json.loads((path / STATE).read_text())["global_step"], path))
        except (OSError, ValueError, KeyError):
            continue
    return max(found)[1] if found else None


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
) -> TrainResult:
    """Train ``policy`` in place.

    Args:
        groups: rows of each prompt; a step sees ``spec.groups_per_step`` whole groups.
        folder: where checkpoints go.
        resume: continue from the last complete checkpoint of ``folder``, if there is one.
        stop: set it to end after the current step, with a checkpoint.

    Raises:
        Diverged: the loss or gradient became NaN or infinite; earlier checkpoints stay.
        Interrupted: ``stop`` was set.
        UserError: the global batch cannot be cut as asked.
    """
    stop = stop or StopFlag()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "several processes for one run are not supported: start it without torchrun or accelerate launch"
        )
    micro = spec.micro_groups or spec.groups_per_step
    if not groups:
        raise UserError("there is nothing to train on: no prompt has a trajectory")
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
        report_to=[],
        log_level="error",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel would cut our flat tensors across devices
    trainer = PolicyTrainer(
        policy,
        algorithm,
        args=arguments,
        train_dataset=groups,
        data_collator=Collator(algorithm, spec.layout, spec.pair_labels),
        processing_class=tokenizer,
        callbacks=[_Callback(stop, on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(folder) if resume else None
    if checkpoint is not None:
        state = json.loads((checkpoint / STATE).read_text())
        if state["global_step"] >= spec.steps:  # Trainer would do one update more before it looks
            trainer._load_from_checkpoint(str(checkpoint))
            return TrainResult(_history(state["log_history"]), state["global_step"])
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
    return TrainResult(_history(trainer.state.log_history), trainer.state.global_step)


def _history(log: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The numbers of each update, out of what Trainer logs."""
    return [{k: v for k, v in entry.items() if isinstance(v, int | float)} for entry in log if "loss" in entry]
