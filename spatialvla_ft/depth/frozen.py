"""What the estimators around a network share: frozen weights, checks, a fingerprint.

Sizes and normalisation of what depth networks take.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .protocol import MIN_METRES, check_pictures


class FrozenEstimator(nn.Module, ABC):
    """A depth network that is never trained: always in evaluation mode, without gradients.

    Args:
        network: the library's model.
        settings: everything besides the weights that its numbers depend on.
    """

    name: str
    uses_intrinsics = False

    def __init__(self, network: nn.Module, **settings: Any) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.settings = settings
        super().train(False)

    def train(self, mode: bool = True) -> FrozenEstimator:
        """Stay in evaluation mode whatever is asked for."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; pictures are resized and depth is returned in float32."""
        return next(self.network.parameters()).dtype

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, their type, the network's configuration and the settings."""
        return fingerprint(self.network, {"estimator": type(self).__name__, **self.settings})

    @torch.no_grad()
    def forward(
        self,
        pictures: Float[Tensor, "B 3 H W"],
        intrinsics: Float[Tensor, "B 3 3"] | None = None,
    ) -> Float[Tensor, "B H W"]:
        """Metres, at least `MIN_METRES`, on the pictures' device.

        Raises:
            ValueError: wrong pictures or intrinsics.
            FloatingPointError: the network gave NaN or infinity.
        """
        check_pictures(pictures, intrinsics)
        given = None if intrinsics is None else intrinsics.to(self.device, torch.float32)
        with torch.autocast(self.device.type, enabled=False):
            metres = self.metres(pictures.to(self.device, torch.float32), given)
        if not bool(torch.isfinite(metres).all()):
            raise FloatingPointError(
                f"{self.name} gave depth that is not finite; its weights are damaged, or "
                f"{self.dtype} is too narrow for them (load it with dtype=torch.float32)"
            )
        return metres.float().clamp_min(MIN_METRES).to(pictures.device)

    @abstractmethod
    def metres(
        self, pictures: Float[Tensor, "B 3 H W"], intrinsics: Float[Tensor, "B 3 3"] | None
    ) -> Float[Tensor, "B H W"]:
        """Depth of checked pictures, on the weights' device."""


def fingerprint(network: nn.Module, settings: dict[str, Any]) -> str:
    """32 hexadecimal digits over names, types, shapes and values of all weights, and settings."""
    digest = hashlib.blake2b(digest_size=16)
    config = getattr(network, "config", None)
    if config is not None:
        content = config.to_dict()
        # Where it lies and who wrote it changes no number.
        for key in ("_name_or_path", "transformers_version", "architectures"):
            content.pop(key, None)
        settings = {**settings, "config": content}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous()
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def network_size(
    height: int, width: int, target: tuple[int, int], multiple: int
) -> tuple[int, int]:
    """(height, width) a picture is resized to before a network.

    The aspect ratio is kept as far as multiples allow; of the two factors that reach the target's
    height or width, the one nearer to 1 is taken, as the networks were trained (DPT, ZoeDepth and
    Depth Anything share this rule).
    """
    by_height, by_width = target[0] / height, target[1] / width
    scale = by_width if abs(1 - by_width) < abs(1 - by_height) else by_height
    sides = (round(scale * side / multiple) * multiple for side in (height, width))
    new_height, new_width = (max(side, multiple) for side in sides)
    return new_height, new_width


def normalise_colours(
    pictures: Float[Tensor, "B 3 H W"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Tensor, "B 3 H W"]:
    """(pictures - mean) / std, per channel."""
    like = {"dtype": pictures.dtype, "device": pictures.device}
    return (pictures - torch.tensor(mean, **like).view(3, 1, 1)) / torch.tensor(std, **like).view(
        3, 1, 1
    )


def check_side(side: int, multiple: int, least: int, network: str) -> None:
    """Raise ValueError unless a network's input side fits its patches."""
    if side < least or side % multiple:
        below = max(least, side // multiple * multiple)
        raise ValueError(
            f"resolution {side} does not fit {network}: it must be a multiple of {multiple} of at "
            f"least {least}, e.g. {below} or {below + multiple}"
        )
