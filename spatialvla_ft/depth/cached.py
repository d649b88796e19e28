"""An estimator that remembers on disk."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..pictures import described
from .cache import DepthCache, picture_key
from .packing import rounded
from .protocol import DepthEstimator, check_pictures


class CachedDepth:
    """Depth from the cache where it is there, else from the estimator, and then into the cache.

    What is returned is always what the cache gives back (rounded to half precision), so that the
    first look at a picture and every later one agree bit for bit.

    Args:
        estimator: asked for what is missing.
        cache: where depth is kept.
    """

    def __init__(self, estimator: DepthEstimator, cache: DepthCache) -> None:
        self.estimator, self.cache = estimator, cache
        self.name = f"{estimator.name}, cached"
        self.uses_intrinsics = estimator.uses_intrinsics
        self.hits = self.misses = 0

    @property
    def fingerprint(self) -> str:
        """The estimator's: its entries serve with and without this wrapper."""
        return self.estimator.fingerprint

    def key(self, picture: np.ndarray, intrinsics: np.ndarray | None) -> bytes:
        """Key of a picture (H, W, 3), bytes or float, with its K."""
        K = intrinsics if self.uses_intrinsics else None
        return picture_key(picture, self.estimator.fingerprint, K)

    def __call__(
        self,
        pictures: Float[Tensor, "B 3 H W"],
        intrinsics: Float[Tensor, "B 3 3"] | None = None,
    ) -> Float[Tensor, "B H W"]:
        """Metres; only pictures that are not in the cache are estimated, in one batch."""
        check_pictures(pictures, intrinsics)
        Ks = [None] * len(pictures) if intrinsics is None else list(intrinsics.cpu().numpy())
        keys = [self.key(p, K) for p, K in zip(_as_stored(pictures), Ks, strict=True)]
        found = [self.cache.get(key) for key in keys]
        missing = [i for i, depth in enumerate(found) if depth is None]
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            given = None if intrinsics is None else intrinsics[missing]
            estimated = self.estimator(pictures[missing], given).cpu().numpy()
            for i, metres in zip(missing, estimated, strict=True):
                self.cache.put(keys[i], metres)
                found[i] = rounded(metres)
        return torch.from_numpy(np.stack(found)).to(pictures.device)


def _as_stored(pictures: Float[Tensor, "B 3 H W"]) -> list[np.ndarray]:
    """(H, W, 3) per picture: the bytes it was made from where it was, else its float32."""
    stored = []
    for picture in pictures.detach().float().cpu().permute(0, 2, 3, 1):
        as_bytes = (picture * 255).round().to(torch.uint8)
        exact = torch.equal(as_bytes.float() / 255, picture)
        stored.append((as_bytes if exact else picture).contiguous().numpy())
    return stored


def from_bytes(pictures: np.ndarray) -> Float[Tensor, "B 3 H W"]:
    """(B, H, W, 3) bytes as an estimator takes them; ValueError for another type."""
    if pictures.dtype != np.uint8:
        raise ValueError(f"pictures must be bytes, got {described(pictures)}; see `rgb_bytes`")
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
