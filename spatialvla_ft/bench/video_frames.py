"""A program of its own that reads LeRobot videos as training does.

    python -m spatialvla_ft.bench.video_frames

Each line on standard input is JSON: the folder of a dataset, workers, batches, and the samples
per second of a pretended step, or null for none. Each answer is one too: samples, seconds of
processor time, seconds of wall, and the share of them spent waiting for batches.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..data.samples import read_in_disk_order
from .data_frames import BATCH, SIZE, Endless, cpu_seconds

COPIES = 16
"""Times that a dataset is opened: from a small one alone, a batch would find its groups of frames
shared far more often than from a real one."""
AHEAD = 2
"""Batches that a worker fetches ahead."""


class Squares(Dataset[dict[str, Any]]):
    """(dataset, frame) to a picture of the model's size with its action chunk, as in training."""

    def __init__(self, datasets: list[Any]) -> None:
        self.datasets = datasets

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """One frame, read, decoded and resized."""
        from spatialvla_ft.data.pictures import fit_step

        dataset, frame = place
        sample = fit_step(self.datasets[dataset][frame], SIZE, "fast")
        return {
            "image": torch.from_numpy(np.require(sample.images["primary"], requirements="W")),
            "action": np.asarray(sample.actions),
        }

    def __getitems__(self, places: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """The samples of a batch, read in the order of their files."""
        return read_in_disk_order(self.__getitem__, places)


@contextmanager
def stream(folder: str, workers: int, pause: float) -> Iterator[tuple[Any, list[int]]]:
    """(an endless loader in its stride, its processes), which end with it.

    Args:
        folder: of the dataset.
        workers: processes that read.
        pause: seconds of a pretended step.
    """
    from spatialvla_ft.data.opening import open_dataset

    datasets = [open_dataset(folder, card=None, horizon=4, depth=False) for _ in range(COPIES)]
    batches = iter(
        DataLoader(
            Squares(datasets),
            batch_sampler=Endless(datasets),  # type: ignore[arg-type]
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
        )
    )
    # The first of every worker pay for its start, those fetched ahead would count as free.
    for _ in range(max(1, AHEAD * workers)):
        next(batches)
        time.sleep(pause)
    processes = getattr(batches, "_workers", [])
    try:
        yield batches, [os.getpid(), *(process.pid for process in processes)]
    finally:
        if workers:
            batches._shutdown_workers()


def read(request: dict[str, Any]) -> dict[str, float]:
    """Some batches, each followed by a step that takes its time and no processor."""
    pause = BATCH / request["rate"] if request["rate"] else 0.0
    with stream(request["folder"], request["workers"], pause) as (batches, pids):
        begin, cpu, waited, samples = time.perf_counter(), cpu_seconds(pids), 0.0, 0
        for _ in range(request["batches"]):
            asked = time.perf_counter()
            samples += len(next(batches)["image"])
            waited += time.perf_counter() - asked
            time.sleep(pause)
        wall = time.perf_counter() - begin
        used = cpu_seconds(pids) - cpu
    return {"samples": samples, "cpu": used, "wall": wall, "waited": waited / wall}


def main() -> None:
    """Answer requests until standard input ends."""
    torch.set_num_threads(1)
    # The warning of far key frames is what is measured here.
    logging.getLogger("spatialvla_ft.data.lerobot.pace").setLevel(logging.ERROR)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(read(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
