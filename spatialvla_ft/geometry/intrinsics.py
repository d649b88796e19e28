"""Intrinsics in the forms that datasets store them in."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64


def camera_matrix(value: Any, where: str) -> Float64[np.ndarray, "3 3"]:
    """K from a (3, 3) matrix, row by row, or from fx, fy, cx, cy; ValueError for others."""
    numbers = np.asarray(value, np.float64)
    if numbers.size == 4:
        fx, fy, cx, cy = numbers.ravel()
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    if numbers.size != 9:
        raise ValueError(
            f"{where}: intrinsics are 9 numbers (K row by row) or fx, fy, cx, cy; got shape "
            f"{numbers.shape}"
        )
    return numbers.reshape(3, 3)
