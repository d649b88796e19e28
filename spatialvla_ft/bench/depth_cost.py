"""What a cheaper way to depth costs in accuracy and saves in time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..depth.protocol import DepthEstimator


@dataclass(frozen=True)
class Comparison:
    """A cheaper estimator against the full one, on the same pictures.

    The full estimator stands in for the truth: these are differences between two estimates, not
    errors in metres of the world. With random weights they say nothing about trained weights.

    Attributes:
        pictures: how many were compared.
        abs_rel: mean over pixels of |cheaper - full| / full.
        delta1: share of pixels whose ratio, the larger over the smaller, is below 1.25.
        full_ms, cheaper_ms: milliseconds per picture, the median of the batches.
        ms_ratio: cheaper over full; below 1 it is faster.
    """

    pictures: int
    abs_rel: float
    delta1: float
    full_ms: float
    cheaper_ms: float

    @property
    def ms_ratio(self) -> float:
        """Time of the cheaper one over that of the full one."""
        return self.cheaper_ms / self.full_ms

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {**asdict(self), "ms_ratio": self.ms_ratio}


def compare(
    estimator: DepthEstimator,
    cheaper: DepthEstimator,
    pictures: Iterable[Float[Tensor, "B 3 H W"]],
    intrinsics: Float[Tensor, "3 3"] | None = None,
    *,
    warm_up: bool = True,
) -> Comparison:
    """Run both on batches of pictures.

    Args:
        estimator: full price; the reference.
        cheaper: e.g. the same at a lower resolution.
        pictures: batches in [0, 1]; sizes may differ from batch to batch.
        intrinsics: one K for all of them, where it is known.
        warm_up: run each once on the first batch, untimed.

    Raises:
        ValueError: no picture.
    """
    relative, near, pixels, count = 0.0, 0, 0, 0
    full_ms: list[float] = []
    cheaper_ms: list[float] = []
    for batch in pictures:
        K = None if intrinsics is None else intrinsics.expand(len(batch), 3, 3)
        if warm_up and count == 0:
            estimator(batch, K)
            cheaper(batch, K)
        full, took = _timed(estimator, batch, K)
        full_ms.append(took)
        quick, took = _timed(cheaper, batch, K)
        cheaper_ms.append(took)
        ratio = quick.double() / full.double()
        relative += float((ratio - 1).abs().sum())
        near += int((torch.maximum(ratio, 1 / ratio) < 1.25).sum())
        pixels += ratio.numel()
        count += len(batch)
    if count == 0:
        raise ValueError("no pictures to compare on; pass at least one batch (B, 3, H, W)")
    return Comparison(
        count, relative / pixels, near / pixels, _median(full_ms), _median(cheaper_ms)
    )


def _timed(
    estimator: DepthEstimator, batch: Tensor, intrinsics: Tensor | None
) -> tuple[Tensor, float]:
    _wait(batch)
    begin = time.perf_counter()
    depth = estimator(batch, intrinsics)
    _wait(depth)
    return depth, 1000 * (time.perf_counter() - begin) / len(batch)


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))
