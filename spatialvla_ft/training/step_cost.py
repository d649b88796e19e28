"""What a step costs on this machine, measured before the first one: depth, and bf16."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.pictures import fit_step
from ..policy.inputs import Collator
from .distributed import trains_on_cpu
from .global_batch import process_count
from .run import Run

SAMPLES = 2
ROUNDS = 2
BF16_ROUNDS = 10
ROWS = 256
"""Tokens of the product that tells how fast bf16 is, about those of one sample."""
NO_SLOWER = 1.05
"""bf16 that takes less than so many times float32's time is taken to be no slower."""


@dataclass(frozen=True)
class DepthShare:
    """How long a frozen ZoeDepth takes beside the rest of a training step.

    Attributes:
        depth: seconds per picture.
        rest: seconds per sample of forward and backward pass without it.
        views: pictures per sample.
    """

    depth: float
    rest: float
    views: int

    @property
    def share(self) -> float:
        """Of the time of a step, if depth is estimated in it."""
        return self.views * self.depth / (self.views * self.depth + self.rest)


def depth_share(run: Run) -> DepthShare | None:
    """Measure both on samples of a run, on the device that will train.

    The model is moved there. The rest is taken to be three forward passes, four where activations
    are computed again.

    Returns:
        None where the model does not fit on one device as it is: several processes, shards, memory.
    """
    train, model = run.recipe.train, run.spatialvla
    alone = process_count() == 1 and train.sharding == "none"
    if not trains_on_cpu():
        if not alone or run.recipe.model.quantisation is not None:
            return None
        try:
            model.to(torch.accelerator.current_accelerator())
        except torch.OutOfMemoryError:
            return None
    device = next(model.parameters()).device
    size = run.processor.image_size
    count = min(SAMPLES, len(run.datasets[0]))
    samples = [fit_step(run.datasets[0][i], size, "fast") for i in range(count)]
    collate = Collator(run.processor, "estimate", as_tokens=run.collate.as_tokens)
    batch = collate(samples)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    pixels = batch["pixel_values"].flatten(0, -4)
    depth = model.depth_of(pixels)
    batch["depth"] = depth if batch["pixel_values"].ndim == 4 else depth.unflatten(0, (count, -1))
    bf16 = train.precision == "bf16" or run.recipe.model.dtype == "bf16"

    @torch.no_grad()
    def forward() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return model(**batch, logits_to_keep="labels").loss

    passes = 4 if train.activation_checkpointing else 3
    return DepthShare(
        _best(lambda: model.depth_of(pixels), ROUNDS) / len(pixels),
        passes * _best(forward, ROUNDS) / count,
        len(pixels) // count,
    )


@cache
def bf16_beside_float32(width: int) -> float:
    """Time of a linear layer, forward and backward, in bf16 on this processor, over float32's.

    Processor time of one thread: beside other work, threads that wait for each other have taken
    bf16 for 39 times as slow where it was a fifth faster.

    Args:
        width: of the layer; its output is four times as wide.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((4 * width, width), generator=generator).requires_grad_()
    tokens = torch.randn((ROWS, width), generator=generator).requires_grad_()

    def work(enabled: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = F.linear(tokens, weight)
        return torch.autograd.grad(out.float().sum(), (tokens, weight))[0]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bf16, float32 = (
            _best(lambda enabled=enabled: work(enabled), BF16_ROUNDS, clock=time.thread_time)
            for enabled in (True, False)
        )
    finally:
        torch.set_num_threads(threads)
    return bf16 / float32


def workers_here(asked: int) -> int:
    """Loader processes that this machine has cores for; one core stays free where it also trains.

    0, reading in the training process, stays 0.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return min(asked, max(1, cores - 1 if trains_on_cpu() else cores))


def _best(
    work: Callable[[], Tensor], rounds: int, clock: Callable[[], float] | None = None
) -> float:
    """Seconds of the fastest round, after one that does not count."""
    times, clock = [], clock or time.perf_counter
    for _ in range(rounds + 1):
        begin = clock()
        result = work()
        if result.device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(clock() - begin)
    return min(times[1:])
