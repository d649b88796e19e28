"""Whether a dataset has all that a card reads: every mistake at once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from spatialvla_ft.data.card import Card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.standardise import wanted_keys


class Features(Protocol):
    """What can be asked of a dataset's features; every `EpisodeStore` answers."""

    def check_column(self, key: str) -> None:
        """DatasetError unless `key` is a column."""

    def check_image(self, key: str, *, depth: bool) -> None:
        """DatasetError unless `key` is a picture, or a depth picture."""


def check_keys(card: Card, features: Features, *, given: Collection[str] = ()) -> None:
    """Check that a dataset has every column and picture of a card.

    Args:
        card: how to read the dataset.
        features: those of the dataset.
        given: slots whose intrinsics come from elsewhere.

    Raises:
        DatasetError: all that is wrong, a line each.
    """
    problems: dict[str, None] = {}

    def look(check: Callable[..., None], key: str, **kind: bool) -> None:
        try:
            check(key, **kind)
        except DatasetError as error:
            problems[str(error)] = None

    for key in wanted_keys(card):
        look(features.check_column, key)
    for terms, depth in ((card.cameras or {}, False), (card.depth, True)):
        for slot, term in terms.items():
            if term.path is None:
                what = f"{'depth ' if depth else ''}{slot}"
                problems[f"camera {what!r} must be a path"] = None
            else:
                look(features.check_image, term.path, depth=depth)
    cameras = [k for slot, k in card.intrinsics.items() if isinstance(k, str) and slot not in given]
    for key in dict.fromkeys([*cameras, *card.extrinsics.values(), *card.points.values()]):
        look(features.check_column, key)
    if problems:
        lines = list(problems)
        told = f" {lines[0]}" if len(lines) == 1 else "\n  " + "\n  ".join(lines)
        raise DatasetError(f"card {card.name!r} does not fit, mend it:{told}")
