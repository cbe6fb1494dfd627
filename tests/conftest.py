"""Settings every test shares."""

from __future__ import annotations

import os

# Models this small gain nothing from a second thread, and on a busy machine lose much to waiting for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
