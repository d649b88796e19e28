"""A dataset as a sequence of samples: frame index + card."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy.typing import NDArray

from spatialvla_ft.actions.spaces import ActionSpace, RawActions
from spatialvla_ft.data.cards import Card, Intrinsics, load_cards
from spatialvla_ft.data.decode import decode_depth, decode_rgb, to_metres
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.index import FrameIndex, build_index
from spatialvla_ft.data.sample import Observation, Sample
from spatialvla_ft.data.standardise import Standardised, standardise, wanted_keys

logger = logging.getLogger(__name__)

CARD_FILE = "card.yaml"
CACHED_EPISODES = 256

Camera = Intrinsics | Float64[np.ndarray, "3 3"]
"""Intrinsics with their image size, or K for the image as it is stored."""


def open_dataset(
    dir_or_index: str | Path | FrameIndex,
    *,
    card: Card | str | Path | None,
    horizon: int = 4,
    split: str = "train",
    intrinsics: Mapping[str, Camera] | None = None,
    depth: bool | None = None,
    fast_dct: bool = True,
    window: int = 1,
) -> RldsDataset:
    """A split of an RLDS dataset as samples; the index is built if there is none.

    Args:
        dir_or_index: version directory of the dataset, directory of an index, or an opened index.
        card: how to read the dataset; a file with one card, or with a card of the dataset's name;
            None for `card.yaml` in the dataset's directory.
        horizon: number of actions per sample.
        split: name of the split.
        intrinsics: cameras by slot, instead of those of the card.
        depth: whether samples carry the dataset's depth; None for where the card knows its scale.
        fast_dct: decode JPEG as TensorFlow does, see `decode_rgb`.
        window: observed steps per sample, the present one included.

    Raises:
        DatasetError: no such split, a stale index, a card that does not fit.
    """
    index = _open_index(dir_or_index)
    if not isinstance(card, Card):
        card = read_card(Path(card) if card is not None else index.dataset_dir / CARD_FILE, index)
    if split not in index.splits:
        raise DatasetError(
            f"{index.name} has no split {split!r}; it has {list(index.splits)}. To hold out "
            "episodes of 'train' use holdout(dataset, fraction, seed)"
        )
    episodes = np.array(index.splits[split], np.int64)
    return RldsDataset(
        index,
        card,
        horizon=horizon,
        episodes=episodes,
        intrinsics=intrinsics or {},
        depth=depth,
        fast_dct=fast_dct,
        window=window,
    )


def _open_index(place: str | Path | FrameIndex) -> FrameIndex:
    if isinstance(place, FrameIndex):
        return place
    place = Path(place)
    if (place / "meta.json").exists() and not (place / "features.json").exists():
        return FrameIndex(place)
    return build_index(place)


def read_card(path: Path, index: FrameIndex) -> Card:
    """The only card of a file, or the one with the dataset's name."""
    if path == index.dataset_dir / CARD_FILE and not path.exists():
        raise DatasetError(
            f"{index.name} brings no card: {path} is missing; write one (data_mixtures/README.md), "
            "or pass a card file"
        )
    cards = load_cards(path)
    if index.name in cards:
        return cards[index.name]
    if len(cards) != 1:
        raise DatasetError(
            f"{path} has no card {index.name!r} but {len(cards)} others; pass the card itself: "
            f"card=load_cards({str(path)!r})[NAME], NAME being one of {sorted(cards)}"
        )
    return next(iter(cards.values()))


