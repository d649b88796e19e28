"""Depth between the unit of a dataset and 0.1 mm, with an account of what is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialvla_ft.data.lerobot.draft import DEPTH_SCALE
from spatialvla_ft.data.lerobot.report import DepthLoss


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
