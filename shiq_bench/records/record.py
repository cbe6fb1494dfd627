"""What a run did, and the metrics that say how well: written once, read by everything that prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from shiq_bench.records.errors import UserError
from shiq_bench.records.spec import RunSpec

#: Version of every file written by this package. Readers refuse a newer one by name.
SCHEMA_VERSION = 1

Status = Literal["started", "done", "failed", "diverged"]


@dataclass(frozen=True)
class Metric:
    """A number a task reports, and which way is better."""

    name: str
    better: Literal["higher", "lower", "neither"]
    title: str
    percent: bool = False
    headline: bool = False  # shown with its difference to the reference
    exact: bool = False  # computed from a whole table, so no single episode has it
    optional: bool = False  # of some kinds of episodes only, or pooled from other metrics
    own: bool = False  # measured against a target of the method's own: no number of another's is comparable


#: Metrics every task's evaluation may hold; a task's own Metric of the same name comes first.
ENGINE_METRICS = (
    Metric("reward", "higher", "mean reward", headline=True),
    Metric("kl", "neither", "KL to reference (nats)"),
    Metric("kl_k1", "neither", "KL, k1 estimate (nats)"),
    Metric("kl_token", "neither", "KL a token (nats)"),
    Metric("length", "neither", "length (tokens)"),
    Metric("truncated", "lower", "truncated", percent=True),
    Metric("preference_accuracy", "higher", "preferences ordered right", percent=True),
    Metric("preference_margin", "higher", "margin, better minus worse (nats)"),
    Metric("logratio_data", "neither", "log-ratio to reference (nats)"),
)


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one policy on one split in one mode, with what they were computed from.

    Attributes:
        policy: ``reference`` or ``trained``.
        split: the task's name for the prompts.
        mode: ``greedy``, ``sampled``, ``exact`` (tables) or ``lm-eval``.
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
