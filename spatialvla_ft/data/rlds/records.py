"""TFRecord framing: length (8 bytes, little endian), its CRC (4), data, CRC of the data (4).

ArrayRecord shards, record by record.

The format compresses every record, so that an image has no bytes of its own in the file: a frame
is found by the number of its record and its place in the unpacked record. Unpacking an episode for
one image is dear; the last few are kept. The format checks a hash of every record when it is read,
which cannot be switched off. Its library reads files of this machine only: shards at a URL are
copied to the cache folder first.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.places import Store

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


KEPT_BYTES = 128 << 20
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def open_shard(path: Path) -> Any:
    """A reader of one shard; BrokenShardError if the file cannot be read at all."""
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise DatasetError(
            f"{path} needs the package array_record, which has no build for this system; install "
            "it, or convert the dataset on Linux with tfds convert_format "
            "--out_file_format=tfrecord"
        ) from None
    try:
        reader = array_record_module.ArrayRecordReader(str(path), _OPTIONS)
        reader.num_records()
        if not reader.ok():
            reader.read([0])  # says what is wrong
    except RuntimeError as error:
        raise BrokenShardError(
            f"{path} is truncated, damaged or no ArrayRecord file ({path.stat().st_size} bytes): "
            f"{error}; fetch the file again"
        ) from None
    return reader


def read_array_records(path: Path, *, on_bad: Bad | None = None) -> Iterator[tuple[int, bytes]]:
    """(number, data) of every record; damaged ones go to `on_bad`, or raise if it is None."""
    reader = open_shard(path)
    try:
        for number in range(reader.num_records()):
            try:
                data: bytes = reader.read([number])[0]
            except RuntimeError as failure:
                error = DatasetError(
                    f"{path} is damaged: record {number} cannot be read: {failure}; fetch the file "
                    "again"
                )
                if on_bad is None:
                    raise error from None
                on_bad(number, error)
            else:
                yield number, data
    finally:
        reader.close()


class RecordCache:
    """Records of a dataset's shards, the last ones kept in memory; for one process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._readers: OrderedDict[str, Any] = OrderedDict()
        self._records: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"_store": self._store}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_store"])  # type: ignore[misc]

    def read(self, name: str, number: int) -> bytes:
        """Record `number` of the shard `name`, unpacked."""
        if self._pid != os.getpid():
            self.__init__(self._store)  # type: ignore[misc]
        data = self._records.pop((name, number), None)
        if data is None:
            reader = self._readers.pop(name, None) or open_shard(self._store.local_file(name))
            self._readers[name] = reader
            if len(self._readers) > 16:
                self._readers.popitem(last=False)[1].close()
            try:
                data = reader.read([number])[0]
            except RuntimeError as error:
                raise DatasetError(
                    f"{self._store.path(name)}: record {number} cannot be read: {error}; the shard "
                    "changed after it was indexed, fetch it again"
                ) from None
            self._bytes += len(data)
        self._records[name, number] = data
        while self._bytes > KEPT_BYTES and len(self._records) > 1:
            self._bytes -= len(self._records.popitem(last=False)[1])
        return data
