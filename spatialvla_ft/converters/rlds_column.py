"""An RLDS dataset once more with a further column of numbers per step.

Records are not decoded: the new feature is put behind the bytes of each, so that pictures and all
other features stay bit for bit what they were, whatever they are, in the same shards and splits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds import records
from spatialvla_ft.data.rlds.features import STEPS
from spatialvla_ft.data.rlds.index import INDEX_DIR, FrameIndex
from spatialvla_ft.data.rlds.info import read_dataset_info
from spatialvla_ft.data.rlds.places import LocalStore
from spatialvla_ft.data.rlds.wire import with_floats

FEATURES, INFO = "features.json", "dataset_info.json"
_CLASSES = "tensorflow_datasets.core.features"


def add_column(
    index: FrameIndex,
    out: Path,
    *,
    name: str,
    column: str,
    values: Sequence[Float32[np.ndarray, "T n"]],
    meaning: str,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the dataset with the column to the version directory `out`.

    Args:
        index: of the dataset.
        out: new.
        name: of the new dataset.
        column: its dotted name below a step.
        values: of every episode of the index, in order.
        meaning: of the column, for the dataset's own documents.
        progress: called with the number of episodes done.

    Raises:
        DatasetError: the index leaves damaged records out, or a record is damaged.
    """
    if index.num_skipped:
        raise DatasetError(
            f"{index.name}: {index.num_skipped} damaged records are left out of the index, and "
            "cannot be copied; fetch their shards again"
        )
    out.mkdir(parents=True)
    if isinstance(index.store, LocalStore):
        _copy_rest(index, out)
    features = json.loads(index.store.read(FEATURES))
    _declare(features, column, values[0].shape[1], meaning, index.store.path(FEATURES))
    (out / FEATURES).write_text(json.dumps(features, indent=4, sort_keys=True))
    info = json.loads(index.store.read(INFO))
    info["name"] = name
    (out / INFO).write_text(json.dumps(info, indent=2, sort_keys=True))
    old, new = read_dataset_info(index.store), read_dataset_info(LocalStore(out))
    wire = "/".join((STEPS, *column.split(".")))
    done = 0
    for before, after in zip(old.splits, new.splits, strict=True):
        grown = 0
        for source, target in zip(before.shards, after.shards, strict=True):
            with _writer(out / target, index.file_format) as write:
                for record in _records(index, source):
                    longer = with_floats(record, wire, values[done].ravel())
                    write(longer)
                    grown += len(longer) - len(record)
                    done += 1
                    if progress is not None:
                        progress(done)
        entry = next(split for split in info["splits"] if split["name"] == before.name)
        entry["numBytes"] = str(int(entry.get("numBytes", 0)) + grown)
    assert done == len(values), (done, len(values))
    (out / INFO).write_text(json.dumps(info, indent=2, sort_keys=True))


def _copy_rest(index: FrameIndex, out: Path) -> None:
    """Documents and vocabularies beside the shards."""
    shards = {shard for split in read_dataset_info(index.store).splits for shard in split.shards}
    for path in sorted(index.dataset_dir.iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.name not in shards:
            shutil.copyfile(path, out / path.name)
        elif path.is_dir() and not path.name.startswith(".") and path.name != INDEX_DIR:
            shutil.copytree(path, out / path.name)


def _declare(root: dict[str, Any], column: str, width: int, meaning: str, where: str) -> None:
    """Put the column into a parsed `features.json`."""
    node = root["featuresDict"]["features"][STEPS]["sequence"]["feature"]
    *parents, last = column.split(".")
    for parent in parents:
        children = node["featuresDict"]["features"]
        empty = {
            "pythonClassName": f"{_CLASSES}.features_dict.FeaturesDict",
            "featuresDict": {"features": {}},
        }
        node = children.setdefault(parent, empty)
        if "featuresDict" not in node:
            raise DatasetError(f"{where}: {parent!r} of {column!r} holds no further columns")
    node["featuresDict"]["features"][last] = {
        "pythonClassName": f"{_CLASSES}.tensor_feature.Tensor",
        "description": meaning,
        "tensor": {"shape": {"dimensions": [str(width)]}, "dtype": "float32", "encoding": "none"},
    }


def _records(index: FrameIndex, shard: str) -> Iterator[bytes]:
    if index.file_format == "array_record":
        path = index.store.local_file(shard)
        yield from (data for _, data in records.read_array_records(path))
        return
    (stat,) = index.store.stats([shard])
    assert stat is not None, shard
    with index.store.open(shard) as file:
        for _, buffer, size in records.read_records(file, stat["size"], index.store.path(shard)):
            yield bytes(memoryview(buffer)[:size])


@contextmanager
def _writer(path: Path, file_format: str) -> Iterator[Callable[[bytes], Any]]:
    if file_format == "array_record":
        from array_record.python import array_record_module

        # As tfds writes them: every record by itself, for random access.
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        try:
            yield writer.write
        finally:
            writer.close()
        return
    with path.open("wb") as file:
        yield lambda record: file.write(records.framed(record))
