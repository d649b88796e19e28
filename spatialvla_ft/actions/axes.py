"""The six binned axes of one arm: names, ranges, units, and how an action maps onto them.

Translation is binned in spherical coordinates (paper section 3.2): theta is the polar angle from
+z, phi the azimuth from +x towards +y, r the length; a normalised (x, y, z) lies in [-1, 1]^3, so r
is at most sqrt(3). Rotations (roll, pitch, yaw) are normalised numbers in [-1, 1].
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

TRANSLATION_AXES = ("theta", "phi", "r")
ROTATION_AXES = ("roll", "pitch", "yaw")
AXES = TRANSLATION_AXES + ROTATION_AXES

RANGES: dict[str, tuple[float, float]] = {
    "theta": (0.0, math.pi),
    "phi": (-math.pi, math.pi),
    "r": (0.0, math.sqrt(3.0)),
    "roll": (-1.0, 1.0),
    "pitch": (-1.0, 1.0),
    "yaw": (-1.0, 1.0),
}

UNITS: dict[str, str] = {
    "theta": "rad",
    "phi": "rad",
    "r": "normalised",
    "roll": "normalised",
    "pitch": "normalised",
    "yaw": "normalised",
}

ACTION_DIMS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
DEFAULT_BINS = (16, 32, 8, 16, 16, 16, 2)


def check_bins(bins: Any) -> tuple[int, ...]:
    """Seven counts (theta, phi, r, roll, pitch, yaw, gripper); the gripper has exactly two."""
    counts = tuple(int(n) for n in bins)
    names = (*AXES, "gripper")
    if len(counts) != len(names):
        raise ValueError(
            f"bins needs {len(names)} counts, one each for {', '.join(names)}; got {counts}. "
            f"The default is {DEFAULT_BINS}"
        )
    for index, (name, n, given) in enumerate(zip(names, counts, bins, strict=True)):
        if n != given or n < 1:
            raise ValueError(f"bins[{index}] ({name}) must be a positive whole number, got {given}")
    if counts[-1] != 2:
        raise ValueError(
            f"bins[6] (gripper) must be 2, closed and open, got {counts[-1]}; "
            "a gripper with more positions needs a head that regresses it"
        )
    return counts


def check_actions(actions: Any, what: str = "actions") -> F64:
    """Float64 copy or view (n, 7); ValueError on a wrong shape, NaN or infinity.

    A single action (7,) counts as one row.
    """
    array = np.asarray(actions, dtype=np.float64)
    if array.ndim == 1 and array.shape[0] == len(ACTION_DIMS):
        array = array[None]
    if array.ndim != 2 or array.shape[1] != len(ACTION_DIMS):
        raise ValueError(
            f"{what} must have shape (n, 7) for {', '.join(ACTION_DIMS)}; got {array.shape}. "
            "Reshape chunks (B, T, 7) to (B * T, 7), and pad or drop nothing"
        )
    if not np.isfinite(array).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(
            f"{what}[{row}, {column}] ({ACTION_DIMS[column]}) is {array[row, column]}; an action "
            "must be finite. Look at the recording around this step, or drop the episode"
        )
    return array


def spherical_from_xyz(xyz: F64) -> tuple[F64, F64, F64]:
    """(n, 3) to theta in [0, pi], phi in [-pi, pi], r >= 0. The origin has theta 0 (released)."""
    x, y, z = xyz[:, 0], xyz[:, 1], xyz[:, 2]
    rho2 = x * x + y * y
    return np.arctan2(np.sqrt(rho2), z), np.arctan2(y, x), np.sqrt(rho2 + z * z)


def axis_values(actions: F64) -> dict[str, F64]:
    """Normalised actions (n, 7) to the value of each binned axis, (n,) each."""
    theta, phi, r = spherical_from_xyz(actions[:, :3])
    return {
        "theta": theta,
        "phi": phi,
        "r": r,
        "roll": actions[:, 3],
        "pitch": actions[:, 4],
        "yaw": actions[:, 5],
    }
