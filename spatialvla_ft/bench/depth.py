"""`spatialvla-ft bench depth`: what makes depth cheap, and what it costs in accuracy."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

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
from .depth_cost import compare
from .figures import Report, Work, in_turns

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
