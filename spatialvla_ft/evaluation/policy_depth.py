"""Estimated depth for what a policy sees, each picture looked at once."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch

from ..data.sample import Observation
from ..depth.cache import from_bytes
from ..depth.every_nth import EveryNth
from ..depth.protocol import DepthEstimator
from ..pictures import rgb_bytes


class _Estimated(Observation):
    """An observation whose depth was estimated here."""


class WindowDepth:
    """Puts estimated depth into the windows of running episodes, in place of a sensor's.

    Args:
        estimator: inside `EveryNth`, every camera of every episode counts for itself.
        cameras: slots that get depth.
    """

    def __init__(self, estimator: DepthEstimator, cameras: Sequence[str]) -> None:
        self.estimator, self.cameras = estimator, tuple(cameras)
        self._fresh: set[tuple[int, str]] = set()

    def restart(self, episode: int) -> None:
        """The episode's next picture is its first."""
        self._fresh.update((episode, camera) for camera in self.cameras)

    def __call__(self, episodes: Sequence[int], windows: Sequence[deque[Observation]]) -> None:
        """Estimate what is new in the windows, oldest step first; the windows change in place.

        Args:
            episodes: whose window each is.
            windows: of one length; a step that stands in a window twice is estimated once.
        """
        done: dict[int, Observation] = {}
        kept: list[Observation] = []
        for place in range(len(windows[0])):
            new = [
                row
                for row, window in enumerate(windows)
                if not isinstance(window[place], _Estimated) and id(window[place]) not in done
            ]
            depth = self._depths([episodes[r] for r in new], [windows[r][place] for r in new])
            originals = [windows[row][place] for row in new]
            for step, metres in zip(originals, depth, strict=True):
                fields = {f.name: getattr(step, f.name) for f in dataclasses.fields(Observation)}
                done[id(step)] = _Estimated(**{**fields, "depth": metres})
            # An original stays in `kept` until all places are through, so that no id is reused.
            kept.extend(originals)
            for window in windows:
                window[place] = done.get(id(window[place]), window[place])

    def _depths(
        self, episodes: Sequence[int], steps: Sequence[Observation]
    ) -> list[dict[str, np.ndarray]]:
        """{camera: (H, W) metres} of each step."""
        depths: list[dict[str, np.ndarray]] = [{} for _ in steps]
        for camera in self.cameras if steps else ():
            absent = [e for e, s in zip(episodes, steps, strict=True) if camera not in s.images]
            if absent:
                raise ValueError(f"episodes {absent} show no picture of camera {camera!r}")
            seen = [rgb_bytes(step.images[camera], f"camera {camera!r}") for step in steps]
            pictures = from_bytes(np.stack(seen))
            K = None
            if all(camera in step.intrinsics for step in steps):
                K = torch.from_numpy(np.stack([s.intrinsics[camera] for s in steps])).float()
            if isinstance(self.estimator, EveryNth):
                names = [(episode, camera) for episode in episodes]
                fresh = [name in self._fresh for name in names]
                metres = self.estimator(pictures, K, episodes=names, fresh=fresh)
                self._fresh.difference_update(names)
            else:
                metres = self.estimator(pictures, K)
            for depth, one in zip(depths, metres.cpu().numpy(), strict=True):
                depth[camera] = one
        return depths
