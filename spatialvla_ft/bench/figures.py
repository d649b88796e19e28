"""What a measurement reports: numbers with their unit, their spread and what they count.

Times of several pieces of work, taken in turns, so that a busy machine is unfair to none.

How fast this machine can be, measured in the same run: the floor under every other figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        name: what was measured.
        value: the median, or None where it could not be measured here.
        unit: of value, low and high.
        counts: what the number counts, in words.
        low, high: the least and the greatest of the rounds; None for what is derived or counted.
    """

    name: str
    value: float | None
    unit: str
    counts: str
    low: float | None = None
    high: float | None = None


@dataclass
class Report:
    """The figures of one part of `spatialvla-ft bench`.

    Attributes:
        part: predict, train-logits, train-step, codec, depth, data, video, graphs or flex.
        settings: sizes, device and dtype that the figures belong to.
        figures: in the order of showing.
        notes: what a reader must know before believing a figure.
    """

    part: str
    settings: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float | None, unit: str, counts: str) -> None:
        """A figure that is counted or derived, or that is unmeasured here (None)."""
        self.figures.append(Figure(name, value, unit, counts))

    def __getitem__(self, name: str) -> Figure:
        """The figure of this name."""
        return next(figure for figure in self.figures if figure.name == name)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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


COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
"""Far beyond every cache."""

MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Machine:
    """What a big copy and a big matrix product reach.

    Attributes:
        bytes_per_second: read plus written by the copy.
        flops: floating-point operations per second of the product, in the model's dtype.
        threads: of torch.
        device: its name.
    """

    bytes_per_second: float
    flops: float
    threads: int
    device: str

    def floor_ms(self, flops: float, read: float) -> float:
        """Least milliseconds for this much arithmetic and this many bytes, perfectly overlapped."""
        return 1000 * max(flops / self.flops, read / self.bytes_per_second)


@torch.no_grad()
def measure_machine(device: str, dtype: torch.dtype, *, rounds: int = 5) -> Machine:
    """Time a copy and a product."""
    count = COPY_BYTES[device]
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = MATMUL_SIDE[device]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = in_turns(
        {"copy": lambda: target.copy_(source), "product": lambda: a @ b},
        rounds=rounds,
        device=device,
    )
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return Machine(
        bytes_per_second=2 * count / times["copy"].median,
        flops=2 * side**3 / times["product"].median,
        threads=torch.get_num_threads(),
        device=name,
    )


def count_flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and convolutions in `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
