"""From the values of records to Arrow columns, a batch of records at a time.

Of images the columns `<path>@offset` and `<path>@length` say where the bytes lie; all else is
stored as it came, in the dtype that `features.json` declares. Every variable-length sequence around
a value is an Arrow list; a fixed shape is an Arrow fixed-size list, row-major.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.features import Leaf
from spatialvla_ft.data.rlds.wire import Buffer, ByteStrings, Values

OFFSET, LENGTH, SHAPE, PRESENT = "@offset", "@length", "@shape", "@present"
_NONE = np.empty(0, np.int64)

Features = dict[str, Values]
Store = Callable[[], None]


class Column:
    """Collects one leaf over many records; `arrays` gives the Arrow columns and starts anew.

    Taking a record has two halves, `check` and what it returns, so that a record of which a later
    column turns out to be bad leaves no trace.
    """

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        keys = leaf.wire_keys()
        self._value = keys["value"]
        self._shape = keys.get("shape")
        self._rows = [keys[part] for part in sorted(k for k in keys if k.startswith("rows"))]
        self._per_step = bool(self._rows) or leaf.kind == "image" or leaf.encoded
        self._strings = leaf.kind == "bytes" or leaf.encoded
        self._width = 1 if leaf.encoded or leaf.kind == "image" else leaf.width
        self._depth = len(self._rows) + (leaf.level == "episode" and leaf.ragged > 0)
        self._clear()

    def _clear(self) -> None:
        self.size = 0
        self._lists: list[list[NDArray[np.int64]]] = [[] for _ in range(self._depth)]
        self._parts: list[Any] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._widths: list[NDArray[np.int64]] = []
        self._shapes: list[NDArray[np.int64]] = []
        self._present: list[bool] = []

    def is_in(self, features: Features) -> bool:
        """Whether a record has all keys of the leaf, or may lack them."""
        return self.leaf.optional or all(k in features for k in self.leaf.wire_keys().values())

    def count_steps(self, features: Features) -> int | None:
        """Number of steps of a record as told by a step leaf; None if this leaf cannot tell."""
        value = features[self._rows[0] if self._rows else self._value]
        if value is None:
            return 0
        count = len(value.starts) if isinstance(value, ByteStrings) else len(value)
        if self._per_step:
            return count
        if self._width < 0:
            return None
        if count % self._width:
            raise DatasetError(f"{count} values do not make steps of shape {self.leaf.shape}")
        return count // self._width

    def check(self, features: Features, rows: int, data: Buffer, offset: int) -> Store:
        """Check a record's values; what is returned takes them.

        Args:
            features: the parsed record.
            rows: number of rows the record must have (its steps, or 1 for an episode's leaf).
            data: the record.
            offset: added to where images lie in the record.
        """
        present = self._value in features
        if not present:
            features = self._absent()
        lists = [_integers(features[key]) for key in self._rows]
        value = features[self._value]
        if self._depth > len(self._rows):
            outer = lists[0].size if lists else self._count(value)
            lists.insert(0, np.array([outer], np.int64))
        expected = rows
        for lengths in lists:
            if lengths.size != expected:
                raise DatasetError(f"{lengths.size} row lengths where {expected} were expected")
            expected = int(lengths.sum())
        count = expected
        width = self._width
        shapes = _NONE
        if self.leaf.kind == "image":
            strings = _strings(value, count)
            part: Any = strings.starts + offset
            size = 16 * count
        elif self._strings:
            if width < 0:
                width = _varying(self._count(value), count)
            strings = _strings(value, count * width)
            ends = (strings.starts + strings.lengths).tolist()
            starts = strings.starts.tolist()
            part = [bytes(data[a:b]) for a, b in zip(starts, ends, strict=True)]
            size = int(strings.lengths.sum())
            if self._shape is not None:
                shapes = _integers(features[self._shape])
                if shapes.size != count * len(self.leaf.shape):
                    raise DatasetError(
                        f"{shapes.size} sizes for {count} values of shape {self.leaf.shape}"
                    )
        else:
            part = self._numbers(value)
            if width < 0:
                width = _varying(part.size, count)
            if part.size != count * width:
                raise DatasetError(f"{part.size} numbers where {count} x {width} were expected")
            size = part.nbytes

        def store() -> None:
            for kept, lengths in zip(self._lists, lists, strict=True):
                kept.append(lengths)
            if isinstance(part, list):
                self._parts.extend(part)
            else:
                self._parts.append(part)
            if self.leaf.kind == "image":
                self._lengths.append(strings.lengths)
            if self._width < 0:
                self._widths.append(np.full(count, width))
            if self._shape is not None:
                self._shapes.append(shapes)
            self._present.append(present)
            self.size += size

        return store

    def blank(self, rows: int) -> Features:
        """A record's values in the place of those that cannot be read; nobody reads them."""
        at_step = self.leaf.level == "step"
        count = 0 if self.leaf.ragged else rows
        found: Features = dict.fromkeys(self._rows)
        if self._rows and at_step:
            found[self._rows[0]] = np.zeros(rows, np.int64)
        width = max(self._width, 0)
        zeros = np.zeros(count * width, np.int64)
        if self._shape is not None:
            found[self._shape] = np.zeros(count * len(self.leaf.shape), np.int64)
        if self._strings or self.leaf.kind == "image":
            return found | {self._value: ByteStrings(zeros, zeros)}
        return found | {
            self._value: zeros if self.leaf.dtype.kind in "iub" else zeros.astype(np.float32)
        }

    def _absent(self) -> Features:
        """What stands in the place of an optional value that an episode lacks."""
        count = 0 if self.leaf.ragged else max(self._width, 0)
        zeros = np.zeros(count, np.int64)
        empty: Features = dict.fromkeys(self._rows)
        if self._shape is not None:
            empty[self._shape] = np.zeros(len(self.leaf.shape) * (not self.leaf.ragged), np.int64)
        if self._strings or self.leaf.kind == "image":
            return empty | {self._value: ByteStrings(zeros, zeros)}
        kind = zeros if self.leaf.dtype.kind in "iub" else zeros.astype(np.float32)
        return empty | {self._value: kind}

    def _count(self, value: Values) -> int:
        if value is None:
            return 0
        size = value.starts.size if isinstance(value, ByteStrings) else value.size
        return size // self._width if self._width > 0 else size

    def _numbers(self, value: Values) -> NDArray[Any]:
        if value is None:
            return _NONE
        if isinstance(value, ByteStrings):
            raise DatasetError(f"bytes where {self.leaf.dtype} was expected")
        if (self.leaf.dtype.kind in "iub") != (value.dtype.kind == "i") and value.size:
            raise DatasetError(f"{value.dtype} where {self.leaf.dtype} was expected")
        return self._cast(value)

    def _cast(self, numbers: NDArray[Any]) -> NDArray[Any]:
        leaf = self.leaf
        cast = numbers.astype(leaf.dtype, copy=False)  # tfds keeps uint64 as the bits of int64
        return cast.view(leaf.stored) if leaf.dtype.kind == "V" else cast

    def arrays(self) -> dict[str, pa.Array]:
        """Arrow columns of everything since the last call."""
        leaf = self.leaf
        if leaf.kind == "image":
            flat = {
                leaf.path + OFFSET: pa.array(_join(self._parts, np.int64)),
                leaf.path + LENGTH: pa.array(_join(self._lengths, np.int64)),
            }
        else:
            if self._strings:
                values = pa.array(self._parts, pa.large_binary())
            else:
                values = pa.array(_join(self._parts, leaf.stored))
            flat = {leaf.path: self._group(values)}
            if self._shape is not None:
                flat[leaf.path + SHAPE] = pa.FixedSizeListArray.from_arrays(
                    pa.array(_join(self._shapes, np.int64)), len(leaf.shape)
                )
        for lists in reversed(self._lists):
            ends = np.cumsum(_join(lists, np.int64))
            offsets = pa.array(np.concatenate((np.zeros(1, np.int64), ends)))
            flat = {name: pa.LargeListArray.from_arrays(offsets, a) for name, a in flat.items()}
        if leaf.optional and leaf.level == "episode":
            flat[leaf.path + PRESENT] = pa.array(self._present)
        self._clear()
        return flat

    def _group(self, values: pa.Array) -> pa.Array:
        """One entry per value: the array itself, a fixed-size list, or a list if shapes vary."""
        if self.leaf.encoded or self.leaf.shape == ():
            return values
        if self._width < 0:
            ends = np.cumsum(_join(self._widths, np.int64))
            offsets = pa.array(np.concatenate((np.zeros(1, np.int64), ends)))
            return pa.LargeListArray.from_arrays(offsets, values)
        return pa.FixedSizeListArray.from_arrays(values, self._width)


def _join(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    if not parts:
        return np.empty(0, dtype)
    return np.concatenate(parts).astype(dtype, copy=False)


def _varying(size: int, count: int) -> int:
    """Width of each of `count` values that share `size` numbers or byte strings."""
    if count == 0:
        return 1
    if size % count:
        raise DatasetError(f"{size} numbers do not divide among {count} values")
    return size // count


def _strings(value: Values, count: int) -> ByteStrings:
    if value is None:
        value = ByteStrings(_NONE, _NONE)
    if not isinstance(value, ByteStrings):
        raise DatasetError("numbers where bytes were expected")
    if value.starts.size != count:
        raise DatasetError(f"{value.starts.size} byte strings where {count} were expected")
    return value


def _integers(value: Values) -> NDArray[np.int64]:
    if value is None:
        return _NONE
    if isinstance(value, ByteStrings) or value.dtype != np.int64:
        raise DatasetError("row lengths must be integers")
    return value  # type: ignore[return-value]
