"""What a dataset format must offer, so that one class turns any of them into samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
