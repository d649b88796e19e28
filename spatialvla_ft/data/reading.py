"""Reading the samples of a batch in the order in which they lie on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Place = TypeVar("Place", bound=tuple[Any, ...])
Read = TypeVar("Read")


def read_in_disk_order(read: Callable[[Place], Read], places: Sequence[Place]) -> list[Read]:
    """`read` of every place, in the order of the places.

    A video is decoded forward from a key frame, so two frames after the same one cost little more
    than the later of them, if that is read last.

    Args:
        read: from a place to what lies there.
        places: (dataset, frame, ...) each.
    """
    order = sorted(range(len(places)), key=lambda i: places[i][:2])
    found = {i: read(places[i]) for i in order}
    return [found[i] for i in range(len(places))]