class RldsDataset(Sequence[Sample]):
    """Samples of some episodes of an index, in order; may cross fork and spawn.

    Args:
        index: the frame index.
        card: how to read it.
        horizon: number of actions per sample.
        episodes: (n,) which episodes, by their number in the index.
        intrinsics: cameras by slot, instead of those of the card.
        depth: whether samples carry depth; None for where the card knows its scale.
        fast_dct: decode JPEG as TensorFlow does.
        window: observed steps per sample, the present one included.
    """

    def __init__(
        self,
        index: FrameIndex,
        card: Card,
        *,
        horizon: int,
        episodes: Int64[np.ndarray, " n"],
        intrinsics: Mapping[str, Camera],
        depth: bool | None,
        fast_dct: bool,
        window: int = 1,
    ) -> None:
        for name, value in {"horizon": horizon, "window": window}.items():
            if value < 1:
                raise DatasetError(f"{name} must be at least 1, got {value}")
        self.frame_index = index
        self.card = card
        self.horizon = horizon
        self.episodes = episodes
        self.intrinsics = dict(intrinsics)
        self.depth = bool(card.depth) and card.depth_scale is not None if depth is None else depth
        self.fast_dct = fast_dct
        self.window = window
        self.name = f"{index.name}/{index.version}"
        self._cache: OrderedDict[int, Standardised] = OrderedDict()
        self._check_card()

    def __repr__(self) -> str:
        return (
            f"RldsDataset({self.name}: {len(self)} frames of {len(self.episodes)} episodes, "
            f"horizon {self.horizon})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def _check_card(self) -> None:
        """Every key of the card must exist, now rather than in the middle of a run."""
        card, index = self.card, self.frame_index
        cameras = card.cameras or {}
        for key in wanted_keys(card):
            index.leaf(key)
        for slot, term in {**cameras, **{f"depth {k}": v for k, v in card.depth.items()}}.items():
            if term.path is None:
                raise DatasetError(f"card {card.name!r}: camera {slot!r} must be a path")
            index.leaf(term.path)
        for slot, source in card.intrinsics.items():
            if isinstance(source, str) and slot not in self.intrinsics:
                index.leaf(source)
        for source in card.extrinsics.values():
            index.leaf(source)
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
        """Steps of every episode after the card's drops."""
        lost = self.card.drop.first + (self.card.relabel is not None)
        return np.asarray(np.maximum(0, self.frame_index.episode_lengths[self.episodes] - lost))

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " n"]:
        return np.cumsum(self.episode_lengths)

    @cached_property
    def _kept(self) -> NDArray[np.int64] | None:
        """Frames that pass the card's filters, or None if it has none."""
        if not self.card.filters:
            return None
        keep = [
            _moving(self.card, self._trajectory(episode).action, self.horizon)
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

    @property
    def action_space(self) -> ActionSpace:
        """Names, units and frames of the actions."""
        if self.card.action.joints is None:
            return self.card.action_space
        return self.card.action_space_of(self.actions().shape[1])

    def actions(self) -> RawActions:
        """(N, dim) standard actions of all episodes, without decoding an image.

        Filters do not apply: statistics are of all steps.
        """
        parts = [self._standardise(episode).action for episode in self.episodes.tolist()]
        return RawActions(np.concatenate(parts) if parts else np.empty((0, 7), np.float32))

    def proprio(self) -> Float32[np.ndarray, "N n"]:
        """Proprioception of all steps of all episodes, without decoding an image.

        Raises:
            DatasetError: the card names none.
        """
        if self.card.proprio is None:
            raise DatasetError(
                f"card {self.card.name!r} names no proprioception; add `proprio` to it, or leave "
                "data.proprio off"
            )
        parts = [self._standardise(episode).proprio for episode in self.episodes.tolist()]
        return np.concatenate([part for part in parts if part is not None])

    def instructions(self) -> list[str]:
        """The distinct instructions of all episodes, sorted, without decoding an image."""
        found = set()
        for episode in self.episodes.tolist():
            found.update(self._standardise(episode).language or [""])
        return sorted(found)

    def subset(self, episodes: Int64[np.ndarray, " n"]) -> RldsDataset:
        """A view of some episodes, by their number in the index."""
        return RldsDataset(
            self.frame_index,
            self.card,
            horizon=self.horizon,
            episodes=np.asarray(episodes, np.int64),
            intrinsics=self.intrinsics,
            depth=self.depth,
            fast_dct=self.fast_dct,
            window=self.window,
        )

    def locate(self, frame: int) -> tuple[int, int]:
        """(episode of the index, row of its standardised trajectory) of a frame."""
        if self._kept is not None:
            frame = int(self._kept[frame])
        i = int(np.searchsorted(self._ends, frame, side="right"))
        row = frame - (int(self._ends[i - 1]) if i else 0)
        return int(self.episodes[i]), row

    def _standardise(self, episode: int) -> Standardised:
        trajectory = self.frame_index.trajectory(episode, wanted_keys(self.card))
        return standardise(self.card, trajectory)

    def _trajectory(self, episode: int) -> Standardised:
        """Standardised trajectory; the last few are kept."""
        found = self._cache.pop(episode, None)
        if found is None:
            found = self._standardise(episode)
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
        before = [max(row - back, 0) for back in range(self.window - 1, 0, -1)]
        return Sample(
            **self._observe(trajectory, episode, row),
            history=tuple(Observation(**self._observe(trajectory, episode, r)) for r in before),
            instruction=trajectory.language[row] if trajectory.language else "",
            actions=RawActions(trajectory.action[np.minimum(ahead, count - 1)]),
            action_space=self._space,
            valid=ahead < count,
            dataset=self.name,
            episode=episode,
            step=int(trajectory.steps[row]),
        )

    def _observe(self, trajectory: Standardised, episode: int, row: int) -> dict[str, Any]:
        """Fields of the observation at a row of a trajectory."""
        step = int(trajectory.steps[row])
        images = self._images(trajectory, episode, step)
        return {
            "images": images,
            "depth": self._depth(episode, step) if self.depth else None,
            "intrinsics": self._intrinsics(episode, step, images),
            "extrinsics": self._extrinsics(episode, step),
            "proprio": None if trajectory.proprio is None else trajectory.proprio[row],
        }

    @cached_property
    def _space(self) -> ActionSpace:
        if self.card.action.joints is None:
            return self.card.action_space
        first = next(iter(self.episodes.tolist()))
        return self.card.action_space_of(self._trajectory(first).action.shape[1])

    def _images(self, trajectory: Standardised, episode: int, step: int) -> dict[str, np.ndarray]:
        """Decoded image per slot; a slot is missing where the dataset has no image."""
        images = {}
        for slot, key in trajectory.images.items():
            if self.frame_index.leaf(key).kind != "image":
                images[slot] = self.frame_index.value(key, episode, step)
                continue
            data = self.frame_index.image_bytes(episode, step, key)
            if data:
                images[slot] = decode_rgb(data, fast_dct=self.fast_dct)
        return images

    def _depth(self, episode: int, step: int) -> dict[str, Float32[np.ndarray, "H W"]]:
        depth = {}
        for slot, term in self.card.depth.items():
            leaf = self.frame_index.leaf(term.path)
            if leaf.kind == "image":
                data = self.frame_index.image_bytes(episode, step, term.path)
                if not data:
                    continue
                values = decode_depth(data, leaf.dtype)
            else:
                values = np.asarray(self.frame_index.value(term.path, episode, step)).squeeze()
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
                value = (
                    self.frame_index.value(source, episode, step)
                    if isinstance(source, str)
                    else source
                )
                matrices[slot] = np.asarray(value, np.float64).reshape(3, 3)
        return matrices

    def _extrinsics(self, episode: int, step: int) -> dict[str, Float64[np.ndarray, "4 4"]]:
        """Camera-to-base transform per slot, metres; empty if the card names none."""
        return {
            slot: np.asarray(self.frame_index.value(key, episode, step), np.float64).reshape(4, 4)
            for slot, key in self.card.extrinsics.items()
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


def holdout(dataset: RldsDataset, fraction: float, seed: int) -> tuple[RldsDataset, RldsDataset]:
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
