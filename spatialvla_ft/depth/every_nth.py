"""Depth of every n-th picture of an episode, for robots whose depth is the slow part."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .protocol import DepthEstimator, check_pictures

REMEMBERED_EPISODES = 256


@dataclass
class _Last:
    metres: Tensor
    age: int


class EveryNth:
    """Estimates at the pictures 0, n, 2n, ... of an episode and repeats that depth in between.

    A picture's depth is then up to n - 1 pictures old: right for what stands still seen by a fixed
    camera, wrong for what moved, and unfit for a camera on the wrist. Pictures are those that this
    object is shown: a policy that plays chunks of 4 actions shows it every fourth frame.

    An episode starts anew where it is fresh, where its pictures change size, and where more than
    `REMEMBERED_EPISODES` others were shown since. Without episodes every picture is estimated, as
    by any estimator.

    Args:
        estimator: asked at every n-th picture.
        n: 1 estimates always.
    """

    def __init__(self, estimator: DepthEstimator, n: int) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1 (estimate every n-th picture), got {n}")
        self.estimator, self.n = estimator, n
        self.name = f"{estimator.name}, every {n} pictures"
        self.uses_intrinsics = estimator.uses_intrinsics
        self._last: OrderedDict[Hashable, _Last] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        """The estimator's with n."""
        return f"{self.estimator.fingerprint}/{self.n}"

    def __call__(
        self,
        pictures: Float[Tensor, "B 3 H W"],
        intrinsics: Float[Tensor, "B 3 3"] | None = None,
        *,
        episodes: Sequence[Hashable] | None = None,
        fresh: Sequence[bool] | None = None,
    ) -> Float[Tensor, "B H W"]:
        """Metres, some of them of an earlier picture of the same episode.

        Args:
            pictures: RGB in [0, 1].
            intrinsics: K of each.
            episodes: whose picture each is, all different; None estimates all of them.
            fresh: whether an episode starts here; None where no two episodes share a name.
        """
        check_pictures(pictures, intrinsics)
        if episodes is None:
            return self.estimator(pictures, intrinsics)
        if len(episodes) != len(pictures) or len(set(episodes)) != len(episodes):
            raise ValueError(
                f"episodes must name each of the {len(pictures)} pictures once, got {episodes}"
            )
        starts = [False] * len(episodes) if fresh is None else list(fresh)
        size = pictures.shape[-2:]
        due = [
            i
            for i, episode in enumerate(episodes)
            if starts[i]
            or episode not in self._last
            or self._last[episode].age >= self.n
            or self._last[episode].metres.shape != size
        ]
        if due:
            given = None if intrinsics is None else intrinsics[due]
            for i, metres in zip(due, self.estimator(pictures[due], given), strict=True):
                self._last[episodes[i]] = _Last(metres, 0)
        depth = torch.stack([self._last[episode].metres for episode in episodes])
        for episode in episodes:
            self._last[episode].age += 1
            self._last.move_to_end(episode)
        while len(self._last) > max(REMEMBERED_EPISODES, len(episodes)):
            self._last.popitem(last=False)
        return depth
