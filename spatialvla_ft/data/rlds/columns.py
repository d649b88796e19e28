"""From the values of a record to Arrow columns, and back to NumPy.

Of images the columns `<path>@offset` and `<path>@length` say where in the shard the bytes lie; all
else is stored as it came, in the dtype that `features.json` declares. Every variable-length
sequence around a value is an Arrow list; a fixed shape is an Arrow fixed-size list, row-major.
"""

from __future__ import annotations

import zlib
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.features import Leaf
from spatialvla_ft.data.rlds.wire import ByteStrings, Values

OFFSET, LENGTH, SHAPE = "@offset", "@length", "@shape"


def count_steps(leaf: Leaf, features: dict[str, Values]) -> int | None:
    """Number of steps of a record as told by a step leaf; None if this leaf cannot tell."""
    keys = leaf.wire_keys()
    value = features[keys.get("rows0", keys["value"])]
    if value is None:
        return 0
    count = len(value.starts) if isinstance(value, ByteStrings) else len(value)
    if "rows0" in keys or leaf.kind == "image" or leaf.encoded:
        return count
    if leaf.width < 0:
        return None
    if count % leaf.width:
        raise DatasetError(f"{count} values do not make steps of shape {leaf.shape}")
    return count // leaf.width


def to_arrow(
    leaf: Leaf, features: dict[str, Values], rows: int, data: bytes, offset: int
) -> dict[str, pa.Array]:
    """Columns of `rows` values (steps of a record, or 1 for an episode's leaf).

    Args:
        leaf: which feature.
        features: the parsed record.
        rows: number of rows the columns must have.
        data: the record.
        offset: byte in the shard at which the record starts.
    """
    keys = leaf.wire_keys()
    lists: list[NDArray[np.int64]] = [
        _integers(features[keys[part]]) for part in sorted(k for k in keys if k.startswith("rows"))
    ]
    if leaf.level == "episode" and leaf.ragged:
        outer = lists[0].size if lists else _count(leaf, features[keys["value"]])
        lists.insert(0, np.array([outer], np.int64))
    values = int(lists[-1].sum()) if lists else rows
    flat = _flat(leaf, features, keys, values, data, offset)
    for i, lengths in reversed(list(enumerate(lists))):
        expected = rows if i == 0 else int(lists[i - 1].sum())
        if lengths.size != expected:
            raise DatasetError(f"{lengths.size} row lengths where {expected} were expected")
        offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int64())
        flat = {name: pa.LargeListArray.from_arrays(offsets, a) for name, a in flat.items()}
    return flat


def _flat(
    leaf: Leaf,
    features: dict[str, Values],
    keys: dict[str, str],
    count: int,
    data: bytes,
    offset: int,
) -> dict[str, pa.Array]:
    """Columns of `count` values without the sequences around them."""
    value = features[keys["value"]]
    if leaf.kind == "image":
        strings = _strings(value, count)
        return {
            leaf.path + OFFSET: pa.array(strings.starts + offset),
            leaf.path + LENGTH: pa.array(strings.lengths),
        }
    if leaf.kind == "bytes" or leaf.encoded:
        per_value = 1 if leaf.encoded else leaf.width
        if per_value < 0:
            per_value = _varying(_count(leaf, value), count, 1)
        strings = _strings(value, count * per_value)
        ends = (strings.starts + strings.lengths).tolist()
        array = pa.array(
            [data[a:b] for a, b in zip(strings.starts.tolist(), ends, strict=True)],
            pa.large_binary(),
        )
        columns = {leaf.path: _group(array, leaf, per_value, count)}
        if "shape" in keys:
            dims = _integers(features[keys["shape"]])
            if dims.size != count * len(leaf.shape):
                raise DatasetError(f"{dims.size} sizes for {count} values of shape {leaf.shape}")
            columns[leaf.path + SHAPE] = pa.FixedSizeListArray.from_arrays(
                pa.array(dims), len(leaf.shape)
            )
        return columns
    if isinstance(value, ByteStrings):
        raise DatasetError(f"bytes where {leaf.dtype} was expected")
    numbers = np.empty(0, np.int64) if value is None else value
    width = leaf.width if leaf.width >= 0 else _varying(numbers.size, count, 1)
    if numbers.size != count * width:
        raise DatasetError(f"{numbers.size} numbers where {count} x {width} were expected")
    return {leaf.path: _group(pa.array(_cast(numbers, leaf.dtype)), leaf, width, count)}


