"""Episodes of any format as a sequence of samples: chunks, history, padding, filters.

Whole numbers in the fewest bytes: there is one for every episode of a dataset.

Episodes that are kept out of training.

Reading the samples of a batch in the order in which they lie on disk.
"""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Protocol, Self, TypeVar, overload

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64
from numpy.typing import NDArray

from spatialvla_ft.actions.spaces import ActionSpace, RawActions, end_effector_delta
from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.standardise import (
    RowsOfCard,
    Standardised,
    moving,
    standardise,
    take_rows,
    to_end_effector,
    wanted_keys,
)
from spatialvla_ft.data.errors import DatasetError, in_episode
from spatialvla_ft.data.reading import Reading
from spatialvla_ft.data.sample import Observation, Sample
from spatialvla_ft.data.stats.kept import content_key, kept_array
from spatialvla_ft.data.store import EpisodeStore
from spatialvla_ft.data.view import Camera, View, check_card


def compact(numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The same numbers, 4 bytes each where all fit and 8 otherwise."""
    limits = np.iinfo(np.int32)
    fits = not len(numbers) or (limits.min <= numbers.min() and numbers.max() <= limits.max)
    return numbers.astype(np.int32 if fits else np.int64)


logger = logging.getLogger(__name__)

CACHED_EPISODES = 256
"""Standardised; a dataset with more of them is standardised frame by frame."""


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
        card: how to read them, instead of the one that `reading` names.
        reading: all else; its split and `fast_dct` are the store's.
        episodes: (n,) which episodes, by their number in the store.
    """

    def __init__(
        self,
        store: EpisodeStore,
        card: Card,
        reading: Reading,
        *,
        episodes: Int[np.ndarray, " n"],
    ) -> None:
        self.store = store
        self.card = card
        self.horizon = reading.horizon
        self.episodes: Int[np.ndarray, " n"] = compact(episodes)
        self.intrinsics = dict(reading.intrinsics or {})
        known = bool(card.depth) and card.depth_scale is not None
        self.depth = known if reading.depth is None else reading.depth
        self.window = reading.window
        self.forward_kinematics = reading.forward_kinematics
        self.rows: RowFilter | None = None
        self.cameras = None if reading.cameras is None else tuple(reading.cameras)
        self.dropped: dict[str, tuple[int, int]] = {}
        self.name = store.label
        self._cache: OrderedDict[int, Standardised] = OrderedDict()
        self._card_rows = RowsOfCard(card)
        self._widths: dict[str, int | None] = {}
        check_card(card, store, self._view)
        if card.depth and not self.depth:
            reason = "it is switched off" if card.depth_scale else "the card has no depth_scale"
            logger.info("%s: samples carry no depth: %s", self.name, reason)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name}: {len(self)} frames of {len(self.episodes)} "
            f"episodes, horizon {self.horizon})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    @property
    def episode_lengths(self) -> Int64[np.ndarray, " n"]:
        """Steps of every episode after the card's drops and the filters on steps; computed anew."""
        return np.diff(self._ends, prepend=self._ends.dtype.type(0)).astype(np.int64)

    @cached_property
    def _ends(self) -> Int[np.ndarray, " n"]:
        """Steps up to the end of every episode."""
        if self.rows is not None:
            lengths = self.rows.lengths[self.episodes]
        else:
            stored = self.store.episode_lengths[self.episodes]
            lengths = np.maximum(0, stored - self.card.lost_steps)
        return compact(np.cumsum(lengths, dtype=np.int64))

    @cached_property
    def _kept(self) -> NDArray[np.int64] | None:
        """Frames that pass the card's filters, or None if it has none."""
        if not self.card.filters:
            return None
        key = content_key(self, "frames", self.horizon)
        return kept_array(self.store.statistics_dir, "frames", key, self._find_kept)

    def _find_kept(self) -> NDArray[np.int64]:
        keep = [
            moving(self.card, self.standardised(episode).action, self.horizon)
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
        parts = [part for part in parts if len(part)]
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
        rows = [part for part in parts if part is not None and len(part)]
        return np.concatenate(rows) if rows else np.empty((0, self.proprio_dim), np.float32)

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
        """The distinct instructions of all episodes, sorted, without decoding an image.

        All that may be drawn, where the card has one of several sentences drawn.
        """
        found = set()
        for episode in self.episodes.tolist():
            part = self.standardised(episode)
            found.update(part.language or [""])
            for sentences in part.sentences or ():
                found.update(sentences)
        return sorted(found)

    def with_rows(self, rows: RowFilter) -> Self:
        """A view of the steps that a filter keeps: the others are no longer in the trajectory."""
        part = self.subset(self.episodes)
        part.rows = rows
        part._cache = OrderedDict()
        return part

    def subset(self, episodes: Int[np.ndarray, " n"]) -> Self:
        """A view of some episodes, by their number in the store."""
        part = copy.copy(self)
        for derived in ("_ends", "_kept", "action_space"):
            part.__dict__.pop(derived, None)
        part.episodes = compact(np.asarray(episodes))
        return part

    def with_intrinsics(self, cameras: Mapping[str, Camera]) -> Self:
        """The same dataset with these cameras instead of those of its card."""
        other = copy.copy(self)
        other.intrinsics = {**self.intrinsics, **cameras}
        return other

    def locate(self, frame: int) -> tuple[int, int]:
        """(episode of the store, row of its standardised trajectory) of a frame."""
        place, row = self._place(frame)
        return int(self.episodes[place]), row

    def _place(self, frame: int) -> tuple[int, int]:
        """(which of `episodes`, row) of a frame."""
        if self._kept is not None:
            frame = int(self._kept[frame])
        ends = self._ends
        # A number of another type would have the whole array converted for each frame.
        place = int(ends.searchsorted(ends.dtype.type(frame), side="right"))
        return place, frame - self._start(place)

    def _start(self, place: int) -> int:
        """Steps before one of `episodes`."""
        return int(self._ends[place - 1]) if place else 0

    def standardised(self, episode: int) -> Standardised:
        """The standard steps of an episode of the store, after the filters on steps."""
        with in_episode(self.name, episode):
            found = standardise(self.card, self.store.trajectory(episode, wanted_keys(self.card)))
            self._check_width(found)
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

    def _rows(self, episode: int, rows: range) -> tuple[Standardised, int]:
        """Some rows of a standardised trajectory, perhaps among others, and the first one's number.

        Where there are more episodes than are kept, the one asked for hardly ever is: then only
        these rows are computed. Filters on steps and the user's kinematics see whole episodes.
        """
        whole = self.rows is not None or self.forward_kinematics is not None
        if whole or len(self.episodes) <= CACHED_EPISODES:
            return self._trajectory(episode), 0
        read = partial(self.store.trajectory, episode)
        with in_episode(self.name, episode):
            part = self._card_rows.standardise(read, rows)
            self._check_width(part)
        return part, rows.start

    def _check_width(self, found: Standardised) -> None:
        """DatasetError if an episode has more or fewer numbers per step than those before."""
        if not len(found.action):
            return
        rows = {"action": found.action, "proprio": found.proprio}
        for what, part in rows.items():
            wide = None if part is None else part.shape[1]
            if self._widths.setdefault(what, wide) != wide:
                raise DatasetError(
                    f"card {self.card.name!r}, {what}: {wide} columns, {self._widths[what]} in "
                    "episodes read before; take columns that all episodes have, or leave it out"
                )

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
        place, row = self._place(frame % len(self))
        episode = int(self.episodes[place])
        count = int(self._ends[place]) - self._start(place)
        seen = range(max(row - self.window + 1, 0), min(row + self.horizon, count))
        part, first = self._rows(episode, seen)
        present = row - first
        ahead = np.arange(row, row + self.horizon)
        view = self._view
        # Oldest first: a video decoder then only moves forward.
        *past, now = (
            self._observe(view, part, episode, max(present - back, -first))
            for back in range(self.window - 1, -1, -1)
        )
        return Sample(
            **now,
            **view.points(episode, int(part.steps[present])),
            history=tuple(Observation(**fields) for fields in past),
            instruction=part.language[present] if part.language else "",
            sentences=part.sentences[present] if part.sentences else (),
            actions=RawActions(part.action[np.minimum(ahead, count - 1) - first]),
            action_space=self.action_space,
            valid=ahead < count,
            dataset=self.name,
            episode=episode,
            step=int(part.steps[present]),
        )

    @property
    def _view(self) -> View:
        return View(self.store, self.card, self.name, self.cameras, self.depth, self.intrinsics)

    def _observe(self, view: View, part: Standardised, episode: int, row: int) -> dict[str, Any]:
        """Fields of the observation at a row of a part of a trajectory."""
        proprio = None if part.proprio is None else part.proprio[row]
        return {**view.at(episode, int(part.steps[row])), "proprio": proprio}


Dataset = TypeVar("Dataset", bound=SampleDataset)


def holdout(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
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


Place = TypeVar("Place", bound=tuple[Any, ...])
Read = TypeVar("Read")


def read_in_disk_order(read: Callable[[Place], Read], places: Sequence[Place]) -> list[Read]:
    """`read` of every place, in the order of the places.

    A video is decoded forward from a key frame, so two frames after the same one cost little more
    than the later of them, if that is read last.

    Args:
        read: from a place to what lies there.
        places: (dataset, frame, ...) each.
    """
    order = sorted(range(len(places)), key=lambda i: places[i][:2])
    found = {i: read(places[i]) for i in order}
    return [found[i] for i in range(len(places))]
