"""What an update costs as one thing grows, in either layout: a page of four small plots, and the numbers behind it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from shiq_bench.bench.process import fresh_process, matrix_rate
from shiq_bench.bench.training import Work, measure
from shiq_bench.records.files import check_writable, write_atomic
from shiq_bench.runs.progress import LiveReport

#: Where every plot starts from. ShiQ takes any number of answers.
BASE = Work(algo="shiq", prompt=512, answer=32, answers=4, prompts=1, updates=2, width=384, layers=8, vocabulary=16_384)

#: What grows -> the works of its plot, by the number on the axis.
AXES: Mapping[str, Mapping[int, Work]] = {
    "tokens of a prompt": {n: replace(BASE, prompt=n) for n in (64, 256, 1024, 2048)},
    "answers to a prompt": {n: replace(BASE, answers=n) for n in (1, 2, 4, 8, 16)},
    "tokens of the vocabulary": {n: replace(BASE, vocabulary=n) for n in (4096, 16_384, 65_536, 152_064)},
    "layers": {n: replace(BASE, layers=n) for n in (2, 4, 8, 16, 32)},
}

FORMS = ("padded", "tree")

#: Axis -> form -> number on the axis -> what :func:`shiq_bench.bench.training.measure` found, or why nothing.
Found = dict[str, dict[str, dict[int, Any]]]


def print_cost(out: Path) -> None:
    """Measure every point in a process of its own; write ``cost.json`` and ``cost.png`` into a folder.

    Raises:
        UserError: the folder cannot be written.
    """
    check_writable(out)
    points = [(axis, form, n, work) for axis, works in AXES.items() for form in FORMS for n, work in works.items()]
    found: Found = {axis: {form: {} for form in FORMS} for axis in AXES}
    with LiveReport(Console(stderr=True)) as report:
        rate = fresh_process(matrix_rate, BASE.precision)
        for done, (axis, form, n, work) in enumerate(points):
            report(f"{axis}: {n}, {form}", done, len(points))
            found[axis][form][n] = fresh_process(measure, form, **asdict(work))
    told = {"base": asdict(BASE), "matrix": rate, "found": found}
    write_atomic(out / "cost.json", json.dumps(told, indent=1).encode())
    write_atomic(out / "cost.png", drawn(found))
    Console().print(f"{out / 'cost.png'} and {out / 'cost.json'}: {len(points)} measurements")


def drawn(found: Found) -> bytes:
    """Four plots as a PNG, seconds an update over what grows, logarithmic; what was not measured is left out."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from shiq_bench.report.plot import COLOURS, DPI, RC, logarithmic

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        figure = Figure(figsize=(7.2, 5.2), layout="constrained")
        for place, (axis, forms) in enumerate(found.items(), 1):
            axes = figure.add_subplot(2, 2, place)
            axes.set(xlabel=axis, ylabel="seconds an update")
            for form, colour in zip(forms, COLOURS, strict=False):
                points = [(n, got["seconds"]) for n, got in sorted(forms[form].items()) if not isinstance(got, str)]
                axes.plot([n for n, _ in points], [s for _, s in points], color=colour, marker="o", label=form)
            numbers = sorted({n for points in forms.values() for n in points})
            logarithmic(axes.yaxis, 10)
            axes.set_xscale("log")
            axes.set_xticks(numbers, [f"{n:g}" for n in numbers])
            axes.minorticks_off()
            axes.legend()
        png = io.BytesIO()
        FigureCanvasAgg(figure).print_figure(png, format="png", dpi=DPI, metadata={"Software": None})
    return png.getvalue()
