"""Fitting a reward model to preference pairs, the embedded one too, and judging one on pairs it has not seen."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from scipy.special import expit
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from shiq_bench.api.task import Task
from shiq_bench.api.trajectory import Preference
from shiq_bench.data.dataset import check_free
from shiq_bench.models.hardware import fast_precision
from shiq_bench.models.source import Progress, fingerprint
from shiq_bench.records.cache import cached_folder
from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import stable_hash
from shiq_bench.rewards.model import (
    Dialogues,
    RewardModel,
    load_classifier,
    load_config,
    load_dialogues,
    padded,
    scores_of,
    set_pad,
)
from shiq_bench.stats.clustered import clustered_mean
from shiq_bench.stats.intervals import Estimate
from shiq_bench.training.starting_policy import build_tiny

#: What a reward model is fitted with, unless told otherwise.
DEFAULTS: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-5, "batch": 16, "max_length": 2048}

#: What the embedded reward model is; raise its version when it changes, so that cached ones are not used.
TINY_VERSION = 1
RECIPE: dict[str, Any] = {"epochs": 2, "learning_rate": 3e-4, "batch": 16, "max_length": 512}


@dataclass(frozen=True)
class Fit:
    """What a reward model was fitted to.

    Attributes:
        pairs, equal: pairs learned from, and left out because both answers read the same to the model.
        cut: answers whose dialogue was longer than ``max_length``.
        steps: optimiser updates.
    """

    pairs: int
    equal: int
    cut: int
    steps: int


class _PairTrainer(Trainer):
    def compute_loss(self, model: Any, inputs: dict[str, Tensor | Any], **_: Any) -> Any:
        """Mean over the pairs of a batch, the chosen ``[B]`` ahead of the rejected ``[B]``."""
        chosen, rejected = scores_of(model, inputs).chunk(2)
        loss = -logsigmoid(chosen - rejected).mean()
        if not torch.isfinite(loss):
            raise UserError(f"the loss is not finite at update {self.state.global_step}: lower the learning rate")
        return loss


class _Progress(TrainerCallback):
    def __init__(self, report: Progress) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.report("fitting the reward model", state.global_step, state.max_steps)


def fit_reward_model(
    base: Path,
    train: Sequence[Preference],
    out: Path,
    *,
    epochs: int = DEFAULTS["epochs"],
    learning_rate: float = DEFAULTS["learning_rate"],
    batch: int = DEFAULTS["batch"],
    max_length: int = DEFAULTS["max_length"],
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int = 0,
    report: Progress = lambda what, done, total: None,
) -> Fit:
    r"""Fit a reward model to pairs, and save it with its tokenizer in ``out``, in float32.

    The loss is the negative log-likelihood of Bradley and Terry (1952), as in Ouyang et al. (2022),
    arXiv:2203.02155, equation 1, with the mean over the pairs of a batch:

    .. math:: -\ln \sigma(r(x, y_c) - r(x, y_r))

    AdamW, warmup over the first 5% of the updates and cosine decay behind it. The same seed on the
    same machine gives the same weights.

    Args:
        base: folder of a causal language model or a classifier; a head that does not fit is new.
        epochs: passes over the pairs.
        batch: pairs an update.
        max_length: ids of a dialogue; what is longer loses its beginning.
        precision: what the body computes in; weights, head and loss are float32.
        report: ``report(what, done, total)`` after each update.

    Raises:
        UserError: ``out`` is taken or cannot be written, ``base`` holds no model, a number is out
            of range, there is no pair to learn from, or the loss is not finite.
    """
    for name, value, low in (("epochs", epochs, 1), ("batch", batch, 1), ("max_length", max_length, 2)):
        if value < low:
            raise UserError(f"{name} is {value}; expected {low} or more")
    if not 0 < learning_rate < float("inf"):
        raise UserError(f"learning_rate is {learning_rate}; expected a positive number")
    check_free(out)
    fingerprint(base)  # says what is wrong with a folder that holds no model
    dialogues = load_dialogues(base, load_config(base), max_length)
    tokenizer = dialogues.tokenizer
    pairs, equal, cut = _encoded(dialogues, train)
    if not pairs:
        raise UserError(f"there is no pair to learn from: {len(train)} given, {equal} with answers that read the same")
    # The score is read at the last id that is no pad: an id that closes a turn cannot serve.
    if tokenizer.pad_token_id is None or any(tokenizer.pad_token_id in ids for pair in pairs for ids in pair):
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})

    torch.manual_seed(seed)  # a new head is drawn
    model, _ = load_classifier(base, num_labels=1, dtype=torch.float32, ignore_mismatched_sizes=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    pad: int = tokenizer.pad_token_id
    set_pad(model, pad)
    steps = epochs * -(-len(pairs) // batch)
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=".shiq-bench."))
    except OSError as error:
        raise UserError(f"cannot make {out}: {error.strerror or error}: give another --out") from error
    try:
        arguments = TrainingArguments(
            output_dir=str(temporary),
            num_train_epochs=epochs,
            per_device_train_batch_size=batch,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(0.05 * steps),
            bf16=precision == "bf16",
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            logging_strategy="no",
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
            report_to=[],
            log_level="error",
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel would part the chosen from the rejected
        trainer = _PairTrainer(
            model,
            args=arguments,
            train_dataset=pairs,
            data_collator=lambda rows: padded([c for c, _ in rows] + [r for _, r in rows], pad),
            callbacks=[_Progress(report)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Fit(len(pairs), equal, cut, trainer.state.global_step)


def _answered(pair: Preference, answer: str) -> list[dict[str, str]]:
    return [*map(dict, pair.messages), {"role": "assistant", "content": answer}]


def _encoded(dialogues: Dialogues, pairs: Sequence[Preference]) -> tuple[list[tuple[list[int], list[int]]], int, int]:
    """Ids of both answers of each pair that they can tell apart, and how many were equal or cut."""
    kept: list[tuple[list[int], list[int]]] = []
    equal = cut = 0
    for pair in pairs:
        chosen, chosen_cut = dialogues.whole(_answered(pair, pair.chosen))
        rejected, rejected_cut = dialogues.whole(_answered(pair, pair.rejected))
        if chosen == rejected:
            equal += 1
            continue
        cut += chosen_cut + rejected_cut
        kept.append((chosen, rejected))
    return kept, equal, cut


def tiny_identity() -> str:
    """What decides the tiny reward model of a task, beside the task's data and its embedded policy."""
    return stable_hash([TINY_VERSION, RECIPE, fast_precision()])


