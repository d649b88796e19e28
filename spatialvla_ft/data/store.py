"""What a dataset format must offer, so that one class turns any of them into samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray


@dataclass(frozen=True)
class Column:
    """What a dataset says of a column before a value is read.

    Attributes:
        kind: what it holds.
        shape: of one value; -1 where a length varies.
        per: one value per step, or one per episode that counts for all its steps.
    """

    kind: Literal["numbers", "words", "picture"]
    shape: tuple[int, ...]
    per: Literal["step", "episode"] = "step"


class EpisodeStore(Protocol):
    """Episodes on disk: columns of numbers and words, and pictures one at a time.

    Episodes are numbered over all splits. Keys are dotted (`observation.state`). A store may cross
    fork and spawn.
    """

    @property
    def label(self) -> str:
        """The name that samples carry and that statistics are kept under."""

    @property
    def splits(self) -> Mapping[str, range]:
        """Name of a split to its episodes."""

    @property
    def episode_lengths(self) -> Int64[np.ndarray, " n"]:
        """Steps of every episode."""

    @property
    def content_hash(self) -> str:
        """Changes whenever the data may have changed."""

    @property
    def licence(self) -> str | None:
        """What its makers say of its use, in their words; None where they say nothing."""

    @property
    def statistics_dir(self) -> Path:
        """Where statistics of this dataset may be kept."""

    def check_column(self, key: str) -> Column | None:
        """What `key` holds, None where that is not known before it is read.

        Raises:
            DatasetError: there is no such column, with the keys there are.
        """

    def check_image(self, key: str, *, depth: bool) -> None:
        """DatasetError unless `key` is a picture, or a depth picture."""

    def trajectory(
        self, episode: int, keys: tuple[str, ...], steps: range | None = None
    ) -> Mapping[str, Any]:
        """Columns of an episode, (steps, ...) each; of some steps only, where they are given.

        A value of the episode stands at every step. A column whose length varies is a list.
        """

    def value(self, key: str, episode: int, step: int) -> Any:
        """A column at one step."""

    def rgb(self, key: str, episode: int, step: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """A picture, or None where the dataset has none."""

    def stored_depth(self, key: str, episode: int, step: int) -> NDArray[Any] | None:
        """(H, W) depth in the unit that it is stored in, or None where the dataset has none."""


Kind = Literal["picture", "depth", "numbers", "words", "other"]
BROAD = 256
"""Numbers per step above which a column is an embedding or the like, not a state."""


@dataclass(frozen=True)
class Field:
    """One column of a dataset.

    Attributes:
        key: dotted name, as a card writes it.
        kind: what it holds; `other` is not read here.
        dtype: as the dataset declares it.
        shape: of one value; -1 where it varies.
        per: one value per step, or per episode.
        stored: encoding, e.g. `jpeg`; empty if plain.
        names: of the dimensions, where the dataset gives them.
        note: why it cannot be read, where it cannot.
    """

    key: str
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    per: Literal["step", "episode"]
    stored: str = ""
    names: tuple[str, ...] = ()
    note: str = ""

    @property
    def width(self) -> int:
        """Numbers per value; -1 if that varies."""
        return -1 if -1 in self.shape else int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_vector(self) -> bool:
        """Whether it may be an action or a state: few numbers per step, not a picture."""
        return self.kind == "numbers" and self.per == "step" and 0 < self.width <= BROAD

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


class Source(Protocol):
    """Episodes on disk, read without a card."""

    name: str
    version: str
    format: str
    fields: tuple[Field, ...]
    fps: float | None
    robot: str | None

    @property
    def splits(self) -> Mapping[str, range]:
        """Name of a split to its episodes."""

    @property
    def episode_lengths(self) -> Int64[np.ndarray, " n"]:
        """Steps of every episode."""

    def trajectory(self, episode: int, keys: tuple[str, ...]) -> Mapping[str, Any]:
        """Columns of an episode."""

    def value(self, key: str, episode: int, step: int) -> Any:
        """A column at one step."""

    def rgb(self, key: str, episode: int, step: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """A picture, or None where there is none."""

    def stored_depth(self, key: str, episode: int, step: int) -> NDArray[Any] | None:
        """(H, W) depth as it is stored, or None where there is none."""
