"""Batches come out of the workers' shared memory as they went in, and stay as they came."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, default_collate

from spatialvla_ft.training.hand_over import Loader


class Things(Dataset):
    """Large and small, of many kinds; larger the later they come."""

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (100 + 20 * i, 61, 3), dtype=np.uint8)
        return {
            "tensor": torch.from_numpy(pixels),
            "strided": torch.from_numpy(pixels).permute(2, 0, 1),
            "bfloat": torch.full((30, 400), float(i), dtype=torch.bfloat16),
            "array": rng.normal(size=(90, 101)),
            "small": np.arange(i),
            "flag": torch.tensor(i % 2 == 0),
            "words": [f"frame {i}", None, (i, {"deep": torch.full((200, 200), i)})],
        }


def as_it_is(samples):
    """A batch is the list of its samples."""
    return list(samples)


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        assert a == b


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_those_of_this_process(workers):
    places = [[i, (i * 5) % 7] for i in range(14)]
    wanted = [[Things()[i] for i in place] for place in places]
    kept = list(Loader(Things(), places, as_it_is, workers=workers, ahead=2))
    assert len(kept) == len(places)
    # All are looked at after the last has come: none may have been written over.
    same(kept, wanted)


def test_batches_may_be_changed():
    kept = []
    for batch in Loader(Things(), [[i] for i in range(6)], as_it_is, workers=1, ahead=1):
        batch[0]["tensor"] += 1
        batch[0]["array"] += 1
        batch[0]["flag"].logical_not_()
        kept.append(batch[0])
    for i, found in enumerate(kept):
        same(found["tensor"], Things()[i]["tensor"] + 1)
        same(found["array"], Things()[i]["array"] + 1)


class Broken(Things):
    def __getitem__(self, i):
        if i == 3:
            raise ValueError("frame 3 is damaged")
        return super().__getitem__(i)


def test_an_error_in_a_worker_is_raised_here():
    loader = Loader(Broken(), [[i] for i in range(6)], as_it_is, workers=2, ahead=1)
    with pytest.raises(ValueError, match="frame 3 is damaged"):
        list(loader)


def test_it_can_be_read_again():
    loader = Loader(Things(), [[1, 1], [2, 2]], default_part, workers=1)
    assert len(loader) == 2
    same(list(loader), list(loader))


def default_part(samples):
    return default_collate([sample["tensor"] for sample in samples])


KILLED = """
import os, signal, sys, time
sys.path.insert(0, {folder!r})
from test_hand_over import Things, as_it_is
from spatialvla_ft.training.hand_over import Loader

loader = iter(Loader(Things(), [[1] * 40] * 50, as_it_is, workers=2, ahead=4))
next(loader)
print(*[worker.pid for worker in __import__("multiprocessing").active_children()], flush=True)
time.sleep(1)  # until the pipe is full of what nobody will read
os.kill(os.getpid(), signal.SIGKILL)
"""


def runs(pid):
    """Whether it does; a dead process that nobody has asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_when_their_process_is_killed():
    """Forty samples of small arrays and words make a message that fills the pipe."""
    code = KILLED.format(folder=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        workers = [int(pid) for pid in run.stdout.readline().split()]
    assert len(workers) == 2
    until = time.monotonic() + 20
    while time.monotonic() < until and any(map(runs, workers)):
        time.sleep(0.2)
    left = [pid for pid in workers if runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