def tiny_reward_model(task: Task, name: str, report: Progress = lambda what, done, total: None) -> Path:
    """The folder of a tiny Bradley-Terry reward model of the split ``start``, built once and cached.

    Raises:
        UserError: the task has no embedded policy, or no preferences.
    """
    base = build_tiny(name, task, report)
    pairs = task.preferences("start")
    key = {
        "version": TINY_VERSION,
        "base": base.name,
        "pairs": stable_hash([asdict(pair) for pair in pairs]),
        "recipe": RECIPE,
        "precision": fast_precision(),
    }

    def build(folder: Path) -> None:
        fit_reward_model(base, pairs, folder, precision=fast_precision(), seed=0, report=report, **RECIPE)

    return cached_folder("reward-model", key, build)


# --- how good it is ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """A reward model on pairs it was not fitted to; what is undefined is None.

    Attributes:
        accuracy: share of pairs whose chosen answer scores higher, ties half; 95% interval clustered by prompt.
        longer: the same for "the longer answer is the better one", in characters.
        margin: mean of r_c - r_r, in the model's own unit.
        calibration_error: expected calibration error of sigma(|r_c - r_r|) as the chance of being right.
        brier: mean of (1 - sigma(r_c - r_r))^2; a model that says 1/2 of every pair has 0.25.
        length_correlation: Spearman's, of score and length in characters, over all answers.
        cut: answers that were longer than the model can read.
    """

    accuracy: Estimate
    longer: Estimate
    margin: float | None
    calibration_error: float | None
    brier: float | None
    length_correlation: float | None
    cut: int


def judge_pairs(model: RewardModel, heldout: Sequence[Preference], report: Progress | None = None) -> Judgement:
    """Accuracy, calibration and taste for length of a reward model on judged pairs.

    Raises:
        UserError: see :meth:`RewardModel.score`.
    """
    before = model.cut
    answers = [answer for pair in heldout for answer in (pair.chosen, pair.rejected)]
    scores = np.array(model.score([_answered(p, a) for p in heldout for a in (p.chosen, p.rejected)], report))
    lengths = np.array([len(answer) for answer in answers])
    margins = scores[::2] - scores[1::2]  # [N]
    prompts = [pair.prompt_id for pair in heldout]
    varied = len(np.unique(scores)) > 1 and len(np.unique(lengths)) > 1
    return Judgement(
        accuracy=clustered_mean(_wins(margins), prompts),
        longer=clustered_mean(_wins(lengths[::2] - lengths[1::2]), prompts),
        margin=float(margins.mean()) if len(margins) else None,
        calibration_error=calibration_error(margins),
        brier=float((expit(-margins) ** 2).mean()) if len(margins) else None,
        length_correlation=float(spearmanr(scores, lengths).statistic) if varied else None,
        cut=model.cut - before,
    )


def _wins(differences: np.ndarray) -> list[float]:
    return ((np.sign(differences) + 1) / 2).tolist()


def calibration_error(margins: np.ndarray) -> float | None:
    r"""Expected calibration error of a preference model (Guo et al. 2017, arXiv:1706.04599, equation 3).

    A pair's confidence is :math:`\sigma(|m|)`, and it is right where the margin :math:`m = r_c - r_r`
    is positive (ties half). Over ten bins of equally many pairs, sorted by confidence:

    .. math:: \sum_b \frac{n_b}{n} |\mathrm{right}_b - \mathrm{confidence}_b|

    Args:
        margins: r_c - r_r of each pair, ``[N]``.

    Returns:
        A share from 0 to 1; None without pairs.
    """
    if not len(margins):
        return None
    ordered = margins[np.argsort(np.abs(margins), kind="stable")]
    gaps = [abs((np.array(_wins(b)) - expit(np.abs(b))).sum()) for b in np.array_split(ordered, 10)]
    return float(sum(gaps) / len(margins))
