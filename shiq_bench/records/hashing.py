"""One text and one hash for one value, on every machine."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(data: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def stable_hash(data: Any) -> str:
    """SHA-256 hex digest of :func:`canonical_json`; equal across processes and machines."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()
