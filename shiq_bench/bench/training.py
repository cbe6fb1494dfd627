"""Updates of a language model on preference pairs or groups of answers, beside TRL on the same token ids."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import SequentialSampler

from shiq_bench.api.registry import algorithms
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.bench.process import fresh_process, matrix_rate, peak
from shiq_bench.data.collation import TOKENS, Collator, Layout
from shiq_bench.data.groups import prepare
from shiq_bench.records.errors import UserError
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.progress import LiveReport

#: Forms in the order they are measured.
FORMS = ("trl", "padded", "tree")

#: Tokens held together above which activations are computed again in the backward pass, whoever trains: those of the
#: default model in float32 take 2.5 GB a thousand tokens.
HELD = 2 * TOKENS


#: Update by update, of each forward pass the tokens laid out and the positions whose logits are asked for.
Passes = list[list[tuple[int, int]]]


@dataclass(frozen=True)
class Work:
    """What is trained on what.

    Attributes:
        model: a folder, or "" for random weights in the shape of a Llama of 135 M parameters.
        data: JSON lines of ``prompt``, ``chosen`` and ``rejected``, or "" for random ids of the sizes below.
        prompt, answer: tokens, the former within a fifth of it, the latter within a half.
        answers: to each prompt.
        prompts: in an update.
        updates: measured, behind one that is not; in the order of the prompts, whoever trains.
        max_length: of prompt and answer, where they are read.
        width, layers, vocabulary: of a random model.
        tokens_per_pass: the run's setting.
    """

    model: str = ""
    algo: str = "dpo"
    data: str = ""
    prompt: int = 600
    answer: int = 35
    answers: int = 2
    prompts: int = 4
    updates: int = 3
    precision: str = "fp32"
    max_length: int = 512
    learning_rate: float = 1e-6
    width: int = 576
    layers: int = 30
    vocabulary: int = 49_152
    tokens_per_pass: int = 0

    def groups(self) -> list[list[Trajectory]]:
        """Trajectories of each prompt, the first of them the best."""
        count = self.prompts * (self.updates + 1)
        sequences = self._read(count) if self.data else self._drawn(count)
        made = []
        for n, (prompt, answers) in enumerate(sequences):
            group = []
            for k, answer in enumerate(answers):
                mask = (False,) * len(prompt) + (True,) * len(answer)
                rewards = (0.0,) * (len(mask) - 1) + (float(k == 0),)
                group.append(Trajectory(f"prompt {n}", (*prompt, *answer), mask, rewards))
            made.append(group)
        return made

    def _drawn(self, count: int) -> list[tuple[list[int], list[list[int]]]]:
        rng = random.Random(0)

        def some(least: float, most: float) -> list[int]:
            drawn = range(rng.randint(round(least), round(most)))
            return [rng.randrange(100, min(self.vocabulary, 40_000)) for _ in drawn]

        return [
            (
                some(self.prompt * 5 / 6, self.prompt * 7 / 6),
                [some(self.answer / 2, self.answer * 3 / 2) for _ in range(self.answers)],
            )
            for _ in range(count)
        ]

    def _read(self, count: int) -> list[tuple[list[int], list[list[int]]]]:
        from transformers import AutoTokenizer

        from shiq_bench.records.files import read_lines

        if not self.model:
            raise UserError("--data is text, and a random model has no tokenizer: add --model FOLDER")
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        made = []
        for line in read_lines(Path(self.data)):
            row = json.loads(line)
            texts = [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[name]}]
                     for name in ("chosen", "rejected")]  # fmt: skip
            opening = tokenizer.apply_chat_template(texts[0][:1], add_generation_prompt=True, return_dict=False)
            wholes = [tokenizer.apply_chat_template(text, return_dict=False)[: self.max_length] for text in texts]
            answers = [whole[len(opening) :] for whole in wholes]
            if all(answers) and answers[0] != answers[1]:
                made.append((opening, answers))
            if len(made) == count:
                return made
        raise UserError(
            f"{self.data} holds {len(made)} pairs that fit; {count} are needed: lower --updates or --prompts"
        )


def load(work: Work) -> Any:
    """The model, in float32, on the GPU where there is one."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    if work.model:
        model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(
                vocab_size=work.vocabulary, hidden_size=work.width, intermediate_size=work.width * 8 // 3,
                num_hidden_layers=work.layers, num_attention_heads=work.width // 64,
                num_key_value_heads=max(1, work.width // 192), max_position_embeddings=8192, tie_word_embeddings=True,
            )
        )  # fmt: skip
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def measure(form: str, **work: Any) -> dict[str, float]:
    """Updates in this process, the first not counted.

    Returns:
        ``tokens`` of the trajectories, an update; ``seconds``, an update; ``mib``, the process's peak; ``laid``, tokens
        that the form computes, padding included, an update; ``most``, of those held together; ``gflop`` that they take,
        an update, attention aside: 6 a weight and token of the body, and of the head where logits are asked for;
        ``loss``, of the last update.
    """
    task = Work(**work)
    groups = task.groups()
    marks, losses = [], []

    def on_step(logs: Mapping[str, float]) -> None:
        if "loss" in logs:
            marks.append(time.perf_counter())
            losses.append(logs["loss"])

    model = load(task)
    run = partial(_trl, task, model) if form == "trl" else partial(_ours, task, model, layout=cast(Layout, form))
    passes = run(groups, on_step=on_step)
    measured = [done for update in passes[1:] for done in update]
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in model.base_model.parameters()) - model.get_input_embeddings().weight.numel()
    tokens = sum(len(t.token_ids) for group in groups[task.prompts :] for t in group)
    return {
        "tokens": tokens / task.updates,
        "seconds": (marks[-1] - marks[0]) / task.updates,
        "mib": peak("cuda" if torch.cuda.is_available() else "cpu"),
        "laid": sum(laid for laid, _ in measured) / task.updates,
        "most": max(laid for update in passes for laid, _ in update),
        "gflop": 6e-9 * sum(body * laid + head * asked for laid, asked in measured) / task.updates,
        "loss": losses[-1],
    }


