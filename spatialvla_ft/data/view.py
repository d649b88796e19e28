"""What is seen at a step of an episode: pictures, depth and cameras, by a card's slots.

Whether a dataset has all that a card reads, as wide as it reads it: every mistake at once.

Cameras that change places, as a card's `augment` says: DROID's two outside views.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Float32, Float64

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.fields import Intrinsics
from spatialvla_ft.data.cards.standardise import wanted_keys, wrong_total, wrong_width
from spatialvla_ft.data.cards.terms import Term
from spatialvla_ft.data.decode import to_metres
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.projection import stored_matrix
from spatialvla_ft.data.store import Column, EpisodeStore
from spatialvla_ft.data.words import check_words

Value = TypeVar("Value")


def swapped_slots(card: Card, dataset: str, episode: int) -> dict[str, str]:
    """Slot -> slot whose place it takes in this episode; empty where nothing changes.

    The draw is a function of dataset and episode, so that every process, epoch and resumed run
    sees an episode from the same side.
    """
    places: dict[str, str] = {}
    for i, rule in enumerate(card.augment):
        chance = np.random.default_rng([zlib.crc32(dataset.encode()), episode, i]).random()
        if chance < rule.p:
            a, b = rule.swap
            # A second rule moves what already stands in its slots.
            now = {places.get(slot, slot): slot for slot in {*places, a, b}}
            places[now.get(a, a)], places[now.get(b, b)] = b, a
    return places


def swap(values: Mapping[str, Value], places: Mapping[str, str]) -> dict[str, Value]:
    """The same values under their new slots."""
    return {places.get(slot, slot): value for slot, value in values.items()}


class Features(Protocol):
    """What can be asked of a dataset's features; every `EpisodeStore` answers."""

    @property
    def label(self) -> str:
        """The dataset's name."""

    def check_column(self, key: str) -> Column | None:
        """What `key` holds, or None if unknown; DatasetError unless it is a column."""

    def check_image(self, key: str, *, depth: bool) -> None:
        """DatasetError unless `key` is a picture, or a depth picture."""


def check_keys(card: Card, features: Features, *, given: Collection[str] = ()) -> None:
    """Check that a dataset has every column and picture of a card, and that slices lie inside.

    Args:
        card: how to read the dataset.
        features: those of the dataset.
        given: slots whose intrinsics come from elsewhere.

    Raises:
        DatasetError: all that is wrong, a line each.
    """
    problems: dict[str, None] = {}
    columns: dict[str, Column | None] = {}

    def look(check: Callable[..., Any], *args: Any, **kind: bool) -> Any:
        try:
            return check(*args, **kind)
        except DatasetError as error:
            problems[str(error)] = None
            return None

    for key in wanted_keys(card):
        columns[key] = look(features.check_column, key)
    for terms, depth in ((card.cameras or {}, False), (card.depth, True)):
        for slot, term in terms.items():
            if term.path is None:
                what = f"{'depth ' if depth else ''}{slot}"
                problems[f"camera {what!r} must be a path"] = None
            else:
                look(features.check_image, term.path, depth=depth)
    cameras = [k for slot, k in card.intrinsics.items() if isinstance(k, str) and slot not in given]
    sizes = {
        **dict.fromkeys(cameras, ("K, which is 9 numbers or fx, fy, cx, cy", (4, 9))),
        **dict.fromkeys(card.extrinsics.values(), ("a pose, which is 4 x 4 numbers", (16,))),
    }
    for key in card.points.values():
        look(features.check_column, key)
    for key, (what, allowed) in sizes.items():
        look(_check_size, key, look(features.check_column, key), what, allowed)
    for key in card.language.keys:
        column = columns[key]
        if column is not None:
            look(check_words, card.language, key, column)
    problems |= dict.fromkeys(_of_terms(card, columns))
    if problems:
        lines = list(problems)
        told = f" {lines[0]}" if len(lines) == 1 else "\n  " + "\n  ".join(lines)
        raise DatasetError(f"{features.label}: card {card.name!r} does not fit, mend it:{told}")


def _check_size(key: str, column: Column | None, what: str, allowed: tuple[int, ...]) -> None:
    if column is None or -1 in column.shape:
        return
    if column.kind != "numbers" or math.prod(column.shape) not in allowed:
        raise DatasetError(
            f"{key!r} is read as {what}, but holds {column.kind} of shape {list(column.shape)}"
        )


