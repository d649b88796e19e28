"""Many shards at once: processes for files of this machine, threads for files of a server.

A process that scans shards: `python -m spatialvla_ft.data.rlds.parallel FOLDER`.

Reads a task per line from standard input and answers in lines of JSON: `ready` once, `advance`
while it scans, then `report` or `error`. A program of its own rather than multiprocessing, since it
must not import the caller's main module, nor torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.features import Leaf
from spatialvla_ft.data.rlds.info import read_features
from spatialvla_ft.data.rlds.places import LocalStore, Store
from spatialvla_ft.data.rlds.scan import Advance, Report, Task, scan_shard
from spatialvla_ft.processes import ChildError, how_it_ended


class ScanProcess:
    """A worker process, seen from the one that gives it shards of `folder` to scan."""

    def __init__(self, folder: Path) -> None:
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        light = {"SPATIALVLA_FT_LIGHT": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._state = threading.Lock()
        self._ready = self._cancelled = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "spatialvla_ft.data.rlds.parallel", str(folder.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **light},
        )

    def wait_until_ready(self) -> bool:
        """Wait until the process takes tasks; False if `cancel_start` was faster.

        Raises:
            ChildError: the process ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        with self._state:
            if self._cancelled:
                return False
            self._ready = bool(line)
        if not line:
            raise self._ended("was to scan")
        return True

    def cancel_start(self) -> None:
        """End the process if it is not ready yet."""
        with self._state:
            if not self._ready:
                self._cancelled = True
                self._process.kill()

    def _ended(self, what: str) -> ChildError:
        how = how_it_ended(self._process.wait())
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace")[-2000:]
        return ChildError(
            f"the process that {what} ended with {how}; with workers=1 the scan runs in this "
            f"process alone. It said:\n{tail}"
        )

    def scan(self, task: Task, advance: Advance) -> Report:
        """Have a shard scanned; raises what `scan_shard` would raise."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended; its output says so below
            self._process.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            kind, value = json.loads(line)
            if kind == "advance":
                advance(value)
            elif kind == "error":
                raise DatasetError(value)
            else:
                return Report(**value)
        raise self._ended(f"scanned {task.name}")

    def __enter__(self) -> ScanProcess:
        """The process itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def main(folder: Path) -> None:
    """Scan shards until standard input ends."""
    store = LocalStore(folder)
    leaves = read_features(store, unread=[])

    def say(kind: str, value: Any) -> None:
        sys.stdout.write(json.dumps([kind, value]) + "\n")
        sys.stdout.flush()

    say("ready", None)
    for line in sys.stdin:
        task = Task(**json.loads(line))
        try:
            report = scan_shard(store, leaves, task, lambda count: say("advance", count))
        except DatasetError as error:
            say("error", str(error))
        else:
            say("report", asdict(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

BYTES_PER_PROCESS = 4 << 30
"""A process that has less to scan is not worth its start, a second or more of imports."""

REMOTE_SHARDS = 8

Scan = Callable[[Task, Advance], Report]


def choose_workers(store: Store, tasks: list[Task], workers: int | None) -> int:
    """How many shards to scan at once.

    Raises:
        DatasetError: `workers` is below 1.
    """
    if workers is not None and workers < 1:
        raise DatasetError(f"workers must be at least 1, got {workers}; leave it out for all cores")
    if workers is None:
        total = sum(task.size for task in tasks)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(cores or 1, 1 + total // BYTES_PER_PROCESS) if store.local else REMOTE_SHARDS
    return max(1, min(workers, len(tasks)))


def scan_shards(
    store: Store,
    leaves: tuple[Leaf, ...],
    tasks: list[Task],
    *,
    workers: int,
    advance: Advance | None = None,
) -> list[Report]:
    """Scan all shards; the reports are in the order of the tasks.

    Raises:
        DatasetError: of the first task, in their order, that fails.
    """
    told = threading.Lock()

    def tell(count: int) -> None:
        if advance:
            with told:
                advance(count)

    waiting = iter(enumerate(tasks))
    reports: dict[int, Report] = {}
    errors: dict[int, BaseException] = {}
    turn = threading.Lock()

    def work(scan: Scan) -> None:
        while True:
            with turn:  # no new shard after an error; those before it are being scanned
                number, task = (-1, None) if errors else next(waiting, (-1, None))
            if task is None:
                return
            try:
                reports[number] = scan(task, tell)
            except BaseException as error:
                errors[number] = error
                return

    def here(task: Task, advance: Advance) -> Report:
        return scan_shard(store, leaves, task, advance)

    def elsewhere(process: ScanProcess) -> None:
        try:
            if process.wait_until_ready():
                work(process.scan)
        except BaseException as error:
            errors[len(tasks)] = error

    # This process scans too, so that nothing waits for the others to start.
    with ExitStack() as stack:
        processes = []
        if store.local:
            folder = cast(LocalStore, store).folder
            processes = [stack.enter_context(ScanProcess(folder)) for _ in range(workers - 1)]
            threads = [threading.Thread(target=elsewhere, args=(one,)) for one in processes]
        else:
            threads = [threading.Thread(target=work, args=(here,)) for _ in range(workers - 1)]
        for thread in threads:
            thread.start()
        work(here)
        for process in processes:
            process.cancel_start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[min(errors)]
    return [reports[i] for i in range(len(tasks))]
