"""Pinhole cameras: K from the forms that datasets store it in, and K of a resized picture.

Free of torch, so that dataset readers, torch code and plain NumPy share it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64

Matrix = TypeVar("Matrix")


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


def scale_intrinsics(K: Matrix, scale_x: float, scale_y: float) -> Matrix:
    """K of the picture after it was resized by (scale_x, scale_y): the first two rows scale.

    Args:
        K: (*B, 3, 3) pixels; a torch tensor on any device, or a NumPy array.
        scale_x: new width over the old one.
        scale_y: new height over the old one.

    Returns:
        A new array of the same kind, computed in float64: a tensor has the type of `K` again, a
        NumPy array stays float64.
    """
    given: Any = K
    tensor = hasattr(given, "double")
    scaled: Any = given.double().clone() if tensor else np.array(given, np.float64)
    scaled[..., 0, :] *= scale_x
    scaled[..., 1, :] *= scale_y
    result: Matrix = scaled.to(given.dtype) if tensor else scaled
    return result
