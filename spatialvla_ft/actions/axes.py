"""The six binned axes of an arm: names, ranges, units, and spherical coordinates.

Translation is binned in spherical coordinates (paper section 3.2): theta is the polar angle from
+z, phi the azimuth from +x towards +y, r the length; a normalised (x, y, z) lies in [-1, 1]^3, so r
is at most sqrt(3). Rotations (roll, pitch, yaw) are normalised numbers in [-1, 1].

NumPy in, NumPy out; torch in, torch out on the same device.
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


def spherical_from_xyz(xyz: F64) -> tuple[F64, F64, F64]:
    """(n, 3) to theta in [0, pi], phi in [-pi, pi], r >= 0. The origin has theta 0 (released)."""
    x, y, z = xyz[:, 0], xyz[:, 1], xyz[:, 2]
    rho2 = x * x + y * y
    return np.arctan2(np.sqrt(rho2), z), np.arctan2(y, x), np.sqrt(rho2 + z * z)


def to_numpy(array: Any) -> NDArray[Any]:
    """A NumPy array of a torch tensor, a NumPy array or nested lists."""
    if hasattr(array, "detach"):
        tensor = array.detach()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()
        return np.asarray(tensor.cpu().numpy())
    return np.asarray(array)


def like(result: NDArray[Any], source: Any) -> Any:
    """`result` as the kind of `source`: a tensor on its device if it is one."""
    if hasattr(source, "detach"):
        import torch

        return torch.from_numpy(result).to(source.device)
    return result
