"""`spatialvla-ft bench depth`: what makes depth cheap, and what it costs in accuracy.

What a cheaper way to depth costs in accuracy and saves in time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import ZoeDepthConfig

from ..depth.cache import CachedDepth, DepthCache
from ..depth.every_nth import EveryNth
from ..depth.protocol import DepthEstimator
from ..depth.sensor import SensorDepth
from ..depth.zoe import PerImageZoeDepth
from ..depth.zoe_estimator import ZoeDepth
from ..memory.sizes import LARGE_ZOE, TINY_ZOE, check_size, default_dtype
from .figures import Report, Work, in_turns


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


SIDE = 224
PIXELS_PER_FRAME = 2
LOWER = (256, 192)
EVERY = 4


def bench_depth(size: str, *, device: str = "cpu", rounds: int = 5) -> Report:
    """Milliseconds of depth per picture, and differences from full ZoeDepth.

    Args:
        size: tiny is a small ZoeDepth; 100m and 4b take the real one (BEiT-L, 384 pixels).
        device: cpu or cuda.
        rounds: timed ones.
    """
    check_size("tiny" if size == "4b" else size, device)
    network = _network(size, device)
    full = ZoeDepth(network)
    frames = _moving_pictures(EVERY).to(device)
    cheaper: dict[str, DepthEstimator] = {
        f"{side} pixels": ZoeDepth(network, resolution=side) for side in LOWER
    }
    report = Report(
        "depth",
        {
            "size": size,
            "parameters": sum(p.numel() for p in network.parameters()),
            "device": device,
            "threads": torch.get_num_threads(),
            "dtype": str(network.dtype).removeprefix("torch."),
            "picture": SIDE,
            "rounds": rounds,
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        cached = CachedDepth(full, DepthCache(folder))
        cached(frames[:1])
        sensor = SensorDepth(full(frames[:1]))
        nth = EveryNth(full, EVERY)
        works: dict[str, Work] = {
            "full": lambda: full(frames[:1]),
            **{name: _once(estimator, frames[:1]) for name, estimator in cheaper.items()},
            "every n-th": lambda: _episode(nth, frames),
            "cache": lambda: cached(frames[:1]),
            "sensor": lambda: sensor(frames[:1]),
        }
        times = in_turns(works, rounds=rounds, device=device)
    words = {
        "full": "ZoeDepth at 384 pixels, one picture",
        **{name: f"ZoeDepth at {name}, one picture" for name in cheaper},
        "every n-th": f"per picture, one of {EVERY} of an episode estimated",
        "cache": "one picture found on disk, key and reading included",
        "sensor": "filling the holes of a reading that has none",
    }
    for name, work in times.items():
        per = EVERY if name == "every n-th" else 1
        report.figures.append(work.figure(name, words[name], per=per))
    for name in words:
        if name != "full":
            speed = report["full"].value / report[name].value
            report.add(f"{name}, times faster", speed, "x", "full / this")
    for name, estimator in cheaper.items():
        result = compare(full, estimator, [frames], warm_up=False)
        _add_difference(report, name, result.abs_rel, result.delta1)
    reference = full(frames)
    old = _episode(EveryNth(full, EVERY), frames)
    ratio = old.double() / reference.double()
    near = torch.maximum(ratio, 1 / ratio) < 1.25
    _add_difference(
        report, "every n-th", float((ratio - 1).abs().mean()), float(near.double().mean())
    )
    report.notes.append(
        "random weights and made-up pictures: the differences show the measurement, and say "
        f"nothing of trained weights; the pictures move {PIXELS_PER_FRAME} pixels per frame"
    )
    return report


def _add_difference(report: Report, name: str, abs_rel: float, delta1: float) -> None:
    report.add(f"{name}, abs rel", abs_rel, "", "mean |difference| / full ZoeDepth, per pixel")
    report.add(f"{name}, delta1", delta1, "", "share of pixels within 1.25 times of full ZoeDepth")


def _network(size: str, device: str) -> PerImageZoeDepth:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with default_dtype(dtype), torch.device(device):
        network = PerImageZoeDepth(ZoeDepthConfig(**(TINY_ZOE if size == "tiny" else LARGE_ZOE)))
    for parameter in network.parameters():
        if parameter.ndim > 1:  # of unit gain: else the depth would be the same in every pixel
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


def _moving_pictures(count: int) -> Float[Tensor, "n 3 S S"]:
    """A smooth random scene that slides past, a few pixels per frame."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, 3, 12, 16), generator=generator)
    wide = F.interpolate(coarse, (SIDE, 2 * SIDE), mode="bilinear", align_corners=True)[0]
    starts = [PIXELS_PER_FRAME * i for i in range(count)]
    return torch.stack([wide[..., start : start + SIDE] for start in starts])


def _once(estimator: DepthEstimator, picture: Tensor) -> Callable[[], Tensor]:
    return lambda: estimator(picture)


def _episode(nth: EveryNth, frames: Tensor) -> Float[Tensor, "n S S"]:
    depths = [nth(frame[None], episodes=[0], fresh=[i == 0]) for i, frame in enumerate(frames)]
    return torch.cat(depths)
