"""Fresh Python processes that load neither torch nor the caller's script.

Mesa's software renderer crashes in a process that uses Triton (torch) or TensorFlow, so rendering
and TensorFlow each get a process of their own. Unlike multiprocessing's spawn, these never import
the main module again, so they start from scripts, notebooks and standard input alike.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from spatialvla_ft.processes import ChildError, how_it_ended

_COMMAND = "import sys; from spatialvla_ft.sim.worker import serve; serve(int(sys.argv[1]))"
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
        "PYTHONPATH": _path(),
        "MUJOCO_GL": "disable",
        _BACKEND: gl_backend(),
    }


def _path() -> str:
    """The parent's import path, so that the worker finds the same package."""
    return os.pathsep.join(part for part in sys.path if part)