def _of_terms(card: Card, columns: Mapping[str, Column | None]) -> list[str]:
    """Slices that leave their column, and lines of the card with too many or too few columns."""
    problems: list[str] = []

    def width(what: str, terms: list[Term]) -> int | None:
        found = 0
        for term in terms:
            column = None if term.path is None else columns[term.path]
            try:
                taken = term.width_of(-1) if column is None else term.check_column(column)
            except DatasetError as error:
                problems.append(f"{what}: {error}")
                taken = term.width_of(column.shape[-1] if column and column.shape else 1)
            if taken is None:
                return None
            found += taken
        return found

    total: int | None = 0
    for group in card.action.groups:
        found = width(f"action.{group.name}", group.terms)
        if found is not None and group.width not in (None, found):
            problems.append(wrong_width(card, *group, found=found))
        total = None if found is None or total is None else total + found
    if total is not None and (wrong := wrong_total(card, total)):
        problems.append(wrong)
    if card.proprio:
        width("proprio", card.proprio.terms)
    if card.relabel:
        low, high = card.relabel.dims
        found = width("relabel.from", [card.relabel.source])
        if found not in (None, high - low) or (total is not None and high > total):
            problems.append(
                f"relabel: dims [{low}, {high}] of {total or '?'} columns are replaced by {found} "
                f"of {card.relabel.source}; mend dims or the slice of from"
            )
    return problems


Camera = Intrinsics | Float64[np.ndarray, "3 3"]
"""Intrinsics with their image size, or K for the image as it is stored."""


@dataclass(frozen=True)
class View:
    """How the steps of a store are looked at.

    Attributes:
        store: the episodes on disk.
        card: how to read them.
        name: of the dataset, for messages.
        cameras: slots that are read and decoded; None for all of the card.
        depth: whether depth is read.
        intrinsics: cameras by slot, instead of those of the card.
    """

    store: EpisodeStore
    card: Card
    name: str
    cameras: tuple[str, ...] | None
    depth: bool
    intrinsics: Mapping[str, Camera]

    def at(self, episode: int, step: int) -> dict[str, Any]:
        """`images`, `depth`, `intrinsics` and `extrinsics` of an `Observation`."""
        places = swapped_slots(self.card, self.name, episode)
        images = {}
        for slot, term in (self.card.cameras or {}).items():
            if not self._wanted(slot, places):
                continue
            assert term.path is not None  # see check_card
            image = self.store.rgb(term.path, episode, step)
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
        }

    def points(self, episode: int, step: int) -> dict[str, Any]:
        """`target_point` and `reference_point` of a `Sample`, where the step has them.

        Raises:
            DatasetError: a column is not three numbers, or holds infinity.
        """
        found = {}
        for field, key in self.card.points.items():
            point = np.asarray(self.store.value(key, episode, step), np.float32).reshape(-1)
            if point.shape != (3,) or np.isinf(point).any():
                raise DatasetError(
                    f"{self.name}, episode {episode}, step {step}: {key!r} is {point.tolist()}, "
                    f"but {field} is x, y, z in metres in the robot's base frame, NaN for none"
                )
            if not np.isnan(point).any():
                found[field] = point
        return found

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
                matrices[slot] = stored_matrix(value, f"{self.name}, {slot}")
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


def check_card(card: Card, store: EpisodeStore, view: View) -> None:
    """Every key of the card must exist, now rather than in the middle of a run.

    Raises:
        DatasetError: the store lacks what the card or the view names.
    """
    cameras = card.cameras or {}
    check_keys(card, store, given=view.intrinsics)
    absent = sorted(set(view.cameras or ()) - set(cameras))
    if absent:
        raise DatasetError(
            f"{view.name}: its card has no camera {absent}; it has {sorted(cameras)}"
        )
    unknown = set(view.intrinsics) - set(cameras)
    if unknown:
        raise DatasetError(
            f"intrinsics for {sorted(unknown)}, but card {card.name!r} has {sorted(cameras)}"
        )
    if view.depth and not card.depth:
        raise DatasetError(f"depth was asked for, but card {card.name!r} names none")
    if view.depth and card.depth_scale is None:
        raise DatasetError(
            f"card {card.name!r} has depth but no depth_scale; say how many metres one unit of "
            "the stored depth is, e.g. depth_scale: 0.001 for millimetres"
        )
