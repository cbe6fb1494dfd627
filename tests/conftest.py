"""Settings every test shares."""

from __future__ import annotations

import os

from tests.mutations.planting import planted

# Models this small gain nothing from a second thread, and on a busy machine lose much to waiting for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_report_header() -> str:
    bugs, why = planted()
    return f"planted bugs of make test: {len(bugs)} ({why}); make proof plants them all"
