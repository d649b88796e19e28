"""From a dataset's shards to an index: scan what is new, keep what was there, join in order.

steps.arrow      a row per step; every record batch belongs to one shard
episodes.arrow   a row per episode: shard, place of the record, first step, number of steps
meta.json        what was indexed, to tell a stale index, and what was left out
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.features import Unread
from spatialvla_ft.data.rlds.info import (
    FORMAT_VERSION,
    WITHOUT_COLUMNS,
    feature_hash,
    read_dataset_info,
    read_features,
    shard_table,
)
from spatialvla_ft.data.rlds.parallel import choose_workers, scan_shards
from spatialvla_ft.data.rlds.places import Store
from spatialvla_ft.data.rlds.scan import Report, Task

META, STEPS, EPISODES = "meta.json", "steps.arrow", "episodes.arrow"

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) of the shards that are scanned; kept ones do not count."""


@dataclass(frozen=True)
class Kept:
    """An index some of whose shards need not be scanned again.

    Attributes:
        path: directory of the index.
        meta: its meta.json.
        shards: number of a shard now -> its number in that index.
    """

    path: Path
    meta: dict[str, Any]
    shards: dict[int, int]


def write_index(
    store: Store,
    out: Path,
    *,
    verify_crc: bool,
    skip: bool = False,
    skip_columns: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> None:
    """Scan the shards and write the index to `out`, whole or not at all.

    Args:
        store: the dataset.
        out: directory of the index; replaced if it is there.
        verify_crc: check the CRC of every record.
        skip: leave bad records out, count them and say so, rather than raise.
        skip_columns: leave columns out that cannot be read, and say so, rather than raise.
        workers: shards at once; None for what suits the machine.
        progress: told of the bytes scanned.
        kept: an index whose rows are taken over where its shards are unchanged.
    """
    unread: list[Unread] = []
    leaves = read_features(store, unread=unread if skip_columns else None)
    info = read_dataset_info(store)
    shards = shard_table(store, info)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise DatasetError(
            f"cannot write an index to {out} ({error.strerror}); pass a writable directory as out="
        ) from None
    try:
        old = kept.shards if kept else {}
        numbers = [i for i in range(len(shards)) if i not in old]
        tasks = [
            Task(
                name=shards[i]["name"],
                split=shards[i]["split"],
                size=shards[i]["size"],
                expected=shards[i]["expected"],
                file_format=info.file_format,
                stem=str(scratch.resolve() / f"part-{i:05d}"),
                verify_crc=verify_crc,
                skip=skip,
                skip_columns=skip_columns,
            )
            for i in numbers
        ]
        total = sum(task.size for task in tasks)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress(done, total)

        workers = choose_workers(store, tasks, workers)
        reports = dict(
            zip(
                numbers,
                scan_shards(store, leaves, tasks, workers=workers, advance=advance),
                strict=True,
            )
        )
        rows = _join(scratch, shards, reports, kept)
        splits = {
            split.name: sum(s["episodes"] for s in shards if s["split"] == split.name)
            for split in info.splits
        }
        if not sum(splits.values()):
            reasons = [reason for s in shards for _, reason in lost(s)]
            said = f"; the first of {len(reasons)} errors: {reasons[0]}" if reasons else ""
            raise DatasetError(f"{store.url} has no episodes, so there is nothing to index{said}")
        meta = {
            "format_version": WITHOUT_COLUMNS if _lacks_columns(shards) else FORMAT_VERSION,
            "dataset": info.name,
            "version": info.version,
            "file_format": info.file_format,
            "dataset_dir": str(Path(store.url).resolve()) if store.local else store.url,
            "num_steps": rows,
            "num_episodes": sum(splits.values()),
            "crc_verified": verify_crc and (not old or bool(kept and kept.meta["crc_verified"])),
            "feature_hash": feature_hash(store),
            "splits": splits,
            "shards": shards,
        }
        (scratch / META).write_text(json.dumps(meta, indent=1))
        scratch.chmod(0o755)
        _replace(scratch, out)
        if text := incomplete(meta):
            logger.warning("%s", text)
        gone = unread_columns(meta, unread)
        keys = sorted({key for shard in shards for key in shard.get("unknown", [])})
        wires = tuple(one.wire for one in unread)
        gone |= {
            key: f"{key!r} is not in features.json" for key in keys if not key.startswith(wires)
        }
        if gone:
            logger.warning(
                "%s: %d columns are left out, and a card that names one is refused: %s",
                info.name, len(gone), "; ".join(gone.values()),
            )  # fmt: skip
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(scratch: Path, out: Path) -> None:
    """Put the finished index in its place."""
    if out.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
        try:
            os.replace(out, aside)  # noqa: PTH105
        except FileNotFoundError:
            pass
        finally:
            try:
                os.replace(scratch, out)  # noqa: PTH105
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return
    try:
        os.replace(scratch, out)  # noqa: PTH105
    except OSError:
        if not (out / META).exists():  # else another process was as quick
            raise


def lost(shard: dict[str, Any]) -> list[tuple[int, str]]:
    """(byte or record number, reason) of everything that was left out of a shard."""
    found = [tuple(entry) for entry in shard.get("bad", [])]
    return found + ([tuple(shard["broken"])] if shard.get("broken") else [])


def _lacks_columns(shards: list[dict[str, Any]]) -> bool:
    return any(shard.get("columns") for shard in shards)


def unread_columns(meta: dict[str, Any], unread: Iterable[Unread]) -> dict[str, str]:
    """{path: why} of all columns that an index leaves out.

    Args:
        meta: of the index.
        unread: the features that are not supported at all.
    """
    found = {one.path: one.reason for one in unread}
    counts: dict[str, int] = {}
    first_episode = 0
    for shard in meta["shards"]:
        for path, (count, first, reason) in shard.get("columns", {}).items():
            counts[path] = counts.get(path, 0) + count
            found.setdefault(path, f"episode {first_episode + first}: {reason}")
        first_episode += shard["episodes"]
    told = {path: f"{path!r}: {why}" for path, why in found.items()}
    for path, count in counts.items():
        told[path] += f"; so in {count} of {meta['num_episodes']} episodes"
    return told


def incomplete(meta: dict[str, Any]) -> str:
    """What an index leaves out, in a sentence that names the cure; empty if nothing."""
    parts = []
    for shard in meta["shards"]:
        if shard["episodes"] != shard["expected"]:
            bad = len(shard.get("bad", []))
            rest = shard["expected"] - shard["episodes"] - bad
            what = [f"{bad} bad record{'s' * (bad > 1)}"] if bad else []
            if rest:
                what.append(f"{rest} episodes from byte {shard['broken'][0]} on")
            parts.append(f"{shard['name']}: {' and '.join(what)}")
    if not parts:
        return ""
    expected = sum(shard["expected"] for shard in meta["shards"])
    more = f" and {len(parts) - 3} more shards" if len(parts) > 3 else ""
    return (
        f"the index of {meta['dataset']} is incomplete: {expected - meta['num_episodes']} of "
        f"{expected} episodes were skipped ({'; '.join(parts[:3])}{more}); fetch these files again "
        f"and build the index anew: spatialvla-ft data index {meta['dataset_dir']} --rebuild"
    )


def _join(
    scratch: Path, shards: list[dict[str, Any]], reports: dict[int, Report], kept: Kept | None
) -> int:
    """Write the two tables in the order of the shards; completes `shards`; gives the steps."""
    steps, episodes = _Table(scratch / STEPS), _Table(scratch / EPISODES)
    first_step = 0
    before = _Before(kept) if kept else None
    for number, shard in enumerate(shards):
        if number in reports:
            report = reports[number]
            counts = {"steps": report.steps, "episodes": report.episodes}
            counts |= {"step_batches": report.step_batches}
            counts |= {"episode_batches": report.episode_batches}
            shard |= counts
            if report.bad:
                shard["bad"] = report.bad
            if report.broken:
                shard["broken"] = report.broken
            if report.columns:
                shard["columns"] = report.columns
            if report.unknown:
                shard["unknown"] = report.unknown
            stem = f"part-{number:05d}"
            parts = [scratch / f"{stem}.{name}" for name in (STEPS, EPISODES)]
            sources: list[Any] = [
                pa.ipc.open_file(pa.memory_map(str(p))) if p.exists() else None for p in parts
            ]
            ranges = [(report.step_batches, 0), (report.episode_batches, 0)]
        else:
            assert before is not None
            parts = []
            sources, ranges, known = before.shard(number)
            shard |= known
        for i in range(ranges[0][0]):
            steps.write(sources[0].get_batch(ranges[0][1] + i))
        base = None
        for i in range(ranges[1][0]):
            batch = sources[1].get_batch(ranges[1][1] + i)
            if base is None:
                base = first_step - batch.column("@first_step")[0].as_py()
            episodes.write(_renumber(batch, number, base))
        first_step += shard["steps"]
        sources = []
        for part in parts:
            part.unlink(missing_ok=True)
    steps.close()
    episodes.close()
    return first_step


def _renumber(batch: pa.RecordBatch, shard: int, base: int) -> pa.RecordBatch:
    """The batch as part of the whole table: number of the shard, first step plus `base`."""
    names = batch.schema.names
    first = batch.column("@first_step").to_numpy() + base
    batch = batch.set_column(names.index("@first_step"), "@first_step", pa.array(first))
    shards = pa.array([shard] * batch.num_rows, pa.int64())
    return batch.set_column(names.index("@shard"), "@shard", shards)


class _Before:
    """The rows of an earlier index, by shard."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        tables = [str(kept.path / name) for name in (STEPS, EPISODES)]
        self._tables = [pa.ipc.open_file(pa.memory_map(path)) for path in tables]
        self._starts = [(0, 0)]
        for shard in kept.meta["shards"]:
            step, episode = self._starts[-1]
            next_one = (step + shard["step_batches"], episode + shard["episode_batches"])
            self._starts.append(next_one)

    def shard(self, number: int) -> tuple[list[Any], list[tuple[int, int]], dict[str, Any]]:
        """Tables, (batches, first batch) in each, and what meta.json says of a shard's rows."""
        old = self._kept.shards[number]
        entry = self._kept.meta["shards"][old]
        counts = ("steps", "episodes", "step_batches", "episode_batches")
        names = (*counts, "bad", "broken", "columns", "unknown")
        step, episode = self._starts[old]
        ranges = [(entry["step_batches"], step), (entry["episode_batches"], episode)]
        return self._tables, ranges, {name: entry[name] for name in names if name in entry}


class _Table:
    """An Arrow file that takes its schema from the first batch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pa.RecordBatchFileWriter | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._path, batch.schema)
        self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._path, pa.schema([]))
        self._writer.close()
