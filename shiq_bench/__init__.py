"""shiq-bench: a fair comparison of reinforcement-learning fine-tuning methods for language models.

Everything that a method or a task is written against comes from here. Names are imported when they
are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shiq_bench.api.algorithm import Algorithm as Algorithm
    from shiq_bench.api.batch import Batch as Batch
    from shiq_bench.api.batch import Dense as Dense
    from shiq_bench.api.batch import LossOutput as LossOutput
    from shiq_bench.api.batch import Stats as Stats
    from shiq_bench.api.batch import TokenStats as TokenStats
    from shiq_bench.api.batch import group_mean as group_mean
    from shiq_bench.api.batch import log_ratio as log_ratio
    from shiq_bench.api.batch import masked_mean as masked_mean
    from shiq_bench.api.batch import next_step as next_step
    from shiq_bench.api.batch import reference_of as reference_of
    from shiq_bench.api.batch import sum_to_end as sum_to_end
    from shiq_bench.api.needs import BehaviourModel as BehaviourModel
    from shiq_bench.api.needs import Labels as Labels
    from shiq_bench.api.needs import MaxRatio as MaxRatio
    from shiq_bench.api.needs import Mismatched as Mismatched
    from shiq_bench.api.needs import Need as Need
    from shiq_bench.api.needs import OnPolicy as OnPolicy
    from shiq_bench.api.needs import Pairs as Pairs
    from shiq_bench.api.needs import QHeads as QHeads
    from shiq_bench.api.needs import Reference as Reference
    from shiq_bench.api.needs import Rewards as Rewards
    from shiq_bench.api.needs import SumLogits as SumLogits
    from shiq_bench.api.needs import Support as Support
    from shiq_bench.api.needs import TargetNetwork as TargetNetwork
    from shiq_bench.api.needs import ValueHead as ValueHead
    from shiq_bench.api.registry import algorithm as algorithm
    from shiq_bench.api.registry import load_plugin as load_plugin
    from shiq_bench.api.registry import task as task
    from shiq_bench.api.task import Codec as Codec
    from shiq_bench.api.task import Episode as Episode
    from shiq_bench.api.task import Scores as Scores
    from shiq_bench.api.task import Task as Task
    from shiq_bench.api.task import TextCodec as TextCodec
    from shiq_bench.api.task import TinyModel as TinyModel
    from shiq_bench.api.trajectory import Completion as Completion
    from shiq_bench.api.trajectory import Preference as Preference
    from shiq_bench.api.trajectory import Score as Score
    from shiq_bench.api.trajectory import ToolCall as ToolCall
    from shiq_bench.api.trajectory import Trajectory as Trajectory
    from shiq_bench.api.trajectory import Transcript as Transcript
    from shiq_bench.records.errors import UserError as UserError
    from shiq_bench.records.errors import suggest as suggest
    from shiq_bench.records.record import Metric as Metric
    from shiq_bench.records.spec import RunSpec as RunSpec
    from shiq_bench.tabular.exact import Exact as Exact
    from shiq_bench.tabular.task import TabularTask as TabularTask
    from shiq_bench.tabular.world import World as World

__version__ = "0.1.0"

#: Module -> the names that it gives.
_PUBLIC = {
    "api.algorithm": ("Algorithm",),
    "api.batch": (
        "Batch", "Dense", "LossOutput", "Stats", "TokenStats", "group_mean", "log_ratio", "masked_mean", "next_step",
        "reference_of", "sum_to_end",
    ),
    "api.needs": (
        "BehaviourModel", "Labels", "MaxRatio", "Mismatched", "Need", "OnPolicy", "Pairs", "QHeads", "Reference",
        "Rewards", "SumLogits", "Support", "TargetNetwork", "ValueHead",
    ),
    "api.registry": ("algorithm", "load_plugin", "task"),
    "api.task": ("Codec", "Episode", "Scores", "Task", "TextCodec", "TinyModel"),
    "api.trajectory": ("Completion", "Preference", "Score", "ToolCall", "Trajectory", "Transcript"),
    "records.errors": ("UserError", "suggest"),
    "records.record": ("Metric",),
    "records.spec": ("RunSpec",),
    "tabular.exact": ("Exact",),
    "tabular.task": ("TabularTask",),
    "tabular.world": ("World",),
}  # fmt: skip
_MODULE = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE})
