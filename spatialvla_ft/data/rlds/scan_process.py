"""A process that scans shards: `python -m spatialvla_ft.data.rlds.scan_process FOLDER`.

Reads a task per line from standard input and answers in lines of JSON: `ready` once, `advance`
while it scans, then `report` or `error`. A program of its own rather than multiprocessing, since it
must not import the caller's main module, nor torch.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.info import read_features
from spatialvla_ft.data.rlds.places import LocalStore
from spatialvla_ft.data.rlds.scan import Advance, Report, Task, scan_shard
from spatialvla_ft.processes import Child, ChildError, import_path


class ScanProcess(Child):
    """The process, seen from the one that gives it shards of `folder` to scan."""

    def __init__(self, folder: Path) -> None:
        light = {"SPATIALVLA_FT_LIGHT": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": import_path()}
        super().__init__(
            "spatialvla_ft.data.rlds.scan_process",
            [str(folder.resolve())],
            environment=light,
            role="the process that was to scan",
            cure="; with workers=1 the scan runs in this process alone. It said",
        )
        self._state = threading.Lock()
        self._ready = self._cancelled = False

    def wait_until_ready(self) -> bool:
        """Wait until the process takes tasks; False if `cancel_start` was faster.

        Raises:
            ChildError: the process ended instead.
        """
        try:
            self.receive()
        except ChildError:
            with self._state:
                if self._cancelled:
                    return False
            raise
        with self._state:
            self._ready = not self._cancelled
            return self._ready

    def cancel_start(self) -> None:
        """End the process if it is not ready yet."""
        with self._state:
            if not self._ready:
                self._cancelled = True
                self.kill()

    def scan(self, task: Task, advance: Advance) -> Report:
        """Have a shard scanned; raises what `scan_shard` would raise."""
        self.role = f"the process that scanned {task.name}"
        self.send(asdict(task))
        while True:
            kind, value = self.receive()
            if kind == "advance":
                advance(value)
            elif kind == "error":
                raise DatasetError(value)
            else:
                return Report(**value)


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
