"""A frame index as an `EpisodeStore`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from spatialvla_ft.data.decode import decode_depth, decode_rgb
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.features import Leaf
from spatialvla_ft.data.rlds.index import FrameIndex
from spatialvla_ft.data.rlds.info import read_dataset_info
from spatialvla_ft.data.store import Column, Field, Kind
from spatialvla_ft.pictures import rgb_bytes


class RldsStore:
    """Episodes of an RLDS dataset.

    Args:
        index: the frame index.
        fast_dct: decode JPEG as TensorFlow does, see `decode_rgb`.
    """

    def __init__(self, index: FrameIndex, *, fast_dct: bool = True) -> None:
        self.index = index
        self.fast_dct = fast_dct

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.index.name}/{self.index.version}"

    @property
    def splits(self) -> Mapping[str, range]:
        """Name of a split to its episodes."""
        return self.index.splits

    @property
    def episode_lengths(self) -> Int64[np.ndarray, " n"]:
        """Steps of every episode."""
        return self.index.episode_lengths

    @property
    def content_hash(self) -> str:
        """Changes whenever the data may have changed."""
        return self.index.content_hash

    @property
    def licence(self) -> str | None:
        """From dataset_info.json; None where the dataset lies elsewhere now."""
        try:
            return read_dataset_info(self.index.store).licence
        except (DatasetError, OSError):
            return None

    @property
    def statistics_dir(self) -> Path:
        """Beside the index."""
        return self.index.path / "statistics"

    def check_column(self, key: str) -> Column:
        """What a feature holds; DatasetError unless the dataset has it."""
        return column_of(self.index.leaf(key))

    def check_image(self, key: str, *, depth: bool) -> None:
        """DatasetError unless the dataset has this feature; pixels may be a plain tensor."""
        leaf = self.index.leaf(key)
        flat = [side for side in leaf.shape if side != 1]
        pixels = leaf.kind == "tensor" and len(flat) == (2 if depth else 3)
        if leaf.ragged or not (leaf.kind == "image" or pixels):
            what = "a list of pictures" if leaf.kind == "image" else f"{column_of(leaf).kind}"
            raise DatasetError(
                f"{key!r} of {self.index.name} holds {what}, no {'depth ' if depth else ''}picture "
                "per step; name another column as camera"
            )
        if not depth and leaf.kind == "image" and leaf.dtype != np.uint8:
            raise DatasetError(
                f"{key!r} of {self.label} is an image of {leaf.dtype}, and a camera's picture has "
                "8 bits per channel: name it under depth: if it is depth, or write the dataset "
                "again with uint8"
            )

    def trajectory(
        self, episode: int, keys: tuple[str, ...], steps: range | None = None
    ) -> Mapping[str, Any]:
        """Columns of an episode, or of some steps of it; a value of the episode at each of them."""
        found = self.index.trajectory(episode, keys, steps)
        for key in keys:
            if self.index.leaf(key).level == "episode":
                count = self.index.num_steps_of(episode) if steps is None else len(steps)
                found[key] = _at_every_step(found[key], count)
        return found

    def value(self, key: str, episode: int, step: int) -> Any:
        """A column at one step; of an episode's feature, its value."""
        return self.index.value(key, episode, step)

    def rgb(self, key: str, episode: int, step: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """A decoded picture; None where the bytes are empty."""
        if self.index.leaf(key).kind != "image":
            pixels: np.ndarray = self.index.value(key, episode, step)
            if pixels.dtype == np.uint8 and pixels.shape[2:] == (3,):
                return pixels
            where = f"{key!r} of {self.label}, episode {episode}, step {step}"
            try:
                return rgb_bytes(pixels, where)
            except ValueError as error:
                raise DatasetError(str(error)) from None
        data = self.index.image_bytes(episode, step, key)
        return decode_rgb(data, fast_dct=self.fast_dct) if data else None

    def stored_depth(self, key: str, episode: int, step: int) -> NDArray[Any] | None:
        """(H, W) depth in its stored unit; None where the bytes are empty."""
        leaf = self.index.leaf(key)
        if leaf.kind != "image":
            return np.asarray(self.index.value(key, episode, step)).squeeze()
        data = self.index.image_bytes(episode, step, key)
        return decode_depth(data, leaf.dtype) if data else None


def column_of(leaf: Leaf) -> Column:
    """What a feature holds."""
    kinds: dict[str, Literal["numbers", "words", "picture"]] = {
        "tensor": "numbers", "bytes": "words", "image": "picture"
    }  # fmt: skip
    return Column(kinds[leaf.kind], (*[-1] * leaf.ragged, *leaf.shape), leaf.level)


def _at_every_step(value: Any, count: int) -> Any:
    """(count, ...) the same value over and over; a list where it is text, a list or none."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        return np.broadcast_to(value, (count, *np.shape(value)))
    return [value] * count


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
