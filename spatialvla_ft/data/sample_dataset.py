"""Episodes of any format as a sequence of samples: chunks, history, padding, filters."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, Self, overload

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy.typing import NDArray

from spatialvla_ft.actions.spaces import ActionSpace, RawActions, end_effector_delta
from spatialvla_ft.data.camera_matrix import camera_matrix
from spatialvla_ft.data.card import Card
from spatialvla_ft.data.card_fields import Intrinsics
from spatialvla_ft.data.content import content_key, kept_array
from spatialvla_ft.data.decode import to_metres
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.kinematics import ForwardKinematics, to_end_effector
from spatialvla_ft.data.sample import Observation, Sample
from spatialvla_ft.data.standardise import Standardised, standardise, take_rows, wanted_keys
from spatialvla_ft.data.store import EpisodeStore
from spatialvla_ft.data.swaps import swap, swapped_slots

logger = logging.getLogger(__name__)

CACHED_EPISODES = 256

Camera = Intrinsics | Float64[np.ndarray, "3 3"]
"""Intrinsics with their image size, or K for the image as it is stored."""


class RowFilter(Protocol):
    """Which steps of a trajectory stay in it."""

    @property
    def key(self) -> str:
        """Names the filter and all that it depends on."""

    @property
    def lengths(self) -> Int64[np.ndarray, " episodes"]:
        """Steps that stay, for every episode of the store."""

    def keep(self, action: RawActions) -> Bool[np.ndarray, " T"]:
        """Which of the standard steps (T, dim) stay."""


class SampleDataset(Sequence[Sample]):
    """Samples of some episodes of a store, in order; may cross fork and spawn.

    Args:
        store: the episodes on disk.
        card: how to read them.
        horizon: number of actions per sample.
        episodes: (n,) which episodes, by their number in the store.
        intrinsics: cameras by slot, instead of those of the card.
        depth: whether samples carry depth; None for where the card knows its scale.
        window: observed steps per sample, the present one included.
        forward_kinematics: joints to the hand's pose; joint actions become the hand's then.
        cameras: slots that are read and decoded; None for all of the card.
    """

    def __init__(
        self,
        store: EpisodeStore,
        card: Card,
        *,
        horizon: int,
        episodes: Int64[np.ndarray, " n"],
        intrinsics: Mapping[str, Camera],
        depth: bool | None,
        window: int = 1,
        forward_kinematics: ForwardKinematics | None = None,
        cameras: Sequence[str] | None = None,
    ) -> None:
        for name, value in {"horizon": horizon, "window": window}.items():
            if value < 1:
                raise DatasetError(f"{name} must be at least 1, got {value}")
        self.store = store
        self.card = card
        self.horizon = horizon
        self.episodes = episodes
        self.intrinsics = dict(intrinsics)
        self.depth = bool(card.depth) and card.depth_scale is not None if depth is None else depth
        self.window = window
        self.forward_kinematics = forward_kinematics
        self.rows: RowFilter | None = None
        self.cameras = None if cameras is None else tuple(cameras)
        self.dropped: dict[str, tuple[int, int]] = {}
        self.name = store.label
        self._cache: OrderedDict[int, Standardised] = OrderedDict()
        self._check_card()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name}: {len(self)} frames of {len(self.episodes)} "
            f"episodes, horizon {self.horizon})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def _check_card(self) -> None:
        """Every key of the card must exist, now rather than in the middle of a run."""
        card, store = self.card, self.store
        cameras = card.cameras or {}
        for key in wanted_keys(card):
            store.check_column(key)
        for terms, depth in ((cameras, False), (card.depth, True)):
            for slot, term in terms.items():
                if term.path is None:
                    what = f"{'depth ' if depth else ''}{slot}"
                    raise DatasetError(f"card {card.name!r}: camera {what!r} must be a path")
                store.check_image(term.path, depth=depth)
        for slot, source in card.intrinsics.items():
            if isinstance(source, str) and slot not in self.intrinsics:
                store.check_column(source)
        for source in card.extrinsics.values():
            store.check_column(source)
        absent = sorted(set(self.cameras or ()) - set(cameras))
        if absent:
            raise DatasetError(
                f"{self.name}: its card has no camera {absent}; it has {sorted(cameras)}"
            )
        unknown = set(self.intrinsics) - set(cameras)
        if unknown:
            raise DatasetError(
                f"intrinsics for {sorted(unknown)}, but card {card.name!r} has {sorted(cameras)}"
            )
        if self.depth and not card.depth:
            raise DatasetError(f"depth was asked for, but card {card.name!r} names none")
        if self.depth and card.depth_scale is None:
            raise DatasetError(
                f"card {card.name!r} has depth but no depth_scale; say how many metres one unit of "
                "the stored depth is, e.g. depth_scale: 0.001 for millimetres"
            )
        if card.depth and not self.depth:
            reason = "it is switched off" if card.depth_scale else "the card has no depth_scale"
            logger.info("%s: samples carry no depth: %s", self.name, reason)

    @cached_property
    def episode_lengths(self) -> Int64[np.ndarray, " n"]:
        """Steps of every episode after the card's drops and the filters on steps."""
        if self.rows is not None:
            return np.asarray(self.rows.lengths[self.episodes])
        stored = self.store.episode_lengths[self.episodes]
        return np.asarray(np.maximum(0, stored - self.card.lost_steps))

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " n"]:
        return np.cumsum(self.episode_lengths)

    @cached_property
    def _kept(self) -> NDArray[np.int64] | None:
        """Frames that pass the card's filters, or None if it has none."""
        if not self.card.filters:
            return None
        key = content_key(self, "frames", self.horizon)
        return kept_array(self.store.statistics_dir, "frames", key, self._find_kept)

    def _find_kept(self) -> NDArray[np.int64]:
        keep = [
            _moving(self.card, self.standardised(episode).action, self.horizon)
            for episode in self.episodes.tolist()
        ]
        return np.flatnonzero(np.concatenate(keep)) if keep else np.empty(0, np.int64)

    def __len__(self) -> int:
        if self._kept is not None:
            return len(self._kept)
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def num_frames(self) -> int:
        """Number of samples."""
        return len(self)

    @property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        """Steps of every episode after the card's drops."""
        return self.episode_lengths

    @cached_property
    def action_space(self) -> ActionSpace:
        """Names, units and frames of the actions."""
        if self.forward_kinematics is not None:
            return end_effector_delta(self.card.control_hz)
        if self.card.action.joints is None:
            return self.card.action_space
        if not len(self.episodes):
            raise DatasetError(f"{self.name} has no episodes, so the number of joints is unknown")
        return self.card.action_space_of(self._trajectory(int(self.episodes[0])).action.shape[1])

    def actions(self) -> RawActions:
        """(N, dim) standard actions of all episodes, without decoding an image.

        Filters do not apply: statistics are of all steps.
        """
        parts = [self.standardised(episode).action for episode in self.episodes.tolist()]
        return RawActions(
            np.concatenate(parts) if parts else np.empty((0, self.action_space.dim), np.float32)
        )

    def proprio(self) -> Float32[np.ndarray, "N n"]:
        """Proprioception of all steps of all episodes, without decoding an image.

        Raises:
            DatasetError: the card names none.
        """
        self.check_proprio()
        parts = [self.standardised(episode).proprio for episode in self.episodes.tolist()]
        return np.concatenate([part for part in parts if part is not None])

    def check_proprio(self) -> None:
        """DatasetError unless the card names proprioception."""
        if self.card.proprio is None:
            raise DatasetError(
                f"card {self.card.name!r} names no proprioception; add `proprio` to it, or leave "
                "data.proprio off"
            )

    @property
    def proprio_dim(self) -> int:
        """How many numbers the proprioception has; DatasetError if the card names none."""
        self.check_proprio()
        first = self._trajectory(int(self.episodes[0])).proprio
        assert first is not None
        return int(first.shape[1])

    def instructions(self) -> list[str]:
        """The distinct instructions of all episodes, sorted, without decoding an image."""
        found = set()
        for episode in self.episodes.tolist():
            found.update(self.standardised(episode).language or [""])
        return sorted(found)

    def with_rows(self, rows: RowFilter) -> Self:
        """A view of the steps that a filter keeps: the others are no longer in the trajectory."""
        part = self.subset(self.episodes)
        part.rows = rows
        part._cache = OrderedDict()
        return part

    def subset(self, episodes: Int64[np.ndarray, " n"]) -> Self:
        """A view of some episodes, by their number in the store."""
        part = copy.copy(self)
        for derived in ("episode_lengths", "_ends", "_kept", "action_space"):
            part.__dict__.pop(derived, None)
        part.episodes = np.asarray(episodes, np.int64)
        return part

    def with_intrinsics(self, cameras: Mapping[str, Camera]) -> Self:
        """The same dataset with these cameras instead of those of its card."""
        other = copy.copy(self)
        other.intrinsics = {**self.intrinsics, **cameras}
        return other

    def locate(self, frame: int) -> tuple[int, int]:
        """(episode of the store, row of its standardised trajectory) of a frame."""
        if self._kept is not None:
            frame = int(self._kept[frame])
        i = int(np.searchsorted(self._ends, frame, side="right"))
        row = frame - (int(self._ends[i - 1]) if i else 0)
        return int(self.episodes[i]), row

    def standardised(self, episode: int) -> Standardised:
        """The standard steps of an episode of the store, after the filters on steps."""
        found = standardise(self.card, self.store.trajectory(episode, wanted_keys(self.card)))
        if self.forward_kinematics is not None:
            found = to_end_effector(self.card, found, self.forward_kinematics)
        return found if self.rows is None else take_rows(found, self.rows.keep(found.action))

    def _trajectory(self, episode: int) -> Standardised:
        """Standardised trajectory; the last few are kept."""
        found = self._cache.pop(episode, None)
        if found is None:
            found = self.standardised(episode)
            if len(self._cache) >= CACHED_EPISODES:
                self._cache.popitem(last=False)
        self._cache[episode] = found
        return found

    @overload
    def __getitem__(self, frame: int) -> Sample: ...
    @overload
    def __getitem__(self, frame: slice) -> list[Sample]: ...
    def __getitem__(self, frame: int | slice) -> Sample | list[Sample]:
        """The sample that starts at a frame."""
        if isinstance(frame, slice):
            return [self[i] for i in range(*frame.indices(len(self)))]
        if not -len(self) <= frame < len(self):
            raise IndexError(f"frame {frame} of {self.name}: there are {len(self)}")
        episode, row = self.locate(frame % len(self))
        trajectory = self._trajectory(episode)
        count = len(trajectory.steps)
        ahead = np.arange(row, row + self.horizon)
        # Oldest first: a video decoder then only moves forward.
        seen = [max(row - back, 0) for back in range(self.window - 1, -1, -1)]
        *past, present = (self._observe(trajectory, episode, at) for at in seen)
        return Sample(
            **present,
            history=tuple(Observation(**fields) for fields in past),
            instruction=trajectory.language[row] if trajectory.language else "",
            actions=RawActions(trajectory.action[np.minimum(ahead, count - 1)]),
            action_space=self.action_space,
            valid=ahead < count,
            dataset=self.name,
            episode=episode,
            step=int(trajectory.steps[row]),
        )

    def _observe(self, trajectory: Standardised, episode: int, row: int) -> dict[str, Any]:
        """Fields of the observation at a row of a trajectory."""
        step = int(trajectory.steps[row])
        places = swapped_slots(self.card, self.name, episode)
        images = {}
        for slot, key in trajectory.images.items():
            if not self._wanted(slot, places):
                continue
            image = self.store.rgb(key, episode, step)
            if image is not None:
                images[slot] = image
        depth = self._depth(episode, step, places) if self.depth else None
        intrinsics = self._intrinsics(episode, step, images)
        extrinsics = self._extrinsics(episode, step, places)
        return {
            "images": swap(images, places),
            "depth": None if depth is None else swap(depth, places),
            "intrinsics": swap(intrinsics, places),
            "extrinsics": swap(extrinsics, places),
            "proprio": None if trajectory.proprio is None else trajectory.proprio[row],
        }

    def _wanted(self, slot: str, places: Mapping[str, str]) -> bool:
        """Whether a camera of the card is read, given the places that cameras take."""
        return self.cameras is None or places.get(slot, slot) in self.cameras

    def _depth(
        self, episode: int, step: int, places: Mapping[str, str]
    ) -> dict[str, Float32[np.ndarray, "H W"]]:
        depth = {}
        for slot, term in self.card.depth.items():
            if not self._wanted(slot, places):
                continue
            values = self.store.stored_depth(term.path, episode, step)
            if values is not None:
                depth[slot] = to_metres(values, self.card.depth_scale or 1.0)
        return depth

    def _intrinsics(
        self, episode: int, step: int, images: Mapping[str, np.ndarray]
    ) -> dict[str, Float64[np.ndarray, "3 3"]]:
        sources: dict[str, Any] = {**self.card.intrinsics, **self.intrinsics}
        matrices = {}
        for slot, source in sources.items():
            if slot not in images:
                continue
            if isinstance(source, Intrinsics):
                height, width = images[slot].shape[:2]
                matrices[slot] = source.matrix(width, height)
            else:
                stored = isinstance(source, str)
                value = self.store.value(source, episode, step) if stored else source
                matrices[slot] = camera_matrix(value, f"{self.name}, {slot}")
        return matrices

    def _extrinsics(
        self, episode: int, step: int, places: Mapping[str, str]
    ) -> dict[str, Float64[np.ndarray, "4 4"]]:
        """Camera-to-base transform per slot, metres; empty if the card names none."""
        return {
            slot: np.asarray(self.store.value(key, episode, step), np.float64).reshape(4, 4)
            for slot, key in self.card.extrinsics.items()
            if self._wanted(slot, places)
        }