def _ours(
    work: Work, model: Any, groups: Sequence[Sequence[Trajectory]], layout: Layout, on_step: Callable[..., None]
) -> Passes:
    """Our trainer in one layout, the reference's statistics computed before."""
    from shiq_bench.models.trees import buckets
    from shiq_bench.training.policy import Policy
    from shiq_bench.training.reference import policy_stats
    from shiq_bench.training.trainer import PolicyTrainer, train

    algorithm = algorithms.get(work.algo)()
    policy = Policy(model, model.config.vocab_size, layout)
    trajectories = [t for group in groups for t in group]
    stats = policy_stats(policy, trajectories, work.precision)
    rows = prepare(trajectories, stats, algorithm, False)
    spec = RunSpec(
        work.algo, "", steps=work.updates + 1, groups_per_step=work.prompts, learning_rate=work.learning_rate,
        schedule="constant", warmup=0.0, precision=work.precision,  # type: ignore[arg-type]
        save_every=10**9, max_length=1 << 20, tokens_per_pass=work.tokens_per_pass,
    )  # fmt: skip
    collator = Collator(algorithm, layout, "hard", tokens=work.tokens_per_pass)
    passes: Passes = []
    for start in range(0, len(rows), work.prompts):
        passes.append([])
        for part in collator.parts(rows[start : start + work.prompts]):
            filled = part["attention_mask" if layout == "padded" else "end"] > 0
            laid = sum(len(found) * longest for found, longest in buckets(filled.sum(1).tolist()))
            passes[-1].append((laid, len(part["targets"])))
    if max(laid for update in passes for laid, _ in update) > HELD:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    PolicyTrainer._get_train_sampler = _in_order  # this process measures, and does nothing else
    with tempfile.TemporaryDirectory() as folder:
        train(policy, None, rows, algorithm, spec, Path(folder) / "checkpoints", on_step=on_step)
    return passes


def _in_order(trainer: Any, dataset: Any = None) -> Any:
    return SequentialSampler(trainer.train_dataset)


