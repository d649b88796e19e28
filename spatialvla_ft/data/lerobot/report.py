"""What a conversion says at its end: what is exact, what is not, what was left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Report:
    """Filled while converting.

    Attributes:
        episodes, steps: converted.
        inexact: feature -> in what way it differs.
        left_out: feature -> why.
    """

    episodes: int = 0
    steps: int = 0
    inexact: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "episodes": self.episodes,
            "steps": self.steps,
            "exact": not self.inexact and not self.left_out,
            "inexact": self.inexact,
            "left_out": self.left_out,
        }


@dataclass
class DepthLoss:
    """How far depth in units of 0.1 mm is from the depth it came from."""

    pixels: int = 0
    changed: int = 0
    too_far: int = 0
    largest: float = 0.0

    def sentence(self) -> str | None:
        """In words, or None if every pixel is exact."""
        if not self.changed:
            return None
        far = f"; {self.too_far} beyond 6.5535 m became unknown" if self.too_far else ""
        return (
            f"{self.changed} of {self.pixels} pixels rounded to 0.1 mm, by up to "
            f"{self.largest * 1000:.3f} mm{far}"
        )


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two pictures, dB; infinite if they are equal."""
    error = float(((one.astype(np.float64) - other) ** 2).mean())
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def mean_psnr(values: list[float]) -> float:
    """Peak signal-to-noise ratio of several pictures together, dB; some may be infinite."""
    error = float(np.mean(10 ** (-np.asarray(values) / 10)))
    return float("inf") if error == 0 else float(-10 * np.log10(error))
