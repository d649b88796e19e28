"""The one error of the data layer, and what it says of a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class DatasetError(ValueError):
    """A dataset, an index or a card is not what it should be; the message names the cure."""


def no_feature(dataset: str, key: str, known: Iterable[str]) -> DatasetError:
    """The error of a dataset without the feature `key`: the nearest names, or all there are."""
    names = sorted(known)
    ends = {name: name.rsplit(".", 1)[-1] for name in names}  # prefixes make all names alike
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], set(ends.values()), n=1, cutoff=0.7)
    near = [name for name in names if ends[name] in close]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {names}"
    return DatasetError(f"{dataset} has no feature {key!r}; {hint}")


def refuse_within(target: Path, source: Path) -> None:
    """DatasetError if what is to be written would lie within what it is made from."""
    if target.resolve().is_relative_to(source.resolve()):
        raise DatasetError(
            f"{target} lies within the dataset itself, {source}; give a folder outside of it"
        )


@contextmanager
def in_episode(dataset: str, episode: int) -> Iterator[None]:
    """Errors that are raised inside say of which dataset and episode they are."""
    try:
        yield
    except DatasetError as error:
        where = f"{dataset}, episode {episode}"
        raise DatasetError(str(error) if where in str(error) else f"{where}: {error}") from None
