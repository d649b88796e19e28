"""ArrayRecord shards, record by record.

The format compresses every record, so that an image has no bytes of its own in the file: a frame
is found by the number of its record and its place in the unpacked record. Unpacking an episode for
one image is dear; the last few are kept. The format checks a hash of every record when it is read,
which cannot be switched off. Its library reads files of this machine only: shards at a URL are
copied to the cache folder first.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.store import Store
from spatialvla_ft.data.rlds.tfrecord import Bad, BrokenShardError

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
