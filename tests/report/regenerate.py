"""Write the golden tables anew, to be read before they are kept: ``python -m tests.report.regenerate``."""

from __future__ import annotations

from shiq_bench.report.comparison import compare
from shiq_bench.report.tables import text
from tests.report.synthetic import METRICS
from tests.report.test_tables import GOLDEN, RENDERED, golden_records

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for which in ("run", "several"):
        comparison = compare(golden_records(which), METRICS)
        for suffix, format in RENDERED.items():
            (GOLDEN / f"{which}.{suffix}").write_text(text(comparison, format), encoding="utf-8")
