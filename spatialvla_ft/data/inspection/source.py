"""The raw side of a dataset, before any card: which columns and pictures there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError, no_feature
from spatialvla_ft.data.inspection.findings import Finding
from spatialvla_ft.data.inspection.series import Series
from spatialvla_ft.data.rlds.features import Leaf
from spatialvla_ft.data.rlds.index import FrameIndex
from spatialvla_ft.data.rlds_store import RldsStore
from spatialvla_ft.data.store import Column

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


class RldsSource(RldsStore):
    """An RLDS dataset through its frame index, with what it says of its features."""

    def __init__(self, index: FrameIndex) -> None:
        super().__init__(index)
        self.name, self.version, self.format = index.name, index.version, "RLDS"
        gone = (Field(k, "other", "", (), "step", note=why) for k, why in index.unread.items())
        self.fields = (*(_field(k, leaf) for k, leaf in index.leaves.items()), *gone)
        self.fps: float | None = None
        self.robot: str | None = None


def _field(key: str, leaf: Leaf) -> Field:
    return Field(
        key=key,
        kind=_kind(leaf),
        dtype="bytes" if leaf.dtype == object else str(leaf.dtype),
        shape=leaf.shape if not leaf.ragged else (*[-1] * leaf.ragged, *leaf.shape),
        per=leaf.level,
        stored="" if leaf.encoding == "none" else leaf.encoding,
    )


def _kind(leaf: Leaf) -> Kind:
    named = "depth" in leaf.path.lower()
    if leaf.kind == "image":
        wide = leaf.dtype in (np.uint16, np.float32)
        flat = bool(leaf.shape) and leaf.shape[-1] == 1
        return "depth" if wide or (named and flat) else "picture"
    if leaf.kind == "bytes":
        return "words"
    size = [side for side in leaf.shape if side != 1]
    if named and len(size) == 2 and min(size) >= 8:
        return "depth"
    if leaf.dtype == np.uint8 and len(leaf.shape) == 3 and leaf.shape[-1] == 3:
        return "picture"
    return "numbers"


class SourceFields:
    """The features of a source, as a card is held against them.

    A picture of the wrong kind passes: what it looks like shall be seen.
    """

    def __init__(self, source: Source) -> None:
        self.label = source.name
        self._known = {field.key: field for field in source.fields}

    def check_column(self, key: str) -> Column:
        """What a column holds; DatasetError unless it can be read."""
        field = self._known.get(key)
        if field is None:
            raise no_feature(self.label, key, self._known)
        if field.kind == "other":
            why = field.note or f"{field.dtype} is not read here"
            raise DatasetError(f"{self.label} has column {key!r}, but it cannot be read: {why}")
        kind: Any = "picture" if field.kind == "depth" else field.kind
        return Column(kind, field.shape, field.per)

    def check_image(self, key: str, *, depth: bool) -> None:
        """DatasetError unless it may be a picture."""
        column = self.check_column(key)
        if column.kind == "words" or (column.kind == "numbers" and len(column.shape) < 2):
            raise DatasetError(
                f"{key!r} of {self.label} holds {column.kind}, no picture per step; name another "
                "column as camera"
            )


def read_numbers(source: Source, field: Field, episode: int) -> NDArray[np.float64]:
    """(T, width) numbers of a column in an episode."""
    values = np.asarray(source.trajectory(episode, (field.key,))[field.key])
    if values.dtype == object:
        raise DatasetError(f"{field.key!r} of {source.name} holds no plain numbers")
    return values.astype(np.float64).reshape(len(values), -1)


def numeric_columns(source: Source, episodes: list[int]) -> tuple[dict[str, Series], list[Finding]]:
    """Every column of a few numbers per step, and what is said of those that cannot be read."""
    columns, unread = {}, []
    for field in source.fields:
        if not field.is_vector:
            continue
        try:
            parts = [read_numbers(source, field, episode) for episode in episodes]
        except DatasetError as error:
            unread.append(
                Finding(
                    rule="column cannot be read",
                    severity="warning",
                    where=field.key,
                    evidence=str(error),
                    cure="no harm unless a card names it",
                )
            )
        else:
            columns[field.key] = Series.join(parts)
    return columns, unread
