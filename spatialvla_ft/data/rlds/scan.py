"""One shard -> Arrow files of its steps and of its episodes.

A unit of work that runs in this process, in a thread or in a process of its own: it takes a `Task`
and gives a `Report`, both of which are plain values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.columns import Column, Features
from spatialvla_ft.data.rlds.columns import Store as Take
from spatialvla_ft.data.rlds.features import Leaf
from spatialvla_ft.data.rlds.places import Store
from spatialvla_ft.data.rlds.records import (
    HEADER_BYTES,
    Bad,
    BrokenShardError,
    read_array_records,
    read_records,
)
from spatialvla_ft.data.rlds.wire import Buffer, parse_example

BATCH_STEPS = 65_536
BATCH_BYTES = 32 << 20
ADVANCE_BYTES = 16 << 20
EPISODE_COLUMNS = ("shard", "offset", "length", "first_step", "num_steps")

Advance = Callable[[int], None]
"""Called with the number of bytes scanned since the last call."""


@dataclass(frozen=True)
class Task:
    """A shard to scan.

    Attributes:
        name: file of the shard.
        split: its split, for messages.
        size: bytes of the file.
        expected: number of episodes that dataset_info.json says it holds.
        file_format: `tfrecord` or `array_record`.
        stem: where to write: `<stem>.steps.arrow` and `<stem>.episodes.arrow`.
        verify_crc: check every record's CRC.
        skip: leave bad records out and report them, rather than raise.
        skip_columns: leave columns out that some record has not as features.json says.
    """

    name: str
    split: str
    size: int
    expected: int
    file_format: str
    stem: str
    verify_crc: bool
    skip: bool
    skip_columns: bool = False


@dataclass
class Report:
    """What a scan found.

    Attributes:
        steps, episodes: rows written.
        step_batches, episode_batches: record batches written.
        bad: (byte or record number, reason) of every record that was left out.
        broken: (byte, reason) where the rest of the shard was given up, or None.
        columns: of those that cannot be read, {path: (episodes, the first of them, reason)};
            episodes are counted from 0 in this shard.
        unknown: keys of records that are not in features.json.
    """

    steps: int = 0
    episodes: int = 0
    step_batches: int = 0
    episode_batches: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    broken: tuple[int, str] | None = None
    columns: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def scan_shard(
    store: Store, leaves: tuple[Leaf, ...], task: Task, advance: Advance | None = None
) -> Report:
    """Index the records of one shard.

    Raises:
        DatasetError: with file, offset and cure: a damaged or foreign file, records that do not fit
            features.json or their number in dataset_info.json. With `task.skip` only if there are
            more episodes than there should be.
    """
    path = store.path(task.name)
    report = Report()

    def bad(position: int, error: DatasetError) -> None:
        report.bad.append((position, str(error)))

    steps = _Part(f"{task.stem}.steps.arrow", [x for x in leaves if x.level == "step"])
    episodes = _Part(f"{task.stem}.episodes.arrow", [x for x in leaves if x.level != "step"])
    shard = _Shard(steps, episodes, report if task.skip_columns else None)
    position = told = 0
    on_bad = bad if task.skip else None
    try:
        if task.size == 0 and task.expected:
            raise BrokenShardError(
                f"{path} is empty at byte 0, dataset_info.json says that it holds {task.expected} "
                "episodes; fetch the file again"
            )
        for position, base, data, size, end in _records(store, task, on_bad):
            try:
                shard.add(position, base, data, size)
            except DatasetError as error:
                # A TFRecord is known by the byte at which its framing starts.
                at = position - HEADER_BYTES if base else position
                what = "record at byte" if base else "record"
                full = DatasetError(f"{path}, {what} {at}: {error}")
                if not task.skip:
                    raise full from None
                bad(at, full)
            if advance and end - told >= ADVANCE_BYTES:
                advance(end - told)
                told = end
        _check_number(path, task, report, episodes.rows)
    except BrokenShardError as error:
        if not task.skip:
            raise
        report.broken = (error.offset if error.offset is not None else position, str(error))
    if advance:
        advance(task.size - told)
    steps.close(empty=steps.rows == 0 and episodes.rows > 0)
    episodes.close()
    report.steps, report.step_batches = steps.rows, steps.batches
    report.episodes, report.episode_batches = episodes.rows, episodes.batches
    return report


def _check_number(path: str, task: Task, report: Report, episodes: int) -> None:
    found = episodes + len(report.bad)
    if found == task.expected:
        return
    text = (
        f"{path} ends at byte {task.size} and holds {found} episodes, dataset_info.json says "
        f"{task.expected} (split {task.split!r}): it may have been swapped with another shard, or "
        "be of another version; fetch the dataset again"
    )
    if found > task.expected:
        raise DatasetError(text)
    raise BrokenShardError(text, task.size)


def _records(
    store: Store, task: Task, on_bad: Bad | None
) -> Iterator[tuple[int, int, Buffer, int, int]]:
    """(position, base of offsets, buffer, size of the record in it, bytes of the file so far)."""
    if task.file_format == "array_record":
        place = store.local_file(task.name)
        for number, data in read_array_records(place, on_bad=on_bad):
            yield number, 0, data, len(data), task.size * number // max(task.expected, 1)
        return
    with closing(store.open(task.name)) as file:
        records = read_records(
            file, task.size, store.path(task.name), verify_crc=task.verify_crc, on_bad=on_bad
        )
        for start, buffer, size in records:
            yield start, start, buffer, size, start + size


class _Shard:
    """Adds records to the two tables, each whole or not at all.

    Args:
        steps, episodes: the tables.
        report: takes the columns that cannot be read; without it they are errors.
    """

    def __init__(self, steps: _Part, episodes: _Part, report: Report | None = None) -> None:
        self._steps, self._episodes, self._report = steps, episodes, report
        columns = steps.columns + episodes.columns
        self._known = {k for c in columns for k in c.leaf.wire_keys().values()}
        optional = [c.leaf for c in episodes.columns if c.leaf.optional]
        self._optional = {key for leaf in optional for key in leaf.wire_keys().values()}

    def add(self, position: int, base: int, data: Buffer, size: int) -> None:
        """Add one record; DatasetError if it does not fit."""
        try:
            features = parse_example(data, size)
        except DatasetError as error:
            raise DatasetError(f"{error}; this is no RLDS file, fetch it again") from None
        if features.keys() != self._known:
            extra = sorted(features.keys() - self._known)
            missing = sorted(self._known - features.keys() - self._optional)
            if (extra or missing) and self._report is None:
                raise DatasetError(
                    f"the record and features.json disagree: not in features.json {extra}, not in "
                    f"the record {missing}; fetch features.json and the shards of one version"
                )
        if self._report is not None:
            self._add_readable(position, base, data, size, features, self._report)
            return
        takes: list[Take] = []
        column = (self._steps.columns or self._episodes.columns)[0]
        try:
            length = self._length(features)
            for table, rows in ((self._steps, length), (self._episodes, 1)):
                for column in table.columns:
                    takes.append(column.check(features, rows, data, base))
        except DatasetError as error:
            raise DatasetError(
                f"feature {column.leaf.wire!r}: {error}; fetch features.json and the shards of one "
                "version"
            ) from None
        self._take(takes, position, size, length)

    def _take(self, takes: list[Take], position: int, size: int, length: int) -> None:
        for take in takes:
            take()
        self._episodes.own.append((0, position, size, self._steps.rows, length))
        self._steps.advance(length)
        self._episodes.advance(1)

    def _add_readable(
        self, position: int, base: int, data: Buffer, size: int, features: Features, report: Report
    ) -> None:
        """Add the columns of a record that are as features.json says, and note the others."""
        length, reasons = self._agreed_length(features)
        takes: list[Take] = []
        for table, rows in ((self._steps, length), (self._episodes, 1)):
            for column in table.columns:
                path = column.leaf.path
                try:
                    if path in reasons:
                        raise DatasetError(reasons[path])
                    takes.append(column.check(features, rows, data, base))
                except DatasetError as error:
                    count, first, reason = report.columns.get(
                        path, (0, self._episodes.rows, str(error))
                    )
                    report.columns[path] = (count + 1, first, reason)
                    takes.append(column.check(column.blank(rows), rows, data, base))
        report.unknown = sorted({*report.unknown, *(features.keys() - self._known)})
        self._take(takes, position, size, length)

    def _agreed_length(self, features: Features) -> tuple[int, dict[str, str]]:
        """Number of steps that most columns have, and {path: why not} of those that have not.

        Raises:
            DatasetError: as many columns say another number.
        """
        counts: dict[str, int] = {}
        reasons: dict[str, str] = {}
        for column in self._steps.columns + self._episodes.columns:
            path = column.leaf.path
            if not column.is_in(features):
                reasons[path] = "the record lacks it"
            elif column.leaf.level == "step":
                try:
                    found = column.count_steps(features)
                except DatasetError as error:
                    reasons[path] = str(error)
                else:
                    counts |= {} if found is None else {path: found}
        votes = Counter(counts.values()).most_common(2)
        if not votes:
            raise DatasetError(
                "no column of the steps tells how many there are; fetch features.json and the "
                "shards of one version"
            )
        if len(votes) > 1 and votes[0][1] == votes[1][1]:
            a, b = (next(path for path, n in counts.items() if n == vote) for vote, _ in votes)
            raise DatasetError(
                f"{counts[b]} steps in {b!r}, {counts[a]} in {a!r}, and as many columns say the "
                "one as the other; fetch features.json and the shards of one version"
            )
        length = votes[0][0]
        reasons |= {
            path: f"it has {found} steps, others {length}"
            for path, found in counts.items()
            if found != length
        }
        return length, reasons

    def _length(self, features: Features) -> int:
        """Number of steps, on which all features must agree."""
        length = None
        for column in self._steps.columns:
            try:
                found = column.count_steps(features)
            except DatasetError as error:
                raise DatasetError(f"{error} ({column.leaf.wire!r})") from None
            if length is None:
                length, first = found, column.leaf.wire
            elif found is not None and found != length:
                raise DatasetError(f"{found} steps in {column.leaf.wire!r}, {length} in {first!r}")
        return length or 0


class _Part:
    """A table that is written in record batches of whole episodes."""

    def __init__(self, path: str, leaves: list[Leaf]) -> None:
        self.columns = [Column(leaf) for leaf in leaves]
        self.rows = self.batches = 0
        self.own: list[tuple[int, int, int, int, int]] = []
        self._path = Path(path)
        self._pending = 0
        self._writer: pa.RecordBatchFileWriter | None = None

    def advance(self, rows: int) -> None:
        """Count rows that the columns have taken; write when there are many."""
        self.rows += rows
        self._pending += rows
        if (
            self._pending >= BATCH_STEPS
            or sum(column.size for column in self.columns) >= BATCH_BYTES
        ):
            self._flush()

    def _flush(self, *, empty: bool = False) -> None:
        if not self._pending and not self.own and not empty:
            return
        arrays: dict[str, Any] = {}
        if self.own:
            table = np.array(self.own, np.int64)
            arrays |= {f"@{name}": pa.array(table[:, i]) for i, name in enumerate(EPISODE_COLUMNS)}
        for column in self.columns:
            arrays |= column.arrays()
        batch = pa.record_batch(list(arrays.values()), names=list(arrays))
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._path, batch.schema)
        self._writer.write_batch(batch)
        self.batches += 1
        self._pending, self.own = 0, []

    def close(self, *, empty: bool = False) -> None:
        """Write what is left; of nothing no file, or with `empty` one that has the columns."""
        self._flush(empty=empty)
        if self._writer is not None:
            self._writer.close()
