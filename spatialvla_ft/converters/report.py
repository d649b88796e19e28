"""What a conversion says at its end: what is exact, what is not, what was left out.

Depth between the unit of a dataset and 0.1 mm, with an account of what is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialvla_ft.data.lerobot.draft import DEPTH_SCALE


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


def to_units(stored: NDArray[Any], scale: float, loss: DepthLoss) -> NDArray[np.uint16]:
    """Stored depth in units of 0.1 mm, 0 where it is unknown or too far."""
    metres = stored.astype(np.float64) * scale
    known = np.isfinite(metres) & (metres > 0)
    units = np.where(known, np.rint(metres / DEPTH_SCALE), 0)
    far = units > np.iinfo(np.uint16).max
    kept = np.where(far, 0, units).astype(np.uint16)
    back = from_units(kept, scale, stored.dtype)
    changed = (back != stored) & ~((kept == 0) & ~known)
    loss.pixels += stored.size
    loss.changed += int(changed.sum())
    loss.too_far += int(far.sum())
    near = changed & ~far
    if near.any():
        off = np.abs(back[near].astype(np.float64) * scale - metres[near]).max()
        loss.largest = max(loss.largest, float(off))
    return kept


def from_units(units: NDArray[np.uint16], scale: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Depth in units of 0.1 mm, in another unit."""
    values = units.astype(np.float64) * (DEPTH_SCALE / scale)
    if dtype.kind == "f":
        return values.astype(dtype)
    return np.rint(np.minimum(values, np.iinfo(dtype).max)).astype(dtype)
