"""The frame index: any encoded image of an RLDS dataset by one read, any column by mmap."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError, no_feature
from spatialvla_ft.data.rlds import build
from spatialvla_ft.data.rlds import columns as col
from spatialvla_ft.data.rlds.features import Leaf, Unread
from spatialvla_ft.data.rlds.info import (
    feature_hash,
    kept_shards,
    read_dataset_info,
    read_features,
    shard_table,
)
from spatialvla_ft.data.rlds.places import LocalStore, Store, cache_folder, open_store
from spatialvla_ft.data.rlds.records import RecordCache
from spatialvla_ft.data.rlds.table import Table, from_arrow

INDEX_DIR = "frame_index"

logger = logging.getLogger(__name__)


def build_index(
    dataset_dir: str | Path,
    *,
    out: str | Path | None = None,
    verify_crc: bool = True,
    rebuild: bool = False,
    progress: build.Progress | None = None,
    workers: int | None = None,
    on_bad_record: Literal["fail", "skip"] = "fail",
    on_bad_column: Literal["fail", "skip"] = "fail",
    cache_bytes: int = 0,
) -> FrameIndex:
    """Index an RLDS dataset, or open its index if there is a fresh one.

    Where shards were added to a dataset, only those are scanned. The result does not depend on the
    number of workers, nor on whether the index grew or was built at once.

    Args:
        dataset_dir: version directory of the dataset, e.g. `bridge_orig/1.0.0`, or the URL of one
            that fsspec can read, e.g. `gs://bucket/bridge_orig/1.0.0`.
        out: directory of the index; `<dataset_dir>/frame_index` if not given, for a URL a directory
            below `$SPATIALVLA_FT_CACHE` (`~/.cache/spatialvla-ft`).
        verify_crc: check the CRC of every TFRecord while scanning. ArrayRecord checks itself.
        rebuild: replace an index that is already there.
        progress: called with (bytes done, bytes in all), of the shards that are scanned.
        workers: shards to scan at once; as many as the machine has cores if not given.
        on_bad_record: `skip` leaves damaged records out, says at the end how many, and notes them
            in the index; opening the dataset warns from then on.
        on_bad_column: `skip` leaves out columns that are of no supported kind, or that a record
            has not as features.json says; what reads one is refused from then on, with the reason.
            Opening a dataset indexes it so.
        cache_bytes: of a URL, memory for blocks around the frames that were read.

    Raises:
        DatasetError: no RLDS dataset, a damaged shard, an unsupported feature, a stale index, or
            no place to write to.
    """
    if on_bad_record not in ("fail", "skip"):
        raise DatasetError(f"on_bad_record must be 'fail' or 'skip', got {on_bad_record!r}")
    if on_bad_column not in ("fail", "skip"):
        raise DatasetError(f"on_bad_column must be 'fail' or 'skip', got {on_bad_column!r}")
    store = open_store(dataset_dir, cache_bytes=cache_bytes)
    place = Path(out) if out is not None else default_place(store)
    if place.is_file() or (
        place.exists() and not (place / build.META).exists() and any(place.iterdir())
    ):
        raise DatasetError(f"{place} exists and is no frame index; pass another directory as out=")
    kept = None
    if not rebuild and (place / build.META).exists():
        meta = json.loads((place / build.META).read_text())
        shards = shard_table(store, read_dataset_info(store))
        found = kept_shards(meta, shards, feature_hash(store), store.url, _cure(store, place))
        if len(found) == len(shards):
            return FrameIndex(place, dataset_dir=dataset_dir, cache_bytes=cache_bytes)
        logger.info(
            "%s: %d shards were added to %d, scanning those", store.url, len(shards), len(found)
        )
        kept = build.Kept(place, meta, found)
    build.write_index(
        store,
        place,
        verify_crc=verify_crc,
        skip=on_bad_record == "skip",
        skip_columns=on_bad_column == "skip",
        workers=workers,
        progress=progress,
        kept=kept,
    )
    return FrameIndex(place, dataset_dir=dataset_dir, cache_bytes=cache_bytes)


def default_place(store: Store) -> Path:
    """Where the index of a dataset lies if nothing else is said."""
    if isinstance(store, LocalStore):
        return store.folder / INDEX_DIR
    return cache_folder() / INDEX_DIR / hashlib.sha256(store.url.encode()).hexdigest()[:24]


def _cure(store: Store, place: Path) -> str:
    return (
        f"build the index anew: spatialvla-ft data index {store.url} --rebuild (it lies in {place})"
    )


class FrameIndex:
    """An opened index. Files are opened per process, so that it may cross fork and spawn.

    Episodes are numbered over all splits, `train` first; `splits` gives the range of each. Keys
    are dotted below a step (`observation.image`); the record's own names
    (`steps/observation/image`) are understood too. A feature of the episode that is called as one
    of its steps has `episode/` in front. `unread` holds the columns that are left out, with why.

    Args:
        path: directory of the index.
        dataset_dir: where the shards are now, a path or URL; what the index remembers if not given.
        cache_bytes: of a URL, memory for blocks around the frames that were read.

    Raises:
        DatasetError: no index, or one that does not fit the dataset any more.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        dataset_dir: str | Path | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.path = Path(path)
        try:
            self._meta_text = (self.path / build.META).read_text()
        except FileNotFoundError:
            raise DatasetError(
                f"{self.path} is no frame index; make one: spatialvla-ft data index DATASET_DIR"
            ) from None
        meta = json.loads(self._meta_text)
        if dataset_dir is None:
            beside = self.path.name == INDEX_DIR and (self.path.parent / "features.json").exists()
            dataset_dir = self.path.parent if beside else meta["dataset_dir"]
        self.store = open_store(dataset_dir, cache_bytes=cache_bytes)
        self._check_fresh(meta)
        self.name: str = meta["dataset"]
        self.version: str = meta["version"]
        self.num_steps: int = meta["num_steps"]
        self.num_episodes: int = meta["num_episodes"]
        self.crc_verified: bool = meta["crc_verified"]
        self.feature_hash: str = meta["feature_hash"]
        self.file_format: str = meta["file_format"]
        self.incomplete: str = build.incomplete(meta)
        self._shards: list[str] = [shard["name"] for shard in meta["shards"]]
        self._meta_shards = meta["shards"]
        self._records: RecordCache | None = None
        if self.file_format == "array_record":
            self._records = RecordCache(self.store)
        self.splits: dict[str, range] = {}
        start = 0
        for split, count in meta["splits"].items():
            self.splits[split] = range(start, start + count)
            start += count
        unsupported: list[Unread] = []
        leaves = read_features(self.store, unread=unsupported)
        self.unread: dict[str, str] = build.unread_columns(meta, unsupported)
        self.leaves: dict[str, Leaf] = {}
        for leaf in leaves:  # steps first
            if leaf.path not in self.unread:
                key = leaf.path if leaf.path not in self.leaves else f"episode/{leaf.path}"
                self.leaves[key] = leaf
        self._pid = -1

    @property
    def dataset_dir(self) -> Path:
        """Directory of the dataset.

        Raises:
            DatasetError: the dataset lies at a URL; `store` reads its files.
        """
        if not isinstance(self.store, LocalStore):
            raise DatasetError(f"{self.store.url} is no directory of this machine")
        return self.store.folder

    @property
    def num_skipped(self) -> int:
        """Episodes that dataset_info.json counts and the index leaves out."""
        return sum(shard["expected"] - shard["episodes"] for shard in self._meta_shards)

    @property
    def skipped(self) -> dict[str, list[tuple[int, str]]]:
        """What was left out: shard -> (byte or, in ArrayRecord, record number; reason)."""
        lost = {shard["name"]: build.lost(shard) for shard in self._meta_shards}
        return {name: found for name, found in lost.items() if found}

    def __repr__(self) -> str:
        return (
            f"FrameIndex({self.name}/{self.version}: {self.num_steps} steps, "
            f"{self.num_episodes} episodes, splits {list(self.splits)})"
        )

    def __getstate__(self) -> dict[str, Any]:
        mapped = ("_steps", "_episodes")
        return {k: v for k, v in self.__dict__.items() if k not in mapped} | {"_pid": -1}

    def _check_fresh(self, meta: dict[str, Any]) -> None:
        cure = _cure(self.store, self.path)
        shards = shard_table(self.store, read_dataset_info(self.store))
        kept = kept_shards(meta, shards, feature_hash(self.store), self.store.url, cure)
        if len(kept) != len(shards):
            added = next(shard["name"] for i, shard in enumerate(shards) if i not in kept)
            raise DatasetError(
                f"stale index: {len(kept)} shards were indexed, the dataset now has {len(shards)}; "
                f"the first new one is {added}; index those: spatialvla-ft data index "
                f"{self.store.url} --out {self.path}"
            )

    @cached_property
    def content_hash(self) -> str:
        """Changes whenever the data may have changed: shard names, sizes, times and features."""
        text = json.dumps([self.name, self.version, self.feature_hash, self._meta_shards])
        return hashlib.sha256(text.encode()).hexdigest()

    def _open(self) -> None:
        """Map the tables and forget files opened by another process."""
        if self._pid == os.getpid():
            return
        self._steps = Table(self.path / build.STEPS)
        self._episodes = Table(self.path / build.EPISODES)
        if (self.path / build.META).read_text() != self._meta_text:
            raise DatasetError(
                f"the index {self.path} was built anew after it had been opened; open it again"
            )
        self._pid = os.getpid()

    @property
    def episode_lengths(self) -> NDArray[np.int64]:
        """(num_episodes,) steps of every episode; read from the mapped file each time."""
        self._open()
        return self._episodes.numbers("@num_steps")

    def _of(self, episode: int, what: str) -> int:
        """`shard`, `offset`, `first_step` or `num_steps` of an episode, from the mapped file."""
        return self._episodes.number(episode, f"@{what}")

    def num_steps_of(self, episode: int) -> int:
        """Steps of an episode."""
        self._check_episode(episode)
        return self._of(episode, "num_steps")

    def leaf(self, key: str) -> Leaf:
        """The feature called `key`; DatasetError with the names there are."""
        leaf = self.leaves.get(key)
        if leaf is None:
            wire = key.removeprefix("steps/")
            found = [
                leaf
                for leaf in self.leaves.values()
                if key == leaf.wire or wire == leaf.wire.removeprefix("steps/")
            ]
            if not found:
                self._refuse_unread(key)
                raise no_feature(self.name, key, self.leaves)
            leaf = found[0]
        return leaf

    def _refuse_unread(self, key: str) -> None:
        """DatasetError if `key` is a column that was left out."""
        dotted = key.removeprefix("steps/").replace("/", ".")
        reason = self.unread.get(key) or self.unread.get(dotted)
        if reason is not None:
            raise DatasetError(
                f"{self.name} has column {key!r}, but it cannot be read: {reason}. Name another "
                "one, or fetch the dataset again"
            )

    @property
    def image_keys(self) -> tuple[str, ...]:
        """Names of the encoded images of a step."""
        leaves = self.leaves.values()
        return tuple(leaf.path for leaf in leaves if leaf.kind == "image" and leaf.level == "step")

    def image_bytes(self, episode: int, step: int, key: str) -> Any:
        """Encoded image as the dataset stores it; b"" where there is none.

        A list (of lists) of them if the feature is a sequence of images.
        """
        leaf = self.leaf(key)
        if leaf.kind != "image":
            raise DatasetError(f"{key!r} of {self.name} is no image; read it with column()")
        self._check_episode(episode)
        if leaf.level == "step":
            self._check_step(episode, step)
            table, row = self._steps, self._of(episode, "first_step") + step
        else:
            table, row = self._episodes, episode
        names = leaf.path + col.OFFSET, leaf.path + col.LENGTH
        if not leaf.ragged:
            return self._read(episode, *(table.number(row, name) for name in names))
        batch, local = table.locate(row)
        return self._read(episode, *(batch.column(name)[local].as_py() for name in names))

    def _read(self, episode: int, offset: Any, size: Any) -> Any:
        if isinstance(offset, list):
            return [self._read(episode, o, n) for o, n in zip(offset, size, strict=True)]
        if size == 0:
            return b""
        name = self._shards[self._of(episode, "shard")]
        if self._records is not None:
            record = self._records.read(name, self._of(episode, "offset"))
            data = record[offset : offset + size]
        else:
            data = self.store.read_range(name, offset, size)
        if len(data) != size:
            raise DatasetError(
                f"{self.store.path(name)}: {len(data)} of {size} bytes at byte {offset}; the shard "
                "changed after it was opened"
            )
        return data

    def column(self, key: str, episode: int, steps: range | None = None) -> Any:
        """All values of a feature in an episode, or those of some steps.

        Returns:
            (steps, *shape) array in the dtype that the dataset declares, bytes as an object array;
            a list with one entry per step where the length varies. The value alone for a feature
            of the episode (`episode_metadata.seed`), None if it is optional and this one lacks it.
        """
        return self.trajectory(episode, (key,), steps)[key]

    def value(self, key: str, episode: int, step: int) -> Any:
        """A feature at one step; of an episode's feature, its value."""
        leaf = self.leaf(key)
        self._check_episode(episode)
        if leaf.level == "episode":
            return self._rows(leaf, self._episodes.locate(episode), 1)[0]
        self._check_step(episode, step)
        first = self._of(episode, "first_step")
        return self._rows(leaf, self._steps.locate(first + step), 1)[0]

    def _rows(self, leaf: Leaf, place: tuple[pa.RecordBatch, int], count: int) -> Any:
        if leaf.kind == "image":
            raise DatasetError(
                f"{leaf.path!r} of {self.name} is an image; read it with image_bytes()"
            )
        batch, local = place
        has = batch.schema.get_field_index(leaf.path + col.PRESENT)
        if has >= 0 and not batch.column(has)[local].as_py():
            return [None]
        columns = {}
        for name in (leaf.path, leaf.path + col.SHAPE):
            at = batch.schema.get_field_index(name)
            if at >= 0:
                columns[name] = batch.column(at).slice(local, count)
        try:
            return from_arrow(leaf, columns)
        except (ValueError, zlib.error) as error:  # what an encoded tensor holds shows only now
            raise DatasetError(
                f"{self.name}: {leaf.path!r} is damaged, {error}; fetch the shard again, or leave "
                "the episode out"
            ) from None

    def trajectory(
        self, episode: int, keys: tuple[str, ...] | None = None, steps: range | None = None
    ) -> dict[str, Any]:
        """Columns of an episode by dotted name, see `column`.

        Args:
            episode: its number over all splits.
            keys: which; all but images unless given.
            steps: of these steps only.
        """
        if keys is None:
            leaves = self.leaves.values()
            keys = tuple(x.path for x in leaves if x.level == "step" and x.kind != "image")
        named = {key: self.leaf(key) for key in keys}
        self._check_episode(episode)
        first, count = self._of(episode, "first_step"), self._of(episode, "num_steps")
        if steps is not None:
            if not 0 <= steps.start <= steps.stop <= count or steps.step != 1:
                raise IndexError(
                    f"steps {steps} of episode {episode} of {self.name}: it has {count} steps"
                )
            first, count = first + steps.start, len(steps)
        of_steps = self._steps.locate(first)
        return {
            key: self._rows(leaf, of_steps, count)
            if leaf.level == "step"
            else self._rows(leaf, self._episodes.locate(episode), 1)[0]
            for key, leaf in named.items()
        }

    def _check_episode(self, episode: int) -> None:
        self._open()
        if not 0 <= episode < self.num_episodes:
            raise IndexError(
                f"episode {episode} of {self.name}: it has {self.num_episodes} episodes"
            )

    def _check_step(self, episode: int, step: int) -> None:
        length = self._of(episode, "num_steps")
        if not 0 <= step < length:
            raise IndexError(
                f"step {step} of episode {episode} of {self.name}: it has {length} steps"
            )
