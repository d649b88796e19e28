"""What is said of a process that died: the signal's name, its exit code, the likely cause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import BatchSampler, SequentialSampler

from spatialvla_ft.processes import Child, ChildError, how_it_ended, loader_death, run
from spatialvla_ft.training.hand_over import Loader


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SIGKILL", "want of memory"),
        ("SIGSEGV", "a crash inside a compiled library"),
        ("SIGABRT", "a crash inside a compiled library"),
        ("SIGBUS", "shared memory or a disk is full"),
        ("SIGILL", "this processor lacks"),
        ("SIGTERM", "asked it to end"),
    ],
)
def test_a_signal_has_a_name_a_cause_and_a_cure(name, words):
    """Of a process that really ended so."""
    code = "import os, signal, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); "
    code += f"os.kill(os.getpid(), signal.{name})"
    ended = subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL)
    said = how_it_ended(ended.returncode)
    assert said.startswith(f"signal {name} (exit code -{getattr(signal, name).value}): ")
    assert words in said


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_crash_of_a_process_that_draws_is_laid_to_the_graphics(name):
    code = -getattr(signal, name).value
    assert "MUJOCO_GL=osmesa; set MUJOCO_GL=egl" in how_it_ended(code, graphics="osmesa")
    assert "MUJOCO_GL=unset (egl, then osmesa)" in how_it_ended(code, graphics="")
    assert "MUJOCO_GL" not in how_it_ended(-signal.SIGKILL, graphics="osmesa")


def test_codes_without_a_signal():
    assert how_it_ended(3) == "exit code 3"
    assert how_it_ended(-40) == "signal 40 (exit code -40)"
    assert how_it_ended(-signal.SIGUSR2.value) == "signal SIGUSR2 (exit code -12)"


class Dying:
    """Two samples; reading the second ends the process that reads."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 2

    def __getitem__(self, i):
        if i == 1 and isinstance(self.how, signal.Signals):
            os.kill(os.getpid(), self.how)
        elif i == 1:
            os._exit(self.how)
        return torch.zeros(3)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            signal.SIGKILL,
            r"died of signal SIGKILL \(exit code -9\): most likely .* memory.*data.workers=0",
        ),
        (signal.SIGSEGV, r"signal SIGSEGV \(exit code -11\): a crash inside"),
        (7, r"a process that reads data ended with exit code 7\. data.workers sets"),
    ],
)
def test_a_dead_data_worker_is_named(how, words):
    batches = BatchSampler(SequentialSampler(range(2)), 1, drop_last=False)
    loader = Loader(Dying(how), batches, torch.stack, workers=1)
    with pytest.raises(ChildError, match=words):
        list(loader)


def test_other_errors_of_a_loader_stay_what_they_are():
    assert loader_death(RuntimeError("CUDA error: out of memory")) is None
    assert (
        loader_death(ValueError("DataLoader worker (pid 3) is killed by signal: Killed. ")) is None
    )
    several = loader_death(RuntimeError("DataLoader worker (pid(s) 3, 41) exited unexpectedly"))
    assert str(several).startswith("a process that reads data ended unexpectedly. data.workers")


def test_programs_beside_a_benchmark_say_how_they_ended(tmp_path, monkeypatch):
    (tmp_path / "dies.py").write_text(
        "import os, signal, sys\n"
        "sys.stderr.write('last words')\n"
        "sys.stderr.flush()\n"
        "sys.stdin.readline() if len(sys.argv) == 1 else None\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    killed = r"signal SIGKILL \(exit code -9\): .*last words"
    with pytest.raises(ChildError, match=f"dies failed with {killed}"):
        run("dies", ["now"])
    with Child("dies") as child, pytest.raises(ChildError, match=f"dies ended with {killed}"):
        child.ask(1)
