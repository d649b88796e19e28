"""Estimated depth for samples, as if a sensor had recorded it.

Depth is computed on the whole picture, before augmentation, so that a random crop cuts it like a
sensor's depth: on the picture as recorded, or in the model's size, as the model's own ZoeDepth is
shown it. One process per accelerator fills a cache before training; data workers only read it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..data.pictures import ImagePath, fit
from ..data.sample import Observation, Sample
from ..depth.cache import CachedDepth, DepthCache, from_bytes
from ..depth.load import DeferredEstimator

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
