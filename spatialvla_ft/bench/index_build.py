"""How fast the frame index is built, beside the floor: reading the same bytes and their CRC.

    measure_index_build(Path("scratch"), mebibytes=1024)

The files were written just before, so they come from the page cache; the figures are those of the
processor, not of a disk. Each is the best of some repetitions: what other work takes from a machine
only ever makes them worse. `cpu_gib_per_s` counts the time of this process alone on a processor,
and is the figure to compare on a machine that does other work.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from ..data.rlds.index import build_index
from .small_rlds import write_rlds

CHUNK = 1 << 20


def read_and_crc(paths: list[Path], *, crc: bool) -> None:
    """Read files from start to end into one buffer, with or without a CRC over the bytes."""
    buffer = bytearray(CHUNK)
    array = np.frombuffer(buffer, np.uint8)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            value = 0
            while count := file.readinto(buffer):
                if crc:
                    value = google_crc32c.extend(value, array[:count])


def best_times(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """(wall, processor) seconds of the best of some runs; processor time is of this process."""
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(wall for wall, _ in times), min(cpu for _, cpu in times)


def peak_mebibytes() -> float | None:
    """Largest resident memory of this process so far; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure_index_build(
    folder: str | Path,
    *,
    mebibytes: int = 1024,
    shards: int = 8,
    repeats: int = 3,
    workers: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write a dataset below `folder`, build its index in several ways, delete it.

    Args:
        folder: where to work; needs `mebibytes` of room.
        mebibytes: size of the dataset.
        shards: files of the dataset.
        repeats: runs of each kind, of which the best counts.
        workers: the larger number of processes to time; all cores if not given.
        seed: of the contents.

    Returns:
        Size and, for each way, wall seconds, GiB/s and GiB/s of this process's processor time
        (`floor_*`: read alone and with CRC; `index_*`: one process with and without CRC, several
        with CRC, including the start of the processes), and peak resident memory in MiB.
    """
    workers = workers or os.cpu_count() or 1
    place = Path(folder)
    directory = write_rlds(place, mebibytes=mebibytes, shards=shards, seed=seed)
    try:
        paths = sorted(directory.glob("*.tfrecord-*"))
        size = sum(path.stat().st_size for path in paths)

        def index(*, crc: bool, count: int) -> None:
            out = place / "index"
            build_index(directory, out=out, rebuild=True, verify_crc=crc, workers=count)

        ways: dict[str, Callable[[], None]] = {
            "floor_read": lambda: read_and_crc(paths, crc=False),
            "floor_read_crc": lambda: read_and_crc(paths, crc=True),
            "index_1_worker": lambda: index(crc=True, count=1),
            "index_1_worker_no_crc": lambda: index(crc=False, count=1),
        }
        if workers > 1:
            ways[f"index_{workers}_workers"] = lambda: index(crc=True, count=workers)
        result: dict[str, Any] = {"bytes": size, "shards": len(paths), "cores": os.cpu_count()}
        for name, run in ways.items():
            wall, cpu = best_times(run, repeats)
            entry = {"seconds": wall, "gib_per_s": size / wall / 2**30}
            if not name.endswith("_workers"):
                entry["cpu_gib_per_s"] = size / cpu / 2**30
            result[name] = entry
        result["peak_mib"] = peak_mebibytes()
        steps = (place / "index" / "steps.arrow").stat().st_size
        result["index_bytes"] = steps + (place / "index" / "episodes.arrow").stat().st_size
        return result
    finally:
        shutil.rmtree(directory.parent, ignore_errors=True)
        shutil.rmtree(place / "index", ignore_errors=True)