def _moving(card: Card, action: RawActions, horizon: int) -> NDArray[np.bool_]:
    """(T,) whether any action of the chunk that starts there moves, for every filter."""
    keep = np.ones(len(action), bool)
    for rule in card.filters:
        low, high = rule.dims
        spread = np.asarray(rule.q99) - np.asarray(rule.q01) + 1e-8
        moves = (np.abs(2 * action[:, low:high] / spread) > rule.tol).any(axis=1)
        last = len(moves) - 1
        ahead = np.minimum(np.arange(len(moves))[:, None] + np.arange(horizon), last)
        keep &= moves[ahead].any(axis=1)
    return keep


def holdout(dataset: SampleDataset, fraction: float, seed: int) -> tuple[Any, Any]:
    """(rest, held out): `fraction` of the episodes, drawn by `seed`, at least one of each."""
    count = len(dataset.episodes)
    held = max(1, round(fraction * count))
    if not 0 < fraction < 1 or held >= count:
        raise DatasetError(
            f"cannot hold out {fraction} of {count} episodes of {dataset.name}: the fraction must "
            "be between 0 and 1 and leave an episode on both sides"
        )
    order = np.random.default_rng(seed).permutation(count)
    parts = np.sort(order[held:]), np.sort(order[:held])
    rest, held_out = (dataset.subset(dataset.episodes[part]) for part in parts)
    return rest, held_out
