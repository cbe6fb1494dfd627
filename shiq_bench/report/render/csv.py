"""Files of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shiq_bench.records.escaping import in_csv

if TYPE_CHECKING:
    import pandas as pd


def to_csv(frame: pd.DataFrame) -> str:
    """A frame as text, ten significant digits; undefined is an empty field, and no text is a formula."""
    text: str = frame.map(lambda x: in_csv(x) if isinstance(x, str) else x).to_csv(
        index=False, float_format="%.10g", lineterminator="\n"
    )
    return text
