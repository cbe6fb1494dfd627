"""Write the golden tables anew, to be read before they are kept: ``python -m tests.reporting.regenerate``."""

from __future__ import annotations

from shiq_bench.reporting.tables import compare
from tests.reporting.synthetic import METRICS
from tests.reporting.test_tables import GOLDEN, RENDERED, golden_records

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for which in ("run", "several"):
        comparison = compare(golden_records(which), METRICS)
        for name, render in RENDERED.items():
            (GOLDEN / f"{which}.{name}").write_text(render(comparison), encoding="utf-8")
