"""Whether a dataset has all that a card reads, as wide as it reads it: every mistake at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from spatialvla_ft.data.card import Card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.standardise import wanted_keys, wrong_total, wrong_width
from spatialvla_ft.data.store import Column
from spatialvla_ft.data.terms import Term
from spatialvla_ft.data.words import check_words


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
