"""One scan of a dataset's TFRecord shards -> steps.arrow, episodes.arrow, meta.json."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds import columns as col
from spatialvla_ft.data.rlds.features import DatasetInfo, Leaf, read_dataset_info, read_features
from spatialvla_ft.data.rlds.tfrecord import read_records
from spatialvla_ft.data.rlds.wire import parse_example

FORMAT_VERSION = 1
META, STEPS, EPISODES = "meta.json", "steps.arrow", "episodes.arrow"
BATCH_STEPS = 65_536

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) after every shard."""


def shard_table(dataset_dir: Path, info: DatasetInfo) -> list[dict[str, Any]]:
    """Name, split, size and modification time of every shard; DatasetError if one is missing."""
    table = []
    for split in info.splits:
        for name in split.shards:
            try:
                stat = (dataset_dir / name).stat()
            except FileNotFoundError:
                raise DatasetError(
                    f"{dataset_dir / name} is missing, though dataset_info.json lists it; fetch "
                    "the shard"
                ) from None
            entry = {"name": name, "split": split.name, "size": stat.st_size}
            table.append(entry | {"mtime_ns": stat.st_mtime_ns})
    return table


def feature_hash(dataset_dir: Path) -> str:
    """SHA-256 of features.json."""
    return hashlib.sha256((dataset_dir / "features.json").read_bytes()).hexdigest()


def write_index(
    dataset_dir: Path, out: Path, *, verify_crc: bool, progress: Progress | None = None
) -> None:
    """Scan the shards and write the index to `out`, whole or not at all."""
    leaves = read_features(dataset_dir)
    info = read_dataset_info(dataset_dir)
    shards = shard_table(dataset_dir, info)
    total = sum(shard["size"] for shard in shards)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise DatasetError(
            f"cannot write an index to {out} ({error.strerror}); pass a writable directory as out="
        ) from None
    try:
        steps = _Writer(scratch / STEPS, [leaf for leaf in leaves if leaf.level == "step"])
        episodes = _Writer(scratch / EPISODES, [leaf for leaf in leaves if leaf.level != "step"])
        numbers = [(n, split.name) for split in info.splits for n in split.lengths]
        done = 0
        for shard_id, (shard, (expected, split)) in enumerate(zip(shards, numbers, strict=True)):
            count = _scan(
                dataset_dir / shard["name"], shard_id, leaves, steps, episodes, verify_crc
            )
            if count != expected:
                raise DatasetError(
                    f"{dataset_dir / shard['name']} holds {count} episodes, dataset_info.json says "
                    f"{expected} (split {split!r}); fetch the dataset again"
                )
            done += shard["size"]
            if progress:
                progress(done, total)
        steps.close()
        episodes.close()
        meta = {
            "format_version": FORMAT_VERSION,
            "dataset": info.name,
            "version": info.version,
            "dataset_dir": str(dataset_dir.resolve()),
            "num_steps": steps.rows,
            "num_episodes": episodes.rows,
            "crc_verified": verify_crc,
            "feature_hash": feature_hash(dataset_dir),
            "splits": {split.name: sum(split.lengths) for split in info.splits},
            "shards": shards,
        }
        (scratch / META).write_text(json.dumps(meta, indent=1))
        scratch.chmod(0o755)
        try:
            os.replace(scratch, out)  # noqa: PTH105
        except OSError:
            if not (out / META).exists():  # else another process was as quick
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scan(
    path: Path,
    shard_id: int,
    leaves: tuple[Leaf, ...],
    steps: _Writer,
    episodes: _Writer,
    verify_crc: bool,
) -> int:
    """Index the records of one shard; gives their number."""
    known = {key for leaf in leaves for key in leaf.wire_keys().values()}
    step_leaves = [leaf for leaf in leaves if leaf.level == "step"]
    episode_leaves = [leaf for leaf in leaves if leaf.level != "step"]
    count = 0
    for offset, data in read_records(path, verify_crc=verify_crc):
        where = f"{path}, record at byte {offset}"
        try:
            features = parse_example(data)
        except DatasetError as error:
            raise DatasetError(f"{where}: {error}; this is no RLDS file") from None
        if features.keys() != known:
            extra, missing = sorted(features.keys() - known), sorted(known - features.keys())
            raise DatasetError(
                f"{where}: the record and features.json disagree: not in features.json {extra}, "
                f"not in the record {missing}; fetch features.json and the shards of one version"
            )
        leaf = leaves[0]
        try:
            length = None
            for leaf in step_leaves:
                found = col.count_steps(leaf, features)
                if length is not None and found is not None and found != length:
                    raise DatasetError(f"{found} steps, {step_leaves[0].path!r} has {length}")
                length = found if length is None else length
            length = length or 0
            first = steps.rows
            step_columns: dict[str, pa.Array] = {}
            for leaf in step_leaves:
                step_columns |= col.to_arrow(leaf, features, length, data, offset)
            own = {"shard": shard_id, "offset": offset, "length": len(data)}
            own |= {"first_step": first, "num_steps": length}
            episode_columns = {f"@{k}": pa.array([v], pa.int64()) for k, v in own.items()}
            for leaf in episode_leaves:
                episode_columns |= col.to_arrow(leaf, features, 1, data, offset)
        except DatasetError as error:
            raise DatasetError(f"{where}, feature {leaf.wire!r}: {error}") from None
        steps.append(step_columns, length)
        episodes.append(episode_columns, 1)
        count += 1
    steps.flush()
    return count


class _Writer:
    """Collects columns and writes them as record batches of whole episodes."""

    def __init__(self, path: Path, leaves: list[Leaf]) -> None:
        self.rows = 0
        self._path = path
        self._names = [leaf.path for leaf in leaves]
        self._pending: list[dict[str, pa.Array]] = []
        self._pending_rows = 0
        self._writer: pa.RecordBatchFileWriter | None = None

    def append(self, columns: dict[str, pa.Array], rows: int) -> None:
        self._pending.append(columns)
        self._pending_rows += rows
        self.rows += rows
        if self._pending_rows >= BATCH_STEPS:
            self.flush()

    def flush(self) -> None:
        if not self._pending:
            return
        names = list(self._pending[0])
        arrays = [pa.concat_arrays([part[name] for part in self._pending]) for name in names]
        batch = pa.record_batch(arrays, names=names)
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._path, batch.schema)
        self._writer.write_batch(batch)
        self._pending, self._pending_rows = [], 0

    def close(self) -> None:
        self.flush()
        if self._writer is None:
            raise DatasetError("the dataset has no episodes, so there is nothing to index")
        self._writer.close()
