"""Write the golden tables anew, to be read before they are kept: ``python -m tests.report.regenerate``."""

from __future__ import annotations

from shiq_bench.report.comparison import compare
from tests.report.synthetic import METRICS
from tests.report.test_tables import GOLDEN, RENDERED, golden_records

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for which in ("run", "several"):
        comparison = compare(golden_records(which), METRICS)
        for name, render in RENDERED.items():
            (GOLDEN / f"{which}.{name}").write_text(render(comparison), encoding="utf-8")
