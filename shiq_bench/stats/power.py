"""What could have been found: minimum detectable differences."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri, stdtrit

from shiq_bench.stats.intervals import Estimate, check_level


def binomial_stderr(rate: float, n: int) -> float | None:
    """Standard error of a rate over n independent prompts; at 40%, 3.5 points over 200 and 7.7 over 40."""
    return float(np.sqrt(rate * (1 - rate) / n)) if n else None


def detectable_difference(stderr: float, power: float = 0.8, level: float = 0.95) -> float:
    """Smallest true difference of two unpaired means, each with this error, found with this power.

    (z_{1 - (1 - level)/2} + z_power) * sqrt(2) * stderr, two-sided: 3.96 errors at 80% and 95%.
    """
    check_level(level)
    return float((ndtri(0.5 + level / 2) + ndtri(power)) * np.sqrt(2) * stderr)


def detectable(e: Estimate, power: float = 0.8, level: float = 0.95) -> float | None:
    """Smallest true value that an estimate like this one would have told from 0 with this power.

    (t_{1 - (1 - level)/2} + t_power) * stderr with the estimate's degrees of freedom (Bloom 1995): for a mean of
    paired differences. None where there is no error, or an error of 0, which promises nothing.
    """
    check_level(level)
    if not e.stderr or e.units < 2:
        return None
    return float(stdtrit(e.degrees, 0.5 + level / 2) + stdtrit(e.degrees, power)) * e.stderr
