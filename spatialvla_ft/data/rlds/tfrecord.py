"""TFRecord framing: length (8 bytes, little endian), its CRC (4), data, CRC of the data (4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from spatialvla_ft.data.errors import DatasetError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and offset as TFRecord stores it."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: Path, *, verify_crc: bool = True) -> Iterator[tuple[int, bytes]]:
    """(byte offset of the data, data) of every record.

    The CRC of each length is always checked, since it tells a foreign file at once; `verify_crc`
    is about the data.

    Raises:
        DatasetError: truncated, damaged or foreign file, with its name and offset.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        offset = 0
        while offset < size:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise _truncated(path, offset, size)
            length, crc = _HEADER.unpack(header)
            if masked_crc(header[:8]) != crc:
                what = "is not a TFRecord file" if offset == 0 else "is damaged"
                raise DatasetError(
                    f"{path} {what}: no valid record length at byte {offset}; fetch the file again"
                )
            start = offset + _HEADER.size
            if start + length + _FOOTER.size > size:
                raise _truncated(path, offset, size)
            data = file.read(length)
            (crc,) = _FOOTER.unpack(file.read(_FOOTER.size))
            if verify_crc and masked_crc(data) != crc:
                raise DatasetError(
                    f"{path} is damaged: the record at byte {offset} ({length} bytes) fails its "
                    "CRC; fetch the file again"
                )
            yield start, data
            offset = start + length + _FOOTER.size


def _truncated(path: Path, offset: int, size: int) -> DatasetError:
    return DatasetError(
        f"{path} is truncated: the record at byte {offset} runs past the end of the file at byte "
        f"{size}; fetch the file again"
    )
