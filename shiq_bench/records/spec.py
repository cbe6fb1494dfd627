"""Everything that decides a run, and its identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any, Literal

from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import stable_hash

#: Version of the run identity: raise it when the meaning of a hashed field changes.
RUN_ID_VERSION = 2

#: Splits in the order they are evaluated; what else a task may have follows by name.
_SPLITS = ("rl", "heldout", "start", "all")


def _setting(default: Any, help: str, *, outcome: bool = True, tables: bool = True, later: bool = False) -> Any:
    return field(default=default, metadata={"help": help, "outcome": outcome, "tables": tables, "later": later})


#: Of language models alone: a table has no use for it.
_language = partial(_setting, tables=False)


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run. Defaults live here, in the algorithm and in the task only.

    Fields marked ``outcome=False`` change where or how fast a run happens, never its result, and
    do not enter its identity; a table has no use for those marked ``tables=False``. Those marked ``later``
    are younger than the identities of this version, which hold them only where they are not at their
    default. ``eval_splits`` is put in one order, each name once.
    """

    algo: str
    task: str
    algo_options: Mapping[str, Any] = field(default_factory=dict)
    task_options: Mapping[str, Any] = field(default_factory=dict)

    model: str = _setting("tiny", "'tiny' (trained on the spot), a folder, a hub id, or 'table' where the task is one")
    revision: str = _language("main", "revision of a hub model")
    trust_remote_code: bool = _language(False, "run code that comes with a hub model")
    seed: int = _setting(0, "training seed: order of the data, dropout, heads")
    seeds: int = _setting(1, "tables only: instances trained at once, the first of them number `seed`")

    samples: int = _setting(4, "completions drawn from the reference for every training prompt")
    gold: bool = _language(True, "add the task's own demonstrations to the training data")
    data_seed: int = _setting(0, "seed of the offline data, shared by every method")
    data: str = _language("", "folder of a dataset made by `shiq-bench data build`, to train from", outcome=False)
    data_hash: str = _language("", "which dataset: start of its hash, filled in from `data`")
    center_rewards: bool = _setting(False, "subtract each prompt's mean return (moves v*, not pi*)")
    labels: Literal["hard", "bradley_terry", "sampled"] = _setting(
        "hard",
        "preferences from returns: the higher wins; both ways, weighted by sigma(R - R'); or one way, drawn with it",
    )
    pairs: Literal["all", "best_worst", "random"] = _language(
        "all", "preference pairs of a prompt: every two of its answers, its best and worst, or one drawn"
    )
    collect: Literal["auto", "offline", "fresh"] = _setting(
        "auto", "train on stored trajectories, on fresh samples of the current policy, or on what the method is for"
    )
    allow_off_policy: bool = _setting(False, "let an on-policy method learn from stored data: biased, and marked")
    importance: Literal["none", "token", "sequence"] = _language(
        "none",
        "on-policy methods: multiply each token's gradient by min(pi / pi_sampler, importance_cap), of the token or of "
        "its trajectory, since the sampler's probabilities differ slightly from the trainer's",
        later=True,
    )
    importance_cap: float = _language(2.0, "what importance weights are truncated at", later=True)

    steps: int = _setting(200, "optimiser updates; 0 evaluates the starting policy alone")
    groups_per_step: int = _language(4, "prompts in a global batch, each with all its trajectories")
    learning_rate: float = _setting(1e-4, "peak learning rate of AdamW")
    schedule: Literal["constant", "cosine", "linear"] = _setting("cosine", "learning-rate schedule after warm-up")
    warmup: float = _setting(0.1, "share of the steps spent warming up")
    weight_decay: float = _setting(0.0, "AdamW weight decay")
    max_grad_norm: float = _setting(1.0, "gradient clipping; 0 is none")
    precision: Literal["auto", "fp32", "bf16"] = _language(
        "auto", "autocast of the network body (auto: bf16 where the hardware has it); the head is always float32"
    )
    lora: str = _language(
        "", "train low-rank adapters alone: r=16, or r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj"
    )

    engine: Literal["auto", "vllm", "hf"] = _language("auto", "sampler: vllm where it can be used, else transformers")
    max_tokens: int = _language(128, "longest single answer, in tokens")
    max_length: int = _language(1024, "longest dialogue, in tokens")
    eval_samples: int = _language(4, "sampled completions a prompt at evaluation (temperature 1)")
    eval_splits: str = _language("rl,heldout", "splits evaluated, joined by commas; all: every prompt there is")
    eval_seed: int = _language(0, "seed of evaluation sampling")
    lm_eval: str = _language("", "tasks of lm-eval to run before and after training, joined by commas")
    lm_eval_limit: int = _language(0, "documents of each lm-eval task; 0 is all")
    eval_limit: int = _language(0, "evaluate on the first N prompts of each split only; 0 is all")

    layout: Literal["tree", "padded"] = _language(
        "tree", "trajectories of a prompt as one prefix tree, where the model can, or each as a padded row",
        outcome=False,
    )  # fmt: skip
    micro_groups: int = _language(0, "most prompts in one forward pass; 0 is groups_per_step", outcome=False)
    tokens_per_pass: int = _language(
        0, "most tokens laid out in one forward pass of training; 0 is 4096, or a prompt's where those are more",
        outcome=False,
    )  # fmt: skip
    save_every: int = _language(50, "updates between checkpoints", outcome=False)
    track: str = _language("", "trackers told of every update, joined by commas, such as tensorboard", outcome=False)
    gpu_memory: float = _language(0.4, "share of GPU memory given to vLLM", outcome=False)
    results: str = _setting("results", "folder of run records", outcome=False)

    def __post_init__(self) -> None:
        for name, low in {
            "steps": 0, "groups_per_step": 1, "samples": 0, "max_tokens": 1, "max_length": 2,
            "eval_samples": 0, "save_every": 1, "eval_limit": 0, "lm_eval_limit": 0, "micro_groups": 0,
            "tokens_per_pass": 0, "seeds": 1,
        }.items():  # fmt: skip
            if getattr(self, name) < low:
                raise UserError(f"{name} is {getattr(self, name)}; expected {low} or more")
        names = {name.strip() for name in self.eval_splits.split(",")} - {""}
        if not names:
            raise UserError("eval_splits names no split: expected names joined by commas, such as rl,heldout")
        in_order = [*(name for name in _SPLITS if name in names), *sorted(names.difference(_SPLITS))]
        # One result has one identity, however its splits were written; the dataclass is frozen.
        object.__setattr__(self, "eval_splits", ",".join(in_order))
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate is {self.learning_rate}; expected a positive number")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"warmup is {self.warmup}; expected a share between 0 and 1")
        if self.micro_groups and self.groups_per_step % self.micro_groups:
            raise UserError(
                f"groups_per_step {self.groups_per_step} is no multiple of micro_groups {self.micro_groups}"
            )
        for name in ("seed", "data_seed", "eval_seed"):
            if not 0 <= getattr(self, name) < 2**32:
                raise UserError(f"{name} is {getattr(self, name)}; expected 0 to 4294967295")
        if self.weight_decay < 0 or self.max_grad_norm < 0 or not 0 < self.gpu_memory <= 1:
            raise UserError("expected weight_decay and max_grad_norm of 0 or more, and gpu_memory between 0 and 1")
        if self.data and self.model == "table":
            raise UserError(
                "a table computes its own data: leave out --data, or give --model tiny, a folder or a hub id"
            )
        if not self.importance_cap >= 1:
            raise UserError(f"importance_cap is {self.importance_cap}; expected 1 or more")
        if self.model == "table" and self.importance != "none":
            raise UserError("a table samples from its own policy: leave importance out, or give --model tiny")
        if self.model == "table" and self.track:
            raise UserError("a table keeps its curve in its record: leave track out, or give --model tiny")
        if self.model == "table" and (self.lora or self.lm_eval or self.pairs != "all"):
            raise UserError(
                "a table has no adapters, no text for lm-eval and compares every pair: leave lora, lm_eval and pairs "
                "out, or give --model tiny, a folder or a hub id"
            )
        if self.max_tokens >= self.max_length:
            raise UserError(
                f"max_tokens ({self.max_tokens}) leaves no room for a prompt in max_length ({self.max_length})"
            )

    @property
    def splits(self) -> list[str]:
        """The splits evaluated."""
        return self.eval_splits.split(",")

    def outcome(self) -> dict[str, Any]:
        """The fields that can change the result, as plain JSON data."""
        keep = {f.name for f in fields(self) if f.metadata.get("outcome", True)}
        return {k: v for k, v in asdict(self).items() if k in keep}

    @property
    def run_id(self) -> str:
        """``<algo>-<task>-<hash>``: a versioned hash over :meth:`outcome` and nothing else."""
        unsaid = {f.name for f in fields(self) if f.metadata.get("later") and getattr(self, f.name) == f.default}
        said = {name: value for name, value in self.outcome().items() if name not in unsaid}
        # Identities of this version hold a layout, which turned out to decide no result.
        held = {"version": RUN_ID_VERSION, "layout": "padded", **said}
        return f"{self.algo}-{self.task}-{stable_hash(held)[:12]}"


#: What the reference's numbers depend on. Runs that agree on these share one reference and one block of a table;
#: everything else about a spec is what the block compares.
CONDITIONS = (
    "task", "task_options", "model", "revision", "trust_remote_code", "precision", "engine",
    "max_tokens", "max_length", "eval_samples", "eval_seed", "eval_limit",
)  # fmt: skip


def conditions(spec: RunSpec) -> dict[str, Any]:
    """What runs of one table share: settings that change what is measured, and not who is measured."""
    outcome = spec.outcome()
    # A table's run holds many instances: runs that share some are no independent seeds of each other.
    names = (*CONDITIONS, "seed", "seeds") if spec.model == "table" else CONDITIONS
    return {name: outcome[name] for name in names}
