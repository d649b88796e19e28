"""A process that scans shards: `python -m spatialvla_ft.data.rlds.worker FOLDER`.

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
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.info import read_features
from spatialvla_ft.data.rlds.scan import Advance, Report, Task, scan_shard
from spatialvla_ft.data.rlds.store import LocalStore
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
            [sys.executable, "-m", "spatialvla_ft.data.rlds.worker", str(folder.resolve())],
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
