"""What a step tells besides the loss: accuracy of each token type, and how fast it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jaxtyping import Float, Int
from torch import Tensor

from ..actions.layout import Slot
from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.decoding import type_slices


def token_accuracy(
    logits: Float[Tensor, "L V"],
    targets: Int[Tensor, " L"],
    config: SpatialVLAConfig,
    slots: Sequence[Slot],
) -> dict[str, float]:
    """Share of label tokens whose most likely id is right, by slot of the grid."""
    right = logits.argmax(-1) == targets
    relative = targets - config.action_token_begin_idx
    result = {}
    for slot, where in zip(slots, type_slices(config), strict=True):
        of_type = (relative >= where.start) & (relative < where.stop)
        if bool(of_type.any()):
            result[f"accuracy/{slot.name}"] = float(right[of_type].float().mean())
    return result


class Throughput:
    """Samples per second, and the share of time spent waiting for data, since the last restart."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._began, self._waited, self._samples = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def count(self, samples: int) -> None:
        """More samples were trained on, over all ranks."""
        self._samples += samples

    def restart(self) -> dict[str, float]:
        """The figures so far; counting begins anew."""
        elapsed = time.perf_counter() - self._began
        values = {
            "samples_per_second": self._samples / elapsed,
            "data_wait_share": self._waited / elapsed,
        }
        self._begin()
        return values
