"""What every source of depth is: pictures in, metres out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

MIN_METRES = 1e-3
"""Least depth that an estimator returns; 0 is kept for 'unknown'."""


@runtime_checkable
class DepthEstimator(Protocol):
    """Metres along the optical axis, picture by picture.

    Whatever implements this passes tests/depth/test_depth_contract.py: float32, finite and
    positive in every pixel, and a picture's depth does not depend on the others in its batch.

    Attributes:
        name: for people.
        fingerprint: of weights and settings; two estimators that may differ in a number differ
            in it. Keys of the depth cache hold it.
        uses_intrinsics: whether the answer depends on K; the cache then keeps one answer per K.
    """

    name: str
    uses_intrinsics: bool

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the numbers depend on, besides the picture and K."""
        ...

    def __call__(
        self,
        pictures: Float[Tensor, "B 3 H W"],
        intrinsics: Float[Tensor, "B 3 3"] | None = None,
    ) -> Float[Tensor, "B H W"]:
        """Depth of pictures in [0, 1].

        Args:
            pictures: RGB.
            intrinsics: K in pixels of exactly these pictures; ignored unless `uses_intrinsics`.

        Raises:
            ValueError: another shape, type or range.
        """
        ...


def check_pictures(pictures: Tensor, intrinsics: Tensor | None = None) -> None:
    """Raise ValueError unless these are pictures in [0, 1], with a K for each where K is given."""
    if pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
        raise ValueError(
            f"pictures must be (B, 3, H, W), got {tuple(pictures.shape)}; flatten several views "
            "into the batch"
        )
    if not pictures.is_floating_point():
        raise ValueError(f"pictures must be float in [0, 1], got {pictures.dtype}; divide by 255")
    low, high = (float(value) for value in pictures.aminmax())
    if not (low >= 0 and high <= 1):  # NaN fails, too
        raise ValueError(
            f"pictures must lie in [0, 1], got {low:g} .. {high:g}; divide bytes by 255, and leave "
            "normalisation to the estimator"
        )
    if intrinsics is not None and intrinsics.shape != (pictures.shape[0], 3, 3):
        raise ValueError(
            f"intrinsics must be ({pictures.shape[0]}, 3, 3), one K per picture, got "
            f"{tuple(intrinsics.shape)}"
        )
