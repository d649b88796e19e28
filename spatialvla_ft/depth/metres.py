"""What counts as depth in metres: the one judgement for every door through which readings come in.

Free of torch, though tensors are understood.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float32

from ..geometry.depth_maps import usable
from ..pictures import as_array, described

NEAR, FAR = 0.02, 20.0
"""Metres between which the median depth of a robot's picture lies."""
ENOUGH = 4096
"""Pixels that tell a median well enough."""


class DepthWarning(UserWarning):
    """Depth that is hardly in metres."""


def reading_in_metres(depth: Any, name: str = "depth") -> Float32[np.ndarray, "*S"]:
    """A reading as float32, of whatever shape; its unknown pixels (0, NaN, ...) stay as they are.

    Args:
        depth: floats in metres, as an array, a torch tensor on any device, or a PIL image.
        name: what it is, for errors and warnings.

    Raises:
        ValueError: whole numbers, which are a sensor's own units; the type, range and cure are
            named.

    Warns:
        DepthWarning: the median of the known pixels is not what a robot's camera sees. Only its
            first digit is told, so that a stream of such readings is warned of once.
    """
    values = as_array(depth, name)
    if values.dtype.kind in "bui":
        raise ValueError(
            f"{name} is {described(values)}: whole numbers are a sensor's own units, and depth is "
            "in metres. Divide by the units per metre: depth.astype(np.float32) / 1000 for "
            "millimetres (RealSense, Azure Kinect, Orbbec), / 10000 for 0.1 mm"
        )
    if values.dtype.kind != "f":
        raise ValueError(f"{name} is {described(values)}: depth is float, in metres")
    metres = values.astype(np.float32, copy=False)
    few = metres.ravel()[:: max(1, metres.size // ENOUGH)]
    known = few[usable(few)]
    middle = float(np.median(known)) if known.size else 1.0
    if not NEAR <= middle <= FAR:
        warnings.warn(
            f"the median of {name} is about {middle:.1g} m, and a robot's camera sees {NEAR:g} to "
            f"{FAR:g} m: check its unit"
            + (" (millimetres are divided by 1000)" if middle > FAR else ""),
            DepthWarning,
            stacklevel=2,
        )
    return metres
