"""From Arrow columns of the index back to NumPy."""

from __future__ import annotations

import zlib
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spatialvla_ft.data.rlds.columns import SHAPE
from spatialvla_ft.data.rlds.features import Leaf


def from_arrow(leaf: Leaf, columns: dict[str, pa.Array]) -> Any:
    """Values of rows: (rows, *shape), object arrays for bytes, lists where lengths vary."""
    array = columns[leaf.path]
    if leaf.ragged:
        inner = {name: column.flatten() for name, column in columns.items()}
        values = _unlist(leaf, inner, leaf.ragged - 1)
        return [values[a:b] for a, b in pairwise(_offsets(array))]
    return _unlist(leaf, columns, 0)


def _unlist(leaf: Leaf, columns: dict[str, pa.Array], ragged: int) -> Any:
    array = columns[leaf.path]
    if ragged:
        values = _unlist(leaf, {k: v.flatten() for k, v in columns.items()}, ragged - 1)
        return [values[a:b] for a, b in pairwise(_offsets(array))]
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
    if leaf.shape and leaf.width >= 0:
        # As `flatten` does, without pyarrow's compute engine, which costs more than all else here.
        array = array.values.slice(array.offset * leaf.width, count * leaf.width)
    elif leaf.shape:
        array = array.flatten()
    flat: NDArray[Any]
    if leaf.kind == "bytes":
        flat = np.empty(len(array), object)
        flat[:] = array.to_pylist()
    else:
        flat = _numbers(array, leaf.stored).view(leaf.dtype)
    shape = leaf.shape
    if leaf.width < 0:
        known = int(np.prod([size for size in shape if size >= 0]))
        varying = flat.size // max(1, count * known)
        shape = tuple(varying if size < 0 else size for size in shape)
    return flat.reshape(count, *shape)


def _offsets(lists: pa.Array) -> list[int]:
    """Where each list begins in the values of all, and where the last one ends."""
    found = _numbers(lists.offsets, np.dtype(np.int64))
    offsets: list[int] = (found - found[0]).tolist()
    return offsets


def _numbers(array: pa.Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values of an array without gaps, in place: pyarrow's own way imports pandas."""
    buffer = array.buffers()[1]
    start, count = array.offset, len(array)
    if buffer is None or not count:
        return np.empty(0, dtype)
    if dtype == np.bool_:
        octets = np.frombuffer(buffer, np.uint8)[start // 8 : (start + count + 7) // 8]
        bits = np.unpackbits(octets, bitorder="little")
        return bits[start % 8 :][:count].view(np.bool_)
    return np.frombuffer(buffer, dtype, count, start * dtype.itemsize)


def _decode(blob: bytes, leaf: Leaf, shape: tuple[int, ...]) -> NDArray[Any]:
    raw = zlib.decompress(blob) if leaf.encoding == "zlib" else blob
    return np.frombuffer(raw, leaf.dtype).reshape(shape)
