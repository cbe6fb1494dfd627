"""What a planted bug is, and the files whose tests are named for them."""

from __future__ import annotations

from dataclasses import dataclass

ACROSS = "tests/stats/test_aggregates.py"
BFCL = "tests/tasks/test_bfcl_official.py"
CATEGORIES = "tests/tasks/test_bfcl_categories.py"
CHAT = "tests/models/test_chat.py"
COMPARE = "tests/report/test_pairwise.py"
COMPARISON = "tests/report/test_comparison.py"
ENGINES = "tests/generation/test_engines.py"
EXACT = "tests/tabular/test_exact.py"
FEEDBACK = "tests/tasks/test_ultrafeedback.py"
HEADS = "tests/training/test_heads.py"
IMPORTANCE = "tests/training/test_importance.py"
LEASES = "tests/records/test_leases.py"
LORA = "tests/training/test_lora.py"
LITERAL = "tests/records/test_escaping.py"
ONPOLICY = "tests/training/test_onpolicy.py"
OPS = "tests/api/test_ops.py"
RECORDING = "tests/tabular/test_recording.py"
RECORDS = "tests/records/test_records.py"
REPORT = "tests/report/test_page.py"
RUN = "tests/runs/test_run.py"
SIMULATIONS = "tests/stats/test_simulations.py"
STUDY = "tests/studies/test_study.py"
TABLES = "tests/report/test_tables.py"
TRAINING = "tests/training/test_training.py"
TUNE = "tests/sweep/test_tune.py"
VALUE_LEARNING = "tests/tabular/test_value_learning.py"
VALUES = "tests/algorithms/test_values.py"
WORKER = "tests/sweep/test_worker.py"
PADDED = f"{TRAINING}::test_layouts_give_the_naive_statistics[padded]"
TREE = f"{TRAINING}::test_layouts_give_the_naive_statistics[tree]"


@dataclass(frozen=True)
class Mutation:
    """One bug.

    Attributes:
        name: what is wrong, in a few words.
        file: where, from the project's root.
        old: text that occurs there exactly once.
        new: what stands there instead.
        test: node id of the one test named to catch it, by a failed assertion.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
