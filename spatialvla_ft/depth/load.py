"""Pick and load the estimator that a checkpoint is of."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.configuration_utils import PretrainedConfig

from ..near import near_path
from .depth_anything import DepthAnything
from .depth_pro import DepthPro
from .frozen import FrozenEstimator
from .zoe_estimator import ZoeDepth

ESTIMATORS: dict[str, type[ZoeDepth] | type[DepthAnything] | type[DepthPro]] = {
    "zoedepth": ZoeDepth,
    "spatialvla": ZoeDepth,
    "depth_anything": DepthAnything,
    "depth_pro": DepthPro,
}
"""Estimators by the `model_type` of a checkpoint's config.json."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class DepthSpec:
    """Which estimator, and how it runs.

    Attributes:
        checkpoint: folder, or OWNER/NAME on the Hub; its `model_type` says which estimator.
        resolution: side of the network's input; None for what it was trained at.
        dtype: float32, bfloat16 or float16.
        device: as torch names it.
    """

    checkpoint: str
    resolution: int | None = None
    dtype: str = "float32"
    device: str = "cpu"


def load_depth_estimator(spec: DepthSpec | str | Path) -> FrozenEstimator:
    """The estimator of a checkpoint, in evaluation mode.

    Args:
        spec: or just the checkpoint, with the defaults of `DepthSpec`.

    Raises:
        ValueError: no such folder, or a checkpoint of something else.
    """
    if not isinstance(spec, DepthSpec):
        spec = DepthSpec(str(spec))
    if spec.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {sorted(DTYPES)}, got {spec.dtype!r}")
    if not Path(spec.checkpoint).is_dir() and spec.checkpoint.count("/") != 1:
        raise ValueError(
            f"{spec.checkpoint} is no folder; give the checkpoint folder of a depth estimator, or "
            f"OWNER/NAME on the Hub{near_path(spec.checkpoint)}"
        )
    config, _ = PretrainedConfig.get_config_dict(spec.checkpoint)
    kind = config.get("model_type")
    if kind not in ESTIMATORS:
        raise ValueError(
            f"{spec.checkpoint} is no depth estimator known here: its config.json says model_type "
            f"{kind!r}, known are {sorted(ESTIMATORS)}"
        )
    return ESTIMATORS[kind].from_pretrained(
        spec.checkpoint,
        dtype=DTYPES[spec.dtype],
        device=spec.device,
        resolution=spec.resolution,
    )


class DeferredEstimator:
    """An estimator that every process loads for itself, and only when it must estimate.

    Made in the process that knows the checkpoint; what travels to data workers is its name and
    fingerprint, so that they can read a cache without holding a network. A worker that must
    estimate all the same does so on the CPU.

    Args:
        spec: of the estimator; it is loaded once here.
    """

    def __init__(self, spec: DepthSpec) -> None:
        network = load_depth_estimator(spec)
        self.spec = spec
        self.name = network.name
        self.uses_intrinsics = network.uses_intrinsics
        self.fingerprint = network.fingerprint
        self._network: FrozenEstimator | None = network
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_network": None}

    def to(self, device: str | torch.device) -> None:
        """Estimate there from now on, in this process."""
        self.spec = replace(self.spec, device=str(device))
        if self._network is not None:
            self._network.to(device)

    def release(self) -> None:
        """Forget the weights; the next picture loads them again."""
        self._network = None

    def __call__(
        self,
        pictures: Float[Tensor, "B 3 H W"],
        intrinsics: Float[Tensor, "B 3 3"] | None = None,
    ) -> Float[Tensor, "B H W"]:
        """As the estimator itself."""
        if self._network is None or self._process != os.getpid():
            here = self._process == os.getpid()
            spec = self.spec if here else replace(self.spec, device="cpu")
            self._network = load_depth_estimator(spec)
            self._process = os.getpid()
            self.spec = spec
        return self._network(pictures, intrinsics)
