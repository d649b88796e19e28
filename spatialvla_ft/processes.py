"""Child processes: how they end, in words; workers; programs that answer line by line.

`Worker` is a fresh Python process that loads neither torch nor the caller's script. Mesa's software
renderer crashes in a process that uses Triton (torch) or TensorFlow, so rendering and TensorFlow
each get a process of their own. Unlike multiprocessing's spawn, workers never import the main
module again, so they start from scripts, notebooks and standard input alike.

`Child` answers a line of JSON to every line of JSON, so that measured programs can take turns.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

NATIVE = "a crash inside a compiled library"
CAUSES = {
    "SIGKILL": "most likely the system ended it for want of memory (`dmesg` tells): use fewer "
    "workers or a smaller batch, or close other programs",
    "SIGBUS": "most likely shared memory or a disk is full: look at `df -h /dev/shm .` (in a "
    "container give it more, --shm-size), or use fewer workers",
    "SIGSEGV": NATIVE,
    "SIGABRT": NATIVE + ", which said why on stderr",
    "SIGFPE": NATIVE,
    "SIGILL": "a compiled library uses an instruction that this processor lacks: install a build "
    "of it for this processor",
    "SIGTERM": "somebody, or a batch system, asked it to end",
    "SIGINT": "somebody interrupted it",
    "SIGHUP": "the terminal that it belonged to was closed",
}
"""What is mostly behind a signal, and what to do."""
CRASHES = ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGBUS")
GRAPHICS = (
    "most likely the graphics library: it draws with MUJOCO_GL={backend}; set MUJOCO_GL=egl or "
    "MUJOCO_GL=osmesa, whichever it is not"
)
LOADER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed by signal: (?P<signal>[^.]+)"
    r"|exited unexpectedly(?: with exit code (?P<code>\d+))?)"
)


class ChildError(RuntimeError):
    """A child process failed or died; the message is for people."""


def how_it_ended(code: int, *, graphics: str | None = None) -> str:
    """An exit code in words: 'exit code 3', 'signal SIGKILL (exit code -9): most likely ...'.

    Args:
        code: as `subprocess` gives it; negative for a signal.
        graphics: what MUJOCO_GL picks, of a process that draws.
    """
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code} (exit code {code})"
    cause = CAUSES.get(name)
    if graphics is not None and name in CRASHES:
        cause = GRAPHICS.format(backend=graphics or "unset (egl, then osmesa)")
    return f"signal {name} (exit code {code})" + (f": {cause}" if cause else "")


def loader_death(error: BaseException | None) -> ChildError | None:
    """What to say where an error is torch's word of a data worker's death; None of any other.

    How it ended mostly stands in the error's cause.
    """
    found = [m for e in _causes(error) if (m := LOADER.match(str(e))) is not None]
    if not found:
        return None
    told = next((m for m in found if m["signal"] or m["code"]), found[0])
    how = "ended unexpectedly"
    if told["code"] is not None:
        how = f"ended with {how_it_ended(int(told['code']))}"
    elif told["signal"] is not None:
        named = {signal.strsignal(number): number for number in signal.Signals}
        number = named.get(told["signal"].strip())
        how = f"died of signal {told['signal']}"
        how = how if number is None else f"died of {how_it_ended(-number)}"
    return ChildError(
        f"a process that reads data {how}. data.workers sets how many there are; with "
        "data.workers=0 the training process reads by itself, and shows any error of reading"
    )


def _causes(error: BaseException | None) -> Iterator[RuntimeError]:
    while isinstance(error, RuntimeError):
        yield error
        error = error.__cause__


_COMMAND = "import sys; from spatialvla_ft.processes import serve; serve(int(sys.argv[1]))"
_LIGHT = {
    "SPATIALVLA_FT_LIGHT": "1",  # `import spatialvla_ft` without torch
    "LP_NUM_THREADS": "1",  # small pictures: Mesa's threads cost more than they bring
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
_BACKEND = "SPATIALVLA_FT_GL"


class WorkerError(ChildError):
    """The function in the worker raised something other than ValueError, or the process died."""


class LacksError(RuntimeError):
    """Something that this machine lacks; the message, for people, goes on without a traceback."""


def gl_backend() -> str:
    """What the user's MUJOCO_GL picks for drawing, in lower case; empty where it is not set.

    Workers do not get MUJOCO_GL itself: by it `import mujoco` alone would load a graphics library,
    in processes that hold TensorFlow too, and OSMesa's LLVM crashes in them.
    """
    return os.environ.get(_BACKEND, os.environ.get("MUJOCO_GL", "")).strip().lower()


class Worker:
    """A process that runs `function(connection, *arguments)`; talk to it with `send` and `recv`.

    A ValueError in the function is raised again by `recv`; anything else becomes a `WorkerError`.
    """

    def __init__(
        self, target: str, *arguments: Any, role: str = "a worker process", draws: bool = False
    ):
        """Start.

        Args:
            target: "module:function".
            *arguments: of the function; they are pickled.
            role: what the process does, for errors.
            draws: whether it opens a GL context, which a crash then has most likely to do with.
        """
        self._role, self._draws = role, draws
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())
        self.send((target, arguments))

    def send(self, message: Any) -> None:
        """Send a message; WorkerError if the process has died."""
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            while True:  # up to its last words, or how it ended
                self.recv()

    def recv(self) -> Any:
        """The next message, waiting for it."""
        try:
            kind, message = self._connection.recv()
        except (EOFError, OSError):  # between two messages, or in the middle of one
            graphics = gl_backend() if self._draws else None
            how = how_it_ended(self._process.wait(), graphics=graphics)
            raise WorkerError(f"{self._role} died with {how}") from None
        if kind == "invalid":
            raise ValueError(message)
        if kind == "lacks":
            raise WorkerError(message)
        if kind == "error":
            raise WorkerError(f"{self._role} failed:\n{message}")
        return message

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        try:
            self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()

    def __enter__(self) -> Worker:
        """The worker itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self.close()


