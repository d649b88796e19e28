"""A program of its own, so that its memory and processor time are those of reading alone.

    python -m spatialvla_ft.bench.data_frames

Each line on standard input is JSON: folders of datasets, the image path, workers, frames. Each
answer is one too: frames, seconds of processor time of this process and its workers, seconds of
wall, and resident memory, shared pages counted once. It reads /proc, so it runs on Linux.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401  (part of the bare process)
from torch.utils.data import Dataset

SIZE, BATCH, HORIZON = 224, 32, 4


def memory_mib(pids: list[int], kind: str = "Pss") -> float:
    """Resident memory of processes together; a page that n of them share counts once.

    Kind "Pss_Anon" leaves out pages of files, which the system may take back at any time.
    """
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                total += int(line.split()[1])
    return total / 1024


class Squares(Dataset[dict[str, Any]]):
    """(dataset, frame) to a picture of the model's size with its K, action chunk and words."""

    def __init__(self, datasets: list[Any], path: str) -> None:
        self.datasets, self.path = datasets, path

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """One frame, read, decoded and resized."""
        from spatialvla_ft.data.pictures import fit_step

        dataset, frame = place
        sample = fit_step(self.datasets[dataset][frame], SIZE, self.path)
        return {
            "image": torch.from_numpy(np.require(sample.images["primary"], requirements="W")),
            "intrinsics": sample.intrinsics["primary"],
            "action": np.asarray(sample.actions),
            "text": sample.instruction,
        }


def together(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of `Squares`."""
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "intrinsics": np.stack([sample["intrinsics"] for sample in samples]),
        "action": np.stack([sample["action"] for sample in samples]),
        "text": [sample["text"] for sample in samples],
    }


@cache
def opened(folder: str) -> Any:
    """A dataset, indexed if it is not yet."""
    from spatialvla_ft.data.opening import open_dataset

    return open_dataset(folder, card=None, horizon=HORIZON, cameras=["primary"], depth=False)


class Endless:
    """Batches of random (dataset, frame), each dataset as often as the others."""

    def __init__(self, datasets: list[Any]) -> None:
        from spatialvla_ft.data.sampler import Sampler

        lengths = [len(dataset) for dataset in datasets]
        self.sampler = Sampler(0, [1.0] * len(datasets), lengths, batch=BATCH)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """One batch after another."""
        return (self.sampler.batch(step) for step in count())


@cache
def stream(folders: tuple[str, ...], path: str, workers: int) -> tuple[Iterator[Any], list[int]]:
    """An endless loader that has begun, and its workers' processes; they stay, as in training."""
    from spatialvla_ft.training.hand_over import Loader

    squares = Squares([opened(folder) for folder in folders], path)
    batches = Endless(squares.datasets)
    before = set(_children())
    found = iter(Loader(squares, batches, together, workers=workers, ahead=2))  # type: ignore[arg-type]
    next(found)
    return found, sorted(set(_children()) - before)


def _children() -> list[int]:
    pid = os.getpid()
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def read(request: dict[str, Any], bare: dict[str, float]) -> dict[str, float]:
    """One round of frames from a stream that is there already, or starts now."""
    batches, workers = stream(tuple(request["folders"]), request["path"], request["workers"])
    pids = [os.getpid(), *workers]
    begin, cpu = time.perf_counter(), cpu_seconds(pids)
    frames, total = 0, 0
    while frames < request["frames"]:
        batch = next(batches)
        frames += len(batch["image"])
        total += int(batch["image"][:, 0, 0, 0].sum())
    wall = time.perf_counter() - begin
    if workers:
        time.sleep(0.5)  # what is fetched ahead belongs to this round: the next begins with it
    return {
        "frames": frames,
        "cpu": cpu_seconds(pids) - cpu,
        "wall": wall,
        "memory_mib": memory_mib(pids),
        "bare_mib": bare["Pss"],
        "own_mib": memory_mib(pids, "Pss_Anon") - bare["Pss_Anon"],
    }


def cpu_seconds(pids: list[int]) -> float:
    """Processor time that running processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Answer requests until standard input ends."""
    torch.set_num_threads(1)
    bare = {kind: memory_mib([os.getpid()], kind) for kind in ("Pss", "Pss_Anon")}
    for line in sys.stdin:
        sys.stdout.write(json.dumps(read(json.loads(line), bare)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
