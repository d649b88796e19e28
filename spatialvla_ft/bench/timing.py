"""Times of several pieces of work, taken in turns, so that a busy machine is unfair to none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from .figures import Figure

Work = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """Seconds of one piece of work, one per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.seconds)

    def figure(self, name: str, counts: str, *, per: int = 1) -> Figure:
        """Milliseconds, divided among `per` pieces."""
        unit = 1000 / per
        low, high = min(self.seconds), max(self.seconds)
        return Figure(name, unit * self.median, "ms", counts, unit * low, unit * high)


def in_turns(works: dict[str, Work], *, rounds: int, device: str = "cpu") -> dict[str, Times]:
    """A B A B ...: every piece of work once per round, after one round that is not timed.

    Args:
        works: by name.
        rounds: timed ones.
        device: "cuda" waits for the GPU before and after each piece.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for timed in (False, *(True for _ in range(rounds))):
        for name, work in works.items():
            _wait(device)
            begin = time.perf_counter()
            work()
            _wait(device)
            if timed:
                seconds[name].append(time.perf_counter() - begin)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
