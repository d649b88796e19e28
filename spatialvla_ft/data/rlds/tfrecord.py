"""TFRecord framing: length (8 bytes, little endian), its CRC (4), data, CRC of the data (4)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError

_HEADER = struct.Struct("<QI")
HEADER_BYTES = _HEADER.size
_FOOTER = struct.Struct("<I")


class BrokenShardError(DatasetError):
    """Where the next record starts cannot be known, so that the rest of the shard is lost.

    `offset` is the byte at which that happens, if it is known.
    """

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset


Bad = Callable[[int, DatasetError], None]
"""Told of a record that cannot be used: the byte at which its framing starts, and why."""


def masked_crc(data: bytes | NDArray[np.uint8]) -> int:
    """CRC-32C, rotated and offset as TFRecord stores it."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(
    file: BinaryIO, size: int, name: str, *, verify_crc: bool = True, on_bad: Bad | None = None
) -> Iterator[tuple[int, bytearray, int]]:
    """(byte offset of the data, buffer that starts with the data, its size) of every record.

    The buffer is the same for all records and as large as the largest so far: use it before asking
    for the next. The CRC of each length is always checked, since it tells a foreign file at once;
    `verify_crc` is about the data.

    Args:
        file: opened at its start.
        size: bytes of the file.
        name: of the file, for messages.
        verify_crc: check every record's data.
        on_bad: called for a record whose data is damaged, which is then left out; raises if None.

    Raises:
        DatasetError: truncated, damaged or foreign file, with its name and offset.
    """
    buffer = bytearray(1 << 20)
    offset = 0
    while offset < size:
        header = _read(file, _HEADER.size)
        if len(header) < _HEADER.size:
            raise _truncated(name, offset, size)
        length, crc = _HEADER.unpack(header)
        if masked_crc(header[:8]) != crc:
            what = "is not a TFRecord file" if offset == 0 else "is damaged"
            raise BrokenShardError(
                f"{name} {what}: no valid record length at byte {offset}; fetch the file again",
                offset,
            )
        start = offset + _HEADER.size
        whole = length + _FOOTER.size
        if start + whole > size:
            raise _truncated(name, offset, size)
        if whole > len(buffer):
            buffer = bytearray(whole * 5 // 4)
        if not _read_into(file, memoryview(buffer)[:whole]):
            raise _truncated(name, offset, size)
        if verify_crc:
            # The C function takes NumPy's arrays, but neither bytearray nor memoryview.
            found = masked_crc(np.frombuffer(buffer, np.uint8, length))
            if found != _FOOTER.unpack_from(buffer, length)[0]:
                error = DatasetError(
                    f"{name} is damaged: the record at byte {offset} ({length} bytes) fails its "
                    "CRC; fetch the file again"
                )
                if on_bad is None:
                    raise error
                on_bad(offset, error)
                offset = start + whole
                continue
        yield start, buffer, length
        offset = start + whole


def framed(data: bytes) -> bytes:
    """A record as it stands in a file."""
    length = struct.pack("<Q", len(data))
    return b"".join(
        (length, _FOOTER.pack(masked_crc(length)), data, _FOOTER.pack(masked_crc(data)))
    )


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _read_into(file: BinaryIO, view: memoryview) -> bool:
    """Fill the view; whether the file had enough."""
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True


def _truncated(name: str, offset: int, size: int) -> BrokenShardError:
    return BrokenShardError(
        f"{name} is truncated: the record at byte {offset} runs past the end of the file at byte "
        f"{size}; fetch the file again",
        offset,
    )
