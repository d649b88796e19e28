"""How fast a run goes, what share of the machine it reaches, and how much memory it holds."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

GIB = 2**30

PEAKS: dict[str, tuple[float, float, float]] = {
    r"\bB200\b": (2250, 1100, 75),
    r"\bH200 NVL\b": (835, 417, 60),
    r"\bH200\b": (989, 494, 67),
    r"\bH100 NVL\b": (835, 417, 60),
    r"\bH100 PCIe\b": (756, 378, 51),
    r"\bH100\b": (989, 494, 67),
    r"\bA100\b": (312, 156, 19.5),
    r"\bL40S\b": (362, 183, 91.6),
    r"\bL4\b": (121, 60, 30.3),
    r"\bA10\b": (125, 62.5, 31.2),
    r"\bRTX A6000\b": (154.8, 77.4, 38.7),
    r"\bRTX 4090\b": (165.2, 82.6, 82.6),
    r"\bRTX 3090\b": (71, 35.6, 35.6),
}
"""TFLOP/s of dense products by name of the GPU, from the makers' data sheets: bf16, TF32, fp32."""


def peak_flops(device: str, precision: str, *, tf32: bool) -> float | None:
    """FLOP/s that the maker states, or None for a device that the table lacks.

    Args:
        device: name as torch gives it, e.g. "NVIDIA H100 80GB HBM3".
        precision: of the run, "bf16" or "float32".
        tf32: whether float32 products run in TF32.
    """
    for pattern, (bf16, reduced, full) in PEAKS.items():
        if re.search(pattern, device):
            if precision == "bf16":
                return bf16 * 1e12
            return (reduced if tf32 else full) * 1e12
    return None


class Meter:
    """Rates since the last restart; validation and checkpoints are not counted.

    Arithmetic is that of the first micro-batch (matrix products and convolutions of forward and
    backward, frozen parts and recomputed activations included), taken for all later ones.

    Args:
        device: of this rank.
        precision: "bf16" or "float32".
        world: number of ranks, each taken to have the samples of this one.
    """

    def __init__(
        self,
        device: torch.device,
        precision: str,
        world: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.device, self.world, self.clock = device, world, clock
        self.flops: int | None = None
        self.peak = None
        if device.type == "cuda":
            tf32 = torch.backends.cuda.matmul.allow_tf32
            self.peak = peak_flops(torch.cuda.get_device_name(device), precision, tf32=tf32)
        self._begin()

    def _begin(self) -> None:
        self._began, self._waited, self._paused = self.clock(), 0.0, 0.0
        self._samples = self._tokens = self._batches = self._steps = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        began = self.clock()
        yield
        self._waited += self.clock() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is none of training's."""
        began = self.clock()
        yield
        self._paused += self.clock() - began

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """The first time, operations inside are counted as those of a micro-batch."""
        counter = FlopCounterMode(display=False) if self.flops is None else nullcontext()
        with counter:
            yield
        if isinstance(counter, FlopCounterMode):
            self.flops = counter.get_total_flops()

    def count(self, batch: Mapping[str, Tensor]) -> None:
        """A micro-batch of this rank, still in the host's memory."""
        self._samples += len(batch["input_ids"])
        self._tokens += int(batch["attention_mask"].sum())
        self._batches += 1

    def stepped(self) -> None:
        """An optimiser step is done."""
        self._steps += 1

    def restart(self) -> dict[str, float]:
        """The figures so far; counting begins anew."""
        elapsed = max(self.clock() - self._began - self._paused, 1e-9)
        values = {
            "samples_per_second": self._samples * self.world / elapsed,
            "tokens_per_second": self._tokens * self.world / elapsed,
            "steps_per_second": self._steps / elapsed,
            "data_wait_share": self._waited / elapsed,
        }
        if self.flops:
            reached = self.flops * self._batches / elapsed
            values["tflops_per_second"] = reached / 1e12
            if self.peak is not None:
                values["mfu"] = reached / self.peak
        self._begin()
        return values | memory(self.device)


def memory(device: torch.device) -> dict[str, float]:
    """GiB held by this process: on its GPU now and at most, and in the host's memory."""
    values = {"memory/host_gib": resident() / GIB}
    if device.type == "cuda":
        values["memory/gpu_gib"] = torch.cuda.memory_allocated(device) / GIB
        values["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
    return values


def resident() -> int:
    """Bytes of this process in the host's memory; without the processes that load data."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) * 1024
    import resource

    peak: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak)  # bytes on macOS, the only other system
