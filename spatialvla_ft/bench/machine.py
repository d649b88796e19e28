"""How fast this machine can be, measured in the same run: the floor under every other figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .timing import in_turns

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
