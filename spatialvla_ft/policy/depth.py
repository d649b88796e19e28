"""Estimated depth for samples, as if a sensor had recorded it.

Depth is computed on the whole picture, before augmentation, so that a random crop cuts it like a
sensor's depth: on the picture as recorded, or in the model's size, as the model's own ZoeDepth is
shown it. One process per accelerator fills a cache before training; data workers only read it.

Estimated depth for what a policy sees, each picture looked at once.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..data.pictures import ImagePath, fit
from ..data.sample import Observation, Sample
from ..depth.cache import CachedDepth, DepthCache, from_bytes
from ..depth.every_nth import EveryNth
from ..depth.load import DeferredEstimator
from ..depth.protocol import DepthEstimator
from ..pictures import rgb_bytes

logger = logging.getLogger(__name__)

BATCH_SIZE = 8


@dataclass
class Filled:
    """What filling did: different pictures seen, those that were there already, their keys."""

    pictures: int = 0
    found: int = 0
    keys: set[bytes] = field(default_factory=set)

    @property
    def estimated(self) -> int:
        """Pictures that the estimator was run on."""
        return self.pictures - self.found


@dataclass(frozen=True)
class _Waiting:
    image: np.ndarray
    K: np.ndarray | None


class SampleDepth:
    """Gives samples the depth of an estimator, from a cache.

    Args:
        estimator: loaded in each process that needs it.
        cache: where depth is kept.
        cameras: slots that get depth; None for all that a sample has.
        size: side of the square, in pixels, that a picture is brought to before its depth is
            estimated; the depth then has that size, whatever the picture's. None leaves it as
            recorded. K is of the recorded picture, so an estimator that reads K needs None.
        path: how it is brought there.
    """

    def __init__(
        self,
        estimator: DeferredEstimator,
        cache: DepthCache,
        cameras: Sequence[str] | None = None,
        *,
        size: int | None = None,
        path: ImagePath = "fast",
    ) -> None:
        assert size is None or not estimator.uses_intrinsics
        self.estimator, self.cache = estimator, cache
        self.cached = CachedDepth(estimator, cache)
        self.cameras = None if cameras is None else tuple(cameras)
        self.size, self.path = size, path

    def __call__(self, sample: Sample) -> Sample:
        """The sample, its past steps too, with estimated depth in place of any other.

        A picture that the cache lacks is estimated here and now, which the log says: in a data
        worker that is slow, and should not happen after `fill`.
        """
        place = f"{sample.dataset}, episode {sample.episode}, step {sample.step}"
        past = tuple(
            dataclasses.replace(step, depth=self._depth(step, f"before {place}"))
            for step in sample.history
        )
        return dataclasses.replace(sample, depth=self._depth(sample, place), history=past)

    def _depth(self, step: Observation, place: str) -> dict[str, np.ndarray]:
        depth = {}
        for camera in self._slots(step):
            image, K = self._shown(step.images[camera]), step.intrinsics.get(camera)
            found = self.cache.get(self.cached.key(image, K))
            if found is None:
                logger.warning(
                    "%s, camera %s: no depth in %s; it is estimated now",
                    place,
                    camera,
                    self.cache.folder,
                )
                found = self._estimate([_Waiting(image, K)])[0]
            depth[camera] = found
        return depth

    def fill(
        self,
        dataset: Sequence[Sample],
        frames: Iterable[int],
        *,
        batch_size: int = BATCH_SIZE,
        on_frame: Callable[[Filled], None] | None = None,
        filled: Filled | None = None,
    ) -> Filled:
        """Estimate what the cache lacks, in batches of pictures of one size.

        It may be stopped at any time: what is there is not estimated again.

        Args:
            dataset: samples.
            frames: which of them.
            batch_size: pictures per run of the network.
            on_frame: told after every frame.
            filled: what earlier calls did, to be added to.
        """
        filled = Filled() if filled is None else filled
        waiting: dict[tuple[tuple[int, ...], bool], list[_Waiting]] = {}
        for frame in frames:
            for step, camera in self._pictures(dataset[frame]):
                image, K = self._shown(step.images[camera]), step.intrinsics.get(camera)
                key = self.cached.key(image, K)
                if key in filled.keys:  # steps of a window come back with the next frames
                    continue
                filled.keys.add(key)
                filled.pictures += 1
                if self.cache.get(key) is not None:
                    filled.found += 1
                    continue
                group = waiting.setdefault((image.shape, K is None), [])
                group.append(_Waiting(image, K))
                if len(group) == batch_size:
                    self._estimate(group)
                    group.clear()
            if on_frame is not None:
                on_frame(filled)
        for group in waiting.values():
            if group:
                self._estimate(group)
        return filled

    def _estimate(self, group: Sequence[_Waiting]) -> np.ndarray:
        """(n, H, W) metres, now in the cache, too."""
        pictures = from_bytes(np.stack([one.image for one in group]))
        K = None
        if group[0].K is not None:
            K = torch.from_numpy(np.stack([one.K for one in group])).float()
        return self.cached(pictures, K).numpy()

    def _shown(self, image: np.ndarray) -> np.ndarray:
        """The picture that is estimated, bytes."""
        if self.size is None:
            return image
        pixels, _ = fit(image, self.size, self.path)
        assert pixels.dtype == np.uint8  # nothing is cut out, so nothing is interpolated in floats
        return pixels

    def _pictures(self, sample: Sample) -> Iterator[tuple[Observation, str]]:
        for step in sample.observations:
            for camera in self._slots(step):
                yield step, camera

    def _slots(self, step: Observation) -> list[str]:
        wanted = sorted(step.images) if self.cameras is None else self.cameras
        return [camera for camera in wanted if camera in step.images]


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
