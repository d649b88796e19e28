"""Statistics that a LeRobot dataset carries: smallest, largest, mean, deviation, count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Moments per dimension of `count` rows; pictures have a row per pixel, three dimensions."""

    count: int
    low: Float64[np.ndarray, ...]
    high: Float64[np.ndarray, ...]
    mean: Float64[np.ndarray, ...]
    squares: Float64[np.ndarray, ...]

    @classmethod
    def of(cls, values: NDArray[Any], count: int | None = None) -> Moments:
        """Moments of (rows, ...) values; `count` where rows are not what is counted."""
        wide = values.astype(np.float64)
        mean = wide.mean(axis=0)
        return cls(
            len(values) if count is None else count,
            wide.min(axis=0),
            wide.max(axis=0),
            mean,
            ((wide - mean) ** 2).mean(axis=0),
        )

    def __add__(self, other: Moments) -> Moments:
        """Of both together."""
        count = self.count + other.count
        a, b = self.count / count, other.count / count
        mean = a * self.mean + b * other.mean
        spread = a * (self.mean - mean) ** 2 + b * (other.mean - mean) ** 2
        return Moments(
            count,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            mean,
            a * self.squares + b * other.squares + spread,
        )

    def to_json(self, *, picture: bool) -> dict[str, Any]:
        """As LeRobot writes it: lists, (3, 1, 1) for pictures."""
        values = {
            "min": self.low,
            "max": self.high,
            "mean": self.mean,
            "std": np.sqrt(self.squares),
        }
        shape = (-1, 1, 1) if picture else None
        listed = {
            name: (value.reshape(shape) if shape else np.atleast_1d(value)).tolist()
            for name, value in values.items()
        }
        return {**listed, "count": [self.count]}


def moments_of_picture(picture: NDArray[Any]) -> Moments:
    """Per channel, of values from 0 to 1; one picture counts once."""
    pixels = picture.reshape(-1, picture.shape[-1] if picture.ndim == 3 else 1)
    return Moments.of(pixels / np.iinfo(picture.dtype).max, count=1)