def _trl(work: Work, model: Any, groups: Sequence[Sequence[Trajectory]], on_step: Callable[..., None]) -> Passes:
    """TRL's DPOTrainer, reference log-probabilities precomputed; an update is one pass."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    if work.answers != 2:
        raise UserError(f"TRL's DPOTrainer takes pairs, and there are {work.answers} answers: add --forms padded,tree")

    class Laid(DPOTrainer):
        _get_train_sampler = _in_order

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # token ids already, the same as ours

    class Mark(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            on_step(logs or {})

    rows = []
    for better, worse in groups:
        start = better.action_mask.index(True)
        rows.append({
            "prompt_ids": list(better.token_ids[:start]), "chosen_ids": list(better.token_ids[start:]),
            "rejected_ids": list(worse.token_ids[start:]),
        })  # fmt: skip
    passes: Passes = []
    for start in range(0, len(groups), work.prompts):
        batch = [t for group in groups[start : start + work.prompts] for t in group]
        laid = len(batch) * max(len(t.token_ids) for t in batch)
        # Its head takes every position on a CPU, and on a GPU those of the answers.
        passes.append([(laid, sum(sum(t.action_mask) for t in batch) if torch.cuda.is_available() else laid)])
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder, per_device_train_batch_size=work.prompts, max_steps=work.updates + 1,
            learning_rate=work.learning_rate, lr_scheduler_type="constant", precompute_ref_log_probs=True,
            gradient_checkpointing=max(laid for [(laid, _)] in passes) > HELD, max_length=None,
            bf16=work.precision == "bf16", logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=_letters(), pad_token="<pad>", eos_token="<eos>")
        trainer = Laid(
            model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
            callbacks=[Mark()],
        )  # fmt: skip
        trainer.train()
    return passes


def _letters() -> Any:
    """A tokenizer that has the two special tokens that TRL asks for, and nothing to do."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>"))


def print_training(work: Work, forms: Sequence[str], as_json: bool) -> None:
    """Each form in a process of its own, one after the other, and the machine's matrix-product rate beside them."""
    if unknown := [form for form in forms if form not in FORMS]:
        raise UserError(f"no form is called {unknown[0]!r}: expected some of {', '.join(FORMS)}")
    found: dict[str, dict[str, float] | str] = {}
    with LiveReport(Console(stderr=True)) as report:
        report("multiplying matrices", 0, 0)
        rate = fresh_process(matrix_rate, work.precision)
        for form in forms:
            report(f"training, {form}", len(found), len(forms))
            found[form] = fresh_process(measure, form, **asdict(work))
    if as_json:
        print(json.dumps({"work": asdict(work), "matrix": rate, "forms": found}, indent=2))
        return
    console = Console()
    shape = f"{work.data}" if work.data else f"prompts of {work.prompt}, {work.answers} answers of {work.answer}"
    out = Table(title=f"{work.algo}, {work.precision}, {shape}; {work.prompts} prompts an update")
    first = next((f for f in found.values() if not isinstance(f, str)), None)
    columns = ("form", "s an update", "tokens/s", "times", "peak MiB", "share", "tokens laid out", "GFLOP/s", "loss")
    for column in columns:
        out.add_column(column, justify="left" if column == "form" else "right")
    for form, got in found.items():
        if isinstance(got, str) or first is None:
            out.add_row(form, str(got))
            continue
        speed, base = got["tokens"] / got["seconds"], first["tokens"] / first["seconds"]
        told = f"{form}, recomputed" if got["most"] > HELD else form
        out.add_row(
            told, f"{got['seconds']:.2f}", f"{speed:.0f}", f"{speed / base:.2f}", f"{got['mib']:.0f}",
            f"{got['mib'] / first['mib']:.2f}", f"{got['laid']:.0f}", f"{got['gflop'] / got['seconds']:.0f}",
            f"{got['loss']:.4f}",
        )  # fmt: skip
    console.print(out)
    speed_here = rate if isinstance(rate, str) else f"{rate['gflops']:.0f} GFLOP/s"
    console.print(
        f"matrix products in {work.precision} here: {speed_here}; tokens are those of the trajectories; recomputed: "
        f"more than {HELD} tokens are held together, so activations are computed again in the backward pass",
        style="dim",
    )
