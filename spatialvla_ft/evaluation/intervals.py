"""Shares of episodes, with their confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z_95 = 1.959963984540054


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95 % unless `z` says otherwise.

    Unlike the normal approximation it stays in [0, 1] and is honest at 0 and at all successes
    (Wilson 1927).
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials and trials >= 1: {successes}, {trials}")
    share = successes / trials
    z2 = z * z / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = z / (1 + z2) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class Share:
    """`count` of `trials`."""

    count: int
    trials: int

    @property
    def rate(self) -> float:
        """The share itself."""
        return self.count / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Its Wilson 95 % interval."""
        return wilson_interval(self.count, self.trials)
