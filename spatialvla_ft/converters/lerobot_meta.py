"""Statistics that a LeRobot dataset carries: smallest, largest, mean, deviation, count.

The page that a dataset shows on the Hub.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Moments per dimension of `count` rows; pictures have a row per pixel, three dimensions.

    What is not finite is unknown and does not count. A dimension that is never known has count 0,
    and no smallest (infinity) or largest (minus infinity) value.
    """

    count: Int64[np.ndarray, ...]
    low: Float64[np.ndarray, ...]
    high: Float64[np.ndarray, ...]
    mean: Float64[np.ndarray, ...]
    squares: Float64[np.ndarray, ...]

    @classmethod
    def of(cls, values: NDArray[Any], count: int | None = None) -> Moments:
        """Moments of (rows, ...) values; `count` where rows are not what is counted."""
        wide = values.astype(np.float64)
        known = np.isfinite(wide)
        rows = known.sum(axis=0)
        divisor = np.maximum(rows, 1)
        mean = np.where(known, wide, 0).sum(axis=0) / divisor
        return cls(
            rows if count is None else np.where(rows > 0, count, 0),
            np.where(known, wide, np.inf).min(axis=0),
            np.where(known, wide, -np.inf).max(axis=0),
            mean,
            (np.where(known, wide - mean, 0) ** 2).sum(axis=0) / divisor,
        )

    def __add__(self, other: Moments) -> Moments:
        """Of both together."""
        count = self.count + other.count
        divisor = np.maximum(count, 1)
        a, b = self.count / divisor, other.count / divisor
        mean = a * self.mean + b * other.mean
        spread = a * (self.mean - mean) ** 2 + b * (other.mean - mean) ** 2
        return Moments(
            count,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            mean,
            a * self.squares + b * other.squares + spread,
        )

    @property
    def complete(self) -> bool:
        """Whether every dimension is known somewhere."""
        return bool((self.count > 0).all())

    def to_json(self, *, picture: bool) -> dict[str, Any]:
        """As LeRobot writes it: lists, (3, 1, 1) for pictures; NaN of what is never known."""
        values = {
            "min": self.low,
            "max": self.high,
            "mean": self.mean,
            "std": np.sqrt(self.squares),
        }
        shape = (-1, 1, 1) if picture else None
        listed = {}
        for name, value in values.items():
            told = np.where(self.count > 0, value, np.nan)
            listed[name] = (told.reshape(shape) if shape else np.atleast_1d(told)).tolist()
        return {**listed, "count": [int(self.count.max())]}


def moments_of_picture(picture: NDArray[Any]) -> Moments:
    """Per channel, of values from 0 to 1; one picture counts once."""
    pixels = picture.reshape(-1, picture.shape[-1] if picture.ndim == 3 else 1)
    return Moments.of(pixels / np.iinfo(picture.dtype).max, count=1)


FRONT_MATTER = """---
task_categories:
- robotics
tags:
- LeRobot
configs:
- config_name: default
  data_files: data/*/*.parquet
---
"""
"""What tells the Hub, and `datasets`, where the data files are."""

_BODY = """
{episodes} episodes, {frames} steps at {fps} Hz, robot {robot}; LeRobot format {version}.

Depth (`depth.<camera>`) is 16-bit grey FFV1, metres x 10000, 0 = unknown. Per frame,
`<camera>_camera_intrinsics` holds fx, fy, cx, cy in pixels and `<camera>_camera_extrinsics` the
camera's pose (OpenCV axes) in the robot's base, a 4 x 4 matrix row by row, metres.

```json
{info}
```
"""


def readme(info: dict[str, Any]) -> str:
    """Markdown with the front matter that lets `datasets` find the data files."""
    return FRONT_MATTER + _BODY.format(
        episodes=info["total_episodes"],
        frames=info["total_frames"],
        fps=info["fps"],
        robot=info["robot_type"] or "unknown",
        version=info["codebase_version"],
        info=json.dumps(info, indent=2),
    )
