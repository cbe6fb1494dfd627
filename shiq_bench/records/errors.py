"""What the user can mend, in one line, and the nearest name to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """Something the user can mend. The command line prints it as one line and exits with 2."""


def suggest(name: str, names: Sequence[str]) -> str:
    """``: did you mean X? (known: ...)`` for an error line."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return (f": did you mean {near[0]!r}?" if near else ";") + f" known: {', '.join(names)}"
