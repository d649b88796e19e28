"""The rule for bad pixels, first half: which depth counts (docs/decisions/0009).

Free of torch, so that dataset readers, torch code and plain NumPy share it.
"""

from __future__ import annotations

from typing import Any


def usable(metres: Any) -> Any:
    """True where depth is known: finite and above 0.

    Args:
        metres: NumPy array or torch tensor of any shape.

    Returns:
        Booleans of the same shape and kind. Zero, negative, NaN and infinity are all unknown.
    """
    return (metres > 0) & (metres < float("inf"))
