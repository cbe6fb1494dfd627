"""A payload to one HTML page that needs no network: leaderboard, pictures, runs, completions, configurations.

The page holds its style, its scripts, its data and plotly's, which is unpacked when a picture is first seen. Data never
become markup: they stand in elements that no browser executes, and the scripts make text of them. The same payload
gives the same bytes: nothing here reads a clock or a folder.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from shiq_bench.report.payload import Payload, pack

#: In the order in which they run.
SCRIPTS = ("report.js", "report_runs.js", "report_views.js", "report_pictures.js", "report_begin.js")


def page(content: Payload) -> bytes:
    """The page, with everything it needs inside."""
    import jinja2
    from plotly.offline import get_plotlyjs

    folder = resources.files("shiq_bench.report")
    template, style, *scripts = (
        (folder / name).read_text(encoding="utf-8") for name in ("report.html.j2", "report.css", *SCRIPTS)
    )
    plotly = get_plotlyjs()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    html = environment.from_string(template).render(
        policy=_policy([*scripts, plotly]),
        style=style,
        scripts=scripts,
        core=embedded(content.core),
        packs=content.packs,
        plotly=pack(plotly.encode()),
    )
    return html.encode()


def embedded(data: Any) -> str:
    """JSON that can stand in a script element: no character in it means anything to HTML, or ends a line of a script.

    Raises:
        ValueError: NaN or infinity.
    """
    # ASCII alone: U+2028 and U+2029 are escaped with the rest.
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    """Content security policy: these scripts and no others, and nothing from anywhere."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
