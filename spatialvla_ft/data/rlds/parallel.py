"""Many shards at once: processes for files of this machine, threads for files of a server."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import cast

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.features import Leaf
from spatialvla_ft.data.rlds.places import LocalStore, Store
from spatialvla_ft.data.rlds.scan import Advance, Report, Task, scan_shard
from spatialvla_ft.data.rlds.scan_process import ScanProcess

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
