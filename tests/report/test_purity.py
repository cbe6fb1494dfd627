"""Reporting needs no torch, directly or through anything it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
import shiq_bench.report.page, shiq_bench.records.run_store
import shiq_bench.stats.clustered, shiq_bench.report.tables
early = [m for m in ("jinja2", "matplotlib", "pandas", "plotly", "rich", "scipy.stats") if m in sys.modules]
from tests.report.synthetic import METRICS, record
from shiq_bench.report.comparison import compare
from shiq_bench.report.render import FORMATS
from shiq_bench.report.tables import text
from shiq_bench.report.page import page, payload
comparison = compare([record(prompts={"rl": 3})], METRICS)
[text(comparison, format) for format in FORMATS]
page(payload([record(prompts={"rl": 3})], METRICS))
heavy = [m for m in ("torch", "transformers", "vllm", "datasets") if m in sys.modules]
print(early, heavy)
"""


def test_no_torch_in_reporting() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] []"
