"""The Wilson interval of a rate. Pure arithmetic."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""The 0.975 quantile of the standard normal distribution: two-sided 95 %."""


def wilson_interval(count: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a binomial rate.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927), 209-212. With p = count / total it is

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),

    the rates from which p is at most z standard errors away. It stays within 0 and 1, also where p is one of these. The
    trials are taken as independent.

    Args:
        count: Number of successes, from 0 to ``total``.
        total: Number of trials.
        z: Quantile of the standard normal distribution; by default that of 95 %.

    Returns:
        Lower and upper end; 0 and 1 where there are no trials.

    Raises:
        ValueError: ``count`` is not from 0 to ``total``.

    Example:
        >>> low, high = wilson_interval(5, 10)
        >>> round(low, 4), round(high, 4)
        (0.2366, 0.7634)
    """
    if not 0 <= count <= total:
        raise ValueError(f"{count} successes of {total} trials")
    if total == 0:
        return 0.0, 1.0
    rate, squared = count / total, z * z
    middle = rate + squared / (2 * total)
    half = z * math.sqrt(rate * (1 - rate) / total + squared / (4 * total * total))
    whole = 1 + squared / total
    # Rounding must not put the rate itself outside: at 0 and 1 an end is exactly there.
    return max(0.0, min((middle - half) / whole, rate)), min(1.0, max((middle + half) / whole, rate))
