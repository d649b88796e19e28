"""Whole numbers in the fewest bytes: there is one for every episode of a dataset."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def compact(numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The same numbers, 4 bytes each where all fit and 8 otherwise."""
    limits = np.iinfo(np.int32)
    fits = not len(numbers) or (limits.min <= numbers.min() and numbers.max() <= limits.max)
    return numbers.astype(np.int32 if fits else np.int64)
