"""A process that imports everything once and forks the command line, to be killed anywhere.

Requests are lines of JSON on stdin, answers lines of JSON on stdout:

    {"argv": [...], "watch": DIR, "log": FILE, ...} -> {"status": int, "ticks": [name, ...]}

A tick is a file operation of the child below DIR: opened for writing, made, renamed, removed,
brought to disk, or a tensor file half written. With "at": n, or "name" for the first of that name,
the child is killed (SIGKILL) at a tick, or its process group gets "signal", or with "errno" that
operation fails. "fsize" limits the size of files. Without "argv" the child writes three checkpoints
into DIR. Status is as of `os.waitstatus_to_exitcode`: -9 after a SIGKILL.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import torch

import spatialvla_ft.training.loop  # noqa: F401
from spatialvla_ft import files
from spatialvla_ft.cli.main import app
from spatialvla_ft.training import checkpoints
from spatialvla_ft.training.build import build
from spatialvla_ft.training.recipe import load_recipe
from spatialvla_ft.training.states import take

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


class Ticks:
    """Names the file operations of this process below a folder, and dies or fails at one."""

    def __init__(self, request, report):
        self.request, self.report = request, report
        self.folder = str(Path(request["watch"]).resolve())
        self.pid, self.count, self.done = os.getpid(), 0, False
        self.save_file, self.to_disk = checkpoints.save_file, files.to_disk
        checkpoints.save_file, files.to_disk = self.half_written, self.synced
        sys.addaudithook(self.audit)

    def audit(self, event, args):
        if event not in EVENTS or os.getpid() != self.pid or not isinstance(args[0], str | bytes):
            return
        if event == "open" and not args[2] & WRITES:
            return
        path = os.path.abspath(os.fsdecode(args[0]))  # noqa: PTH100
        if path.startswith(self.folder):
            self.tick(path)

    def half_written(self, tensors, file):
        """The tensor file as it is in the middle of being written, for one tick."""
        self.save_file(tensors, file)
        content = Path(file).read_bytes()
        os.truncate(file, len(content) // 2)
        self.tick(file)
        with Path(file).open("r+b") as handle:
            handle.write(content)

    def synced(self, path):
        self.tick(str(path))
        self.to_disk(path)

    def tick(self, path):
        name, now = Path(path).name, self.count
        os.write(self.report, f"{name}\n".encode())
        self.count += 1
        if now == self.request.get("at") or (name == self.request.get("name") and not self.done):
            self.done = True
            self.happen()

    def happen(self):
        if "errno" in self.request:
            raise OSError(self.request["errno"], os.strerror(self.request["errno"]))
        if "signal" in self.request:
            os.killpg(self.pid, self.request["signal"])
        else:
            os.kill(self.pid, signal.SIGKILL)


def parts(seed=0):
    """A model of one layer, its optimiser and schedule."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


def save_three(folder):
    """Three checkpoints of a toy model; the second is the best, the last stays too."""
    model, optimizer, scheduler = parts()
    for step, loss in ((1, 0.3), (2, 0.1), (3, 0.2)):
        model.weight.grad = model.bias.grad = None
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        scheduler.step()
        state = take(step, model, optimizer, scheduler)
        checkpoints.save(folder, state, keep=checkpoints.Keep(1, 1), validation=loss)


def child(request, report):
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    Ticks(request, report)
    if "fsize" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["fsize"], request["fsize"]))
    if "argv" not in request:
        save_three(Path(request["watch"]))
        return 0
    try:
        app(request["argv"])
    except SystemExit as done:
        return done.code or 0
    return 0


def forked(request):
    """What becomes of a child."""
    report = os.memfd_create("ticks")
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = child(request, report)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(report, "rb") as file:
        file.seek(0)
        ticks = file.read().decode().split()
    return {"status": os.waitstatus_to_exitcode(status), "ticks": ticks}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        if "warm" in request:  # what is imported on first use need not be imported by every child
            build(load_recipe(request["warm"]))
            answer = {}
        else:
            answer = forked(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
