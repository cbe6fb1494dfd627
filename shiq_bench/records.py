"""What travels between stages: trajectories, completions, scores, and the record of a run.

Everything here is frozen, typed and made of the standard library alone, so that a table can be
printed, and a score recomputed, on a machine without torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

#: Version of every file written by this package. Readers refuse a newer one by name.
SCHEMA_VERSION = 1

#: Version of the run identity: raise it when the meaning of a hashed field changes.
RUN_ID_VERSION = 2

Finish = Literal["stop", "length"]
Status = Literal["started", "done", "failed", "diverged"]

#: Splits in the order they are evaluated; what else a task may have follows by name.
_SPLITS = ("rl", "heldout", "start", "all")


class UserError(Exception):
    """Something the user can mend. The command line prints it as one line and exits with 2."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    Attributes:
        token_ids: ids exactly as sampled, the end-of-turn token included when it was emitted.
        logps: natural-log probability of each id under the sampler, at temperature 1. ``[T]``
        finish: ``stop`` when an end-of-turn token was emitted, ``length`` when the limit cut it.
    """

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    finish: Finish


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, as a chat template writes it: a name, and arguments as JSON data.

    ``id`` is what the answer itself named the call, where its format does: results refer to it.
    Two calls are equal whatever their ids.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A prompt and everything that followed it, as token ids that are never re-tokenised.

    Attributes:
        prompt_id: the prompt this answers; trajectories that share it form a group.
        token_ids: prompt, actions and observations in order. ``[L]``
        action_mask: True where the policy emitted the token. ``[L]``
        rewards: reward credited at each token, zero off the actions. ``[L]``
        sampler_logp: the sampler's log-probability at each action, zero elsewhere. ``[L]`` or None
        truncated: the episode was cut by a limit rather than ended by the policy.
        source: who acted: ``reference``, ``gold``, ``enumerated`` ...
        weight: weight in expectations; enumerated data carry probabilities here.
        rank: what preference methods compare by, higher preferred, where a judge's word and not the
            return decides; None: the return.

    Raises:
        ValueError: lengths differ, or a reward stands off the actions.
    """

    prompt_id: str
    token_ids: tuple[int, ...]
    action_mask: tuple[bool, ...]
    rewards: tuple[float, ...]
    sampler_logp: tuple[float, ...] | None = None
    truncated: bool = False
    source: str = "reference"
    weight: float = 1.0
    rank: float | None = None

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        if not len(self.action_mask) == len(self.rewards) == n:
            raise ValueError(f"trajectory of {self.prompt_id}: token_ids, action_mask and rewards differ in length")
        if self.sampler_logp is not None and len(self.sampler_logp) != n:
            raise ValueError(f"trajectory of {self.prompt_id}: sampler_logp has another length than token_ids")
        if any(r and not a for r, a in zip(self.rewards, self.action_mask, strict=True)):
            raise ValueError(f"trajectory of {self.prompt_id}: a reward stands on a token that is no action")
        if n and self.action_mask[0]:
            raise ValueError(f"trajectory of {self.prompt_id}: the first token has no context to be an action in")

    @property
    def total_reward(self) -> float:
        """Undiscounted return: the sum of rewards over the actions."""
        return float(sum(self.rewards))

    @property
    def merit(self) -> float:
        """What preferences are made from: ``rank``, or else the return."""
        return self.total_reward if self.rank is None else self.rank


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one dialogue, the first preferred.

    Attributes:
        prompt_id: the dialogue; pairs of one dialogue share it.
        messages: what was said before, ``{"role": ..., "content": ...}`` each.
        chosen, rejected: the answers' text.
    """

    prompt_id: str
    messages: tuple[Mapping[str, str], ...]
    chosen: str
    rejected: str


class Transcript:
    """A trajectory under construction: observations and actions, in the order they happened."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self.token_ids: list[int] = list(prompt_ids)
        self.action_mask: list[bool] = [False] * len(self.token_ids)
        self.logps: list[float] = [0.0] * len(self.token_ids)
        self.truncated = False

    def act(self, completion: Completion) -> None:
        """Append what the policy emitted."""
        self.token_ids += completion.token_ids
        self.action_mask += [True] * len(completion.token_ids)
        self.logps += completion.logps

    def observe(self, token_ids: Sequence[int]) -> None:
        """Append what the policy did not emit: tool results, user turns, forced ends."""
        self.token_ids += token_ids
        self.action_mask += [False] * len(token_ids)
        self.logps += [0.0] * len(token_ids)

    @property
    def last_action(self) -> int:
        """Position of the most recent action token, or -1."""
        return next((i for i in range(len(self.action_mask) - 1, -1, -1) if self.action_mask[i]), -1)

    def trajectory(self, prompt_id: str, rewards: Mapping[int, float], source: str, weight: float = 1.0) -> Trajectory:
        """Freeze, with ``rewards`` given as position -> reward."""
        return Trajectory(
            prompt_id=prompt_id,
            token_ids=tuple(self.token_ids),
            action_mask=tuple(self.action_mask),
            rewards=tuple(rewards.get(i, 0.0) for i in range(len(self.token_ids))),
            sampler_logp=tuple(self.logps),
            truncated=self.truncated,
            source=source,
            weight=weight,
        )