def _group(array: pa.Array, leaf: Leaf, width: int, count: int) -> pa.Array:
    """One entry per value: the array itself, a fixed-size list, or a list if the shape varies."""
    if leaf.encoded or leaf.shape == ():
        return array
    if leaf.width < 0:
        return pa.LargeListArray.from_arrays(pa.array(np.arange(count + 1) * width), array)
    return pa.FixedSizeListArray.from_arrays(array, width)


def _varying(size: int, count: int, least: int) -> int:
    if count == 0:
        return least
    if size % count:
        raise DatasetError(f"{size} numbers do not divide among {count} values")
    return size // count


def _cast(numbers: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype == np.uint64:
        return numbers.view(np.uint64)
    if (dtype.kind in "iub") != (numbers.dtype.kind == "i") and numbers.size:
        raise DatasetError(f"{numbers.dtype} where {dtype} was expected")
    return numbers.astype(dtype)


def _strings(value: Values, count: int) -> ByteStrings:
    if value is None:
        value = ByteStrings(np.empty(0, np.int64), np.empty(0, np.int64))
    if not isinstance(value, ByteStrings):
        raise DatasetError("numbers where bytes were expected")
    if value.starts.size != count:
        raise DatasetError(f"{value.starts.size} byte strings where {count} were expected")
    return value


def _integers(value: Values) -> NDArray[np.int64]:
    if value is None:
        return np.empty(0, np.int64)
    if isinstance(value, ByteStrings) or value.dtype != np.int64:
        raise DatasetError("row lengths must be integers")
    return value.astype(np.int64, copy=False)


def _count(leaf: Leaf, value: Values) -> int:
    if value is None:
        return 0
    size = value.starts.size if isinstance(value, ByteStrings) else value.size
    return size // leaf.width if leaf.width > 0 and not leaf.encoded else size


def from_arrow(leaf: Leaf, columns: dict[str, pa.Array]) -> Any:
    """Values of rows: (rows, *shape), object arrays for bytes, lists where lengths vary."""
    array = columns[leaf.path]
    if leaf.ragged:
        inner = {name: column.flatten() for name, column in columns.items()}
        values = _unlist(leaf, inner, leaf.ragged - 1)
        offsets = array.offsets.to_numpy() - array.offsets[0].as_py()
        return [values[a:b] for a, b in pairwise(offsets.tolist())]
    return _unlist(leaf, columns, 0)


def _unlist(leaf: Leaf, columns: dict[str, pa.Array], ragged: int) -> Any:
    array = columns[leaf.path]
    if ragged:
        values = _unlist(leaf, {k: v.flatten() for k, v in columns.items()}, ragged - 1)
        offsets = array.offsets.to_numpy() - array.offsets[0].as_py()
        return [values[a:b] for a, b in pairwise(offsets.tolist())]
    count = len(array)
    if leaf.encoded:
        shapes = columns.get(leaf.path + SHAPE)
        values = [
            _decode(blob, leaf, leaf.shape if shapes is None else tuple(shapes[i].as_py()))
            for i, blob in enumerate(array.to_pylist())
        ]
        if -1 in leaf.shape:
            return values
        return np.stack(values) if values else np.empty((0, *leaf.shape), leaf.dtype)
    if leaf.shape:
        array = array.flatten()
    flat: NDArray[Any]
    if leaf.kind == "bytes":
        flat = np.empty(len(array), object)
        flat[:] = array.to_pylist()
    else:
        flat = array.to_numpy(zero_copy_only=False)
    shape = leaf.shape
    if leaf.width < 0:
        known = int(np.prod([size for size in shape if size >= 0]))
        varying = flat.size // max(1, count * known)
        shape = tuple(varying if size < 0 else size for size in shape)
    return flat.reshape(count, *shape)


def _decode(blob: bytes, leaf: Leaf, shape: tuple[int, ...]) -> NDArray[Any]:
    raw = zlib.decompress(blob) if leaf.encoding == "zlib" else blob
    return np.frombuffer(raw, leaf.dtype).reshape(shape)
