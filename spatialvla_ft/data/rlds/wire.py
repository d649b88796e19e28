"""`tf.train.Example` in protobuf wire format, read, and grown by a feature, without protobuf.

    Example.features = 1 -> Features.feature = 1 -> entry {key = 1, value = 2: Feature}
    Feature: bytes_list = 1 | float_list = 2 | int64_list = 3, each with `repeated value = 1`.

Byte strings are not copied: the parser gives where they lie. Nothing it gives refers to the buffer,
so that the caller may read the next record into the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Buffer = bytes | bytearray


@dataclass(frozen=True)
class ByteStrings:
    """Start and length of every value of a bytes list, in bytes from the start of the record."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


Values = ByteStrings | NDArray[np.float32] | NDArray[np.int64] | None
"""One feature: byte strings, floats, integers, or None for a feature of no kind (empty)."""


def _varint(data: Buffer, pos: int) -> tuple[int, int]:
    """(value, next position) of the varint at `pos`."""
    byte = data[pos]
    pos += 1
    if byte < 0x80:
        return byte, pos
    value, shift = byte & 0x7F, 7
    while True:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7


def _field(data: Buffer, pos: int, end: int) -> tuple[int, int, int]:
    """(tag, start, stop) of the field at `pos`; start:stop is its payload, the next is at stop."""
    tag, pos = _varint(data, pos)
    kind = tag & 7
    if kind == _BYTES:
        length, pos = _varint(data, pos)
        stop = pos + length
    elif kind == _FIXED32:
        stop = pos + 4
    elif kind == _FIXED64:
        stop = pos + 8
    elif kind == _VARINT:
        stop = _varint(data, pos)[1]
    else:
        raise DatasetError(f"wire type {kind} at byte {pos}")
    if stop > end:
        raise DatasetError(f"a field at byte {pos} runs past its message")
    return tag, pos, stop


def decode_varints(raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Packed varints as signed 64-bit integers (two's complement)."""
    if raw.size == 0:
        return np.empty(0, np.int64)
    last = raw < 0x80
    if last.all():
        return raw.astype(np.int64)
    ends = np.flatnonzero(last)
    if ends.size == 0 or ends[-1] != raw.size - 1:
        raise DatasetError("a packed integer list ends inside a number")
    starts = np.concatenate(([0], ends[:-1] + 1))
    position = np.arange(raw.size) - np.repeat(starts, ends - starts + 1)
    if position.max() > 9:
        raise DatasetError("an integer of more than 10 bytes")
    parts = (raw & 0x7F).astype(np.uint64) << (7 * position).astype(np.uint64)
    return np.add.reduceat(parts, starts).view(np.int64)


def _byte_strings(data: Buffer, pos: int, end: int) -> ByteStrings:
    starts: list[int] = []
    lengths: list[int] = []
    # The one loop that runs per image and per text, hence lengths below 2 MiB without a call.
    while pos < end:
        if data[pos] != 0x0A:
            raise DatasetError(f"a bytes list holds something else at byte {pos}")
        length = data[pos + 1]
        if length < 0x80:
            pos += 2
        elif (high := data[pos + 2]) < 0x80:
            length += (high - 1) << 7
            pos += 3
        elif (top := data[pos + 3]) < 0x80:
            length += ((high - 1) << 7) + ((top - 1) << 14)
            pos += 4
        else:
            length, pos = _varint(data, pos + 1)
        starts.append(pos)
        lengths.append(length)
        pos += length
    if pos != end:
        raise DatasetError(f"a bytes list runs past its end at byte {end}")
    return ByteStrings(np.array(starts, np.int64), np.array(lengths, np.int64))


def _numbers(data: Buffer, pos: int, end: int, packed: int, single: int) -> NDArray[np.uint8]:
    """A copy of a numeric list's payloads, joined; packed and one-by-one are both legal."""
    parts = []
    while pos < end:
        tag, start, pos = _field(data, pos, end)
        if tag not in (packed, single):
            raise DatasetError(f"a numeric list holds tag {tag} at byte {start}")
        parts.append(data[start:pos])
    return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), np.uint8)


def _feature(data: Buffer, pos: int, end: int) -> Values:
    values: Values = None
    while pos < end:
        tag, start, pos = _field(data, pos, end)
        if tag == 0x0A:
            values = _byte_strings(data, start, pos)
        elif tag == 0x12:
            values = _numbers(data, start, pos, 0x0A, 0x0D).view("<f4")
        elif tag == 0x1A:
            values = decode_varints(_numbers(data, start, pos, 0x0A, 0x08))
        else:
            raise DatasetError(f"a feature holds tag {tag} at byte {start}")
    return values


def parse_example(data: Buffer, size: int | None = None) -> dict[str, Values]:
    """Every feature of one record by name.

    Args:
        data: a buffer that starts with the record.
        size: bytes of the record; the whole buffer if not given.

    Raises:
        DatasetError: the bytes are not a `tf.train.Example`.
    """
    features: dict[str, Values] = {}
    try:
        pos, end = 0, len(data) if size is None else size
        while pos < end:
            tag, inner, pos = _field(data, pos, end)
            if tag != 0x0A:
                raise DatasetError(f"tag {tag} at byte {inner} is not tf.train.Example.features")
            while inner < pos:
                tag, entry, inner = _field(data, inner, pos)
                if tag != 0x0A:
                    raise DatasetError(f"tag {tag} at byte {entry} is not a feature entry")
                key, value = "", None
                while entry < inner:
                    tag, first, entry = _field(data, entry, inner)
                    if tag == 0x0A:
                        key = data[first:entry].decode()
                    elif tag == 0x12:
                        value = _feature(data, first, entry)
                    else:
                        raise DatasetError(f"a feature entry holds tag {tag} at byte {first}")
                features[key] = value
    except DatasetError as error:
        raise DatasetError(f"not a tf.train.Example: {error}") from None
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise DatasetError(f"not a tf.train.Example: {error}") from None
    return features


def with_floats(data: bytes, key: str, values: NDArray[np.float32]) -> bytes:
    """The record with a further feature of floats; every byte that it had stays as it was.

    Args:
        data: the record.
        key: of the new feature, which the record must not have.
        values: flat.
    """
    packed = _delimited(0x0A, values.astype("<f4").tobytes())
    feature = _delimited(0x12, packed)
    entry = _delimited(0x0A, key.encode()) + _delimited(0x12, feature)
    tag, start, stop = _field(data, 0, len(data)) if data else (0, 0, 0)
    if tag != 0x0A or stop != len(data):  # several messages in a row count as one
        return data + _delimited(0x0A, _delimited(0x0A, entry))
    return _delimited(0x0A, data[start:] + _delimited(0x0A, entry))


def _delimited(tag: int, payload: bytes) -> bytes:
    """A field of bytes: tag, length, payload."""
    length, size = bytearray(), len(payload)
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((tag, *length, size)) + payload