@dataclass(frozen=True, slots=True)
class Score:
    """A task's verdict on one episode.

    Attributes:
        total: the return, equal to the sum of the trajectory's rewards.
        turns: reward of each turn.
        scored: False where scoring itself failed; such an episode counts as a failure in
            evaluations and is left out of training data.
        metrics: numbers by metric name. A metric that is a rate over turns is given as two
            numbers, ``name`` (successes) and ``name/n`` (trials); otherwise n counts episodes.
        details: anything worth reading later (texts, verdicts); must be JSON.
    """

    total: float
    turns: tuple[float, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    scored: bool = True


def _setting(default: Any, help: str, *, outcome: bool = True) -> Any:
    return field(default=default, metadata={"help": help, "outcome": outcome})


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run. Defaults live here, in the algorithm and in the task only.

    Fields marked ``outcome=False`` change where or how fast a run happens, never its result, and
    do not enter its identity. ``eval_splits`` is put in one order, each name once.
    """

    algo: str
    task: str
    algo_options: Mapping[str, Any] = field(default_factory=dict)
    task_options: Mapping[str, Any] = field(default_factory=dict)

    model: str = _setting("tiny", "'tiny' (trained on the spot), a folder, a hub id, or 'table' where the task is one")
    revision: str = _setting("main", "revision of a hub model")
    trust_remote_code: bool = _setting(False, "run code that comes with a hub model")
    seed: int = _setting(0, "training seed: order of the data, dropout, heads")
    seeds: int = _setting(1, "tables only: instances trained at once, the first of them number `seed`")

    samples: int = _setting(4, "completions drawn from the reference for every training prompt")
    gold: bool = _setting(True, "add the task's own demonstrations to the training data")
    data_seed: int = _setting(0, "seed of the offline data, shared by every method")
    data: str = _setting("", "folder of a dataset made by `shiq-bench data build`, to train from", outcome=False)
    data_hash: str = _setting("", "which dataset: start of its hash, filled in from `data`")
    center_rewards: bool = _setting(False, "subtract each prompt's mean return (moves v*, not pi*)")
    labels: Literal["hard", "bradley_terry", "sampled"] = _setting(
        "hard",
        "preferences from returns: the higher wins; both ways, weighted by sigma(R - R'); or one way, drawn with it",
    )
    pairs: Literal["all", "best_worst", "random"] = _setting(
        "all", "preference pairs of a prompt: every two of its answers, its best and worst, or one drawn"
    )
    collect: Literal["auto", "offline", "fresh"] = _setting(
        "auto", "train on stored trajectories, on fresh samples of the current policy, or on what the method is for"
    )
    allow_off_policy: bool = _setting(False, "let an on-policy method learn from stored data: biased, and marked")

    steps: int = _setting(200, "optimiser updates; 0 evaluates the starting policy alone")
    groups_per_step: int = _setting(4, "prompts in a global batch, each with all its trajectories")
    learning_rate: float = _setting(1e-4, "peak learning rate of AdamW")
    schedule: Literal["constant", "cosine", "linear"] = _setting("cosine", "learning-rate schedule after warm-up")
    warmup: float = _setting(0.1, "share of the steps spent warming up")
    weight_decay: float = _setting(0.0, "AdamW weight decay")
    max_grad_norm: float = _setting(1.0, "gradient clipping; 0 is none")
    precision: Literal["auto", "fp32", "bf16"] = _setting(
        "auto", "autocast of the network body (auto: bf16 where the hardware has it); the head is always float32"
    )
    lora: str = _setting("", "train low-rank adapters alone: r=16, or r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj")
    layout: Literal["padded", "packed"] = _setting("padded", "how trajectories share a forward pass")

    engine: Literal["auto", "vllm", "hf"] = _setting("auto", "sampler: vllm where installed, else transformers")
    max_tokens: int = _setting(128, "longest single answer, in tokens")
    max_length: int = _setting(1024, "longest dialogue, in tokens")
    eval_samples: int = _setting(4, "sampled completions a prompt at evaluation (temperature 1)")
    eval_splits: str = _setting("rl,heldout", "splits evaluated, joined by commas; all: every prompt there is")
    eval_seed: int = _setting(0, "seed of evaluation sampling")
    lm_eval: str = _setting("", "tasks of lm-eval to run before and after training, joined by commas")
    lm_eval_limit: int = _setting(0, "documents of each lm-eval task; 0 is all")
    eval_limit: int = _setting(0, "evaluate on the first N prompts of each split only; 0 is all")

    micro_groups: int = _setting(0, "prompts in one forward pass; 0 is groups_per_step", outcome=False)
    save_every: int = _setting(50, "updates between checkpoints", outcome=False)
    track: str = _setting("", "trackers told of every update, joined by commas, such as tensorboard", outcome=False)
    gpu_memory: float = _setting(0.4, "share of GPU memory given to vLLM", outcome=False)
    results: str = _setting("results", "folder of run records", outcome=False)

    def __post_init__(self) -> None:
        for name, low in {
            "steps": 0, "groups_per_step": 1, "samples": 0, "max_tokens": 1, "max_length": 2,
            "eval_samples": 0, "save_every": 1, "eval_limit": 0, "lm_eval_limit": 0, "micro_groups": 0, "seeds": 1,
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
        return f"{self.algo}-{self.task}-{stable_hash({'version': RUN_ID_VERSION, **self.outcome()})[:12]}"


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one policy on one split in one mode, with what they were computed from.

    Attributes:
        policy: ``reference`` or ``trained``.
        split: the task's name for the prompts.
        mode: ``greedy`` or ``sampled``.
        step: optimiser updates behind the policy.
        metrics: name -> {mean, n, stderr}; stderr is clustered by prompt, null below two prompts.
        examples: one entry an episode (tables: one a seed): prompt_id and raw metric values.
    """

    policy: str
    split: str
    mode: str
    step: int
    metrics: Mapping[str, Mapping[str, float | None]]
    examples: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunRecord:
    """What a run did, complete enough to be reproduced and doubted. Written atomically as JSON."""

    run_id: str
    status: Status
    spec: RunSpec
    schema_version: int = SCHEMA_VERSION
    source_hash: str = ""
    code_hash: str = ""
    weights_hash: str = ""
    judges_hash: str = ""
    git_commit: str | None = None
    git_dirty: bool | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()
    curve: Sequence[Evaluation] = ()
    training: Sequence[Mapping[str, float]] = ()
    consumed: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    gaps: Mapping[str, float] = field(default_factory=dict)
    deviations: Sequence[str] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` inverts it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunRecord:
        """Rebuild a record.

        Raises:
            UserError: the schema is newer than this package, or a field is missing or unknown.
        """
        version = data.get("schema_version")
        if not isinstance(version, int):
            raise UserError("not a run record: it has no schema_version")
        if version > SCHEMA_VERSION:
            raise UserError(
                f"schema {version} is newer than the {SCHEMA_VERSION} this version reads: upgrade shiq-bench"
            )
        try:
            spec = RunSpec(**data["spec"])
            evaluations = tuple(Evaluation(**e) for e in data["evaluations"])
            curve = tuple(Evaluation(**e) for e in data.get("curve", ()))
            record = cls(**{**data, "spec": spec, "evaluations": evaluations, "curve": curve})
        except (KeyError, TypeError) as error:
            raise UserError(f"not a run record of schema {version}: {error}") from None
        if record.status not in get_args(Status):
            raise UserError(f"status is {record.status!r}; expected one of {', '.join(get_args(Status))}")
        return record


def canonical_json(data: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def stable_hash(data: Any) -> str:
    """SHA-256 hex digest of :func:`canonical_json`; equal across processes and machines."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()