class Channel:
    """The worker's end of the connection."""

    def __init__(self, connection: Connection):
        """Wrap a connection to the parent process."""
        self._connection = connection

    def send(self, message: Any) -> None:
        """Send a message to the parent."""
        self._connection.send(("message", message))

    def recv(self) -> Any:
        """The parent's next message; EOFError when it has closed the worker."""
        return self._connection.recv()


def serve(descriptor: int) -> None:
    """What the new process runs: receive the function and its arguments, and call it."""
    connection = Connection(descriptor)
    target, arguments = connection.recv()
    module, function = target.split(":")
    gone = (EOFError, BrokenPipeError, ConnectionResetError)
    try:
        getattr(importlib.import_module(module), function)(Channel(connection), *arguments)
    except gone:
        return
    except Exception as error:
        last_words = ("error", traceback.format_exc())
        for kind, name in ((ValueError, "invalid"), (LacksError, "lacks")):
            if isinstance(error, kind):
                last_words = (name, str(error))
        try:
            connection.send(last_words)
        except gone:
            return


def _environment() -> dict[str, str]:
    return {
        **_LIGHT,
        **os.environ,
        "SPATIALVLA_FT_LIGHT": "1",
        "PYTHONPATH": import_path(),
        "MUJOCO_GL": "disable",
        _BACKEND: gl_backend(),
    }


def import_path() -> str:
    """This process's import path, so that another one finds the same package."""
    return os.pathsep.join(part for part in sys.path if part)


ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "SPATIALVLA_FT_LIGHT": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""No GPU, one thread per process, and of this package what the program itself imports."""


class Child:
    """`python -m module arguments` behind two pipes.

    Args:
        module: its name.
        arguments: words of the command line.
        environment: on top of this process's own.
        role: what it is, for errors; the module if not given.
        cure: what to do where it dies, behind how it ended.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] = ENVIRONMENT,
        role: str | None = None,
        cure: str = "",
    ) -> None:
        self.role, self.cure = role or module, cure
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (__exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, request: Any) -> Any:
        """Send a value as JSON, wait for the answer.

        Raises:
            ChildError: the program ended; its last words are quoted.
        """
        self.send(request)
        return self.receive()

    def send(self, request: Any) -> None:
        """Send a value as JSON; to a program that has ended nothing, `receive` says so."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def receive(self) -> Any:
        """The next answer, waiting for it; ChildError as in `ask`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            how = how_it_ended(self._process.wait())
            self._errors.seek(0)
            said = self._errors.read()[-2000:]
            raise ChildError(f"{self.role} ended with {how}{self.cure}: {said}")
        return json.loads(line)

    def kill(self) -> None:
        """End the program at once."""
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self.kill()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def run(module: str, arguments: Sequence[str]) -> None:
    """Run `python -m module arguments` to its end.

    Raises:
        ChildError: it failed; its last words are quoted.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        how = how_it_ended(done.returncode)
        raise ChildError(f"{module} failed with {how}: {done.stderr[-2000:]}")
