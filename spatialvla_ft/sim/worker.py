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

_COMMAND = "import sys; from spatialvla_ft.sim.worker import serve; serve(int(sys.argv[1]))"
_LIGHT = {
    "SPATIALVLA_FT_LIGHT": "1",  # `import spatialvla_ft` without torch
    "LP_NUM_THREADS": "1",  # small pictures: Mesa's threads cost more than they bring
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


class WorkerError(RuntimeError):
    """The function in the worker raised something other than ValueError, or the process died."""


class Worker:
    """A process that runs `function(connection, *arguments)`; talk to it with `send` and `recv`.

    A ValueError in the function is raised again by `recv`; anything else becomes a `WorkerError`.
    """

    def __init__(self, target: str, *arguments: Any):
        """Start; `target` is "module:function", the arguments are pickled."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**_LIGHT, **os.environ, "SPATIALVLA_FT_LIGHT": "1", "PYTHONPATH": _path()},
                stdin=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())
        self.send((target, arguments))

    def send(self, message: Any) -> None:
        """Send a message; WorkerError if the process has died."""
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            self.recv()  # its last words, if any
            raise WorkerError("a worker process ended early") from None

    def recv(self) -> Any:
        """The next message, waiting for it."""
        try:
            kind, message = self._connection.recv()
        except (EOFError, ConnectionResetError):
            code = self._process.wait()
            raise WorkerError(f"a worker process died with exit code {code}") from None
        if kind == "invalid":
            raise ValueError(message)
        if kind == "error":
            raise WorkerError(f"a worker process failed:\n{message}")
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
        last_words = (
            ("invalid", str(error))
            if isinstance(error, ValueError)
            else ("error", traceback.format_exc())
        )
        try:
            connection.send(last_words)
        except gone:
            return


def _path() -> str:
    """The parent's import path, so that the worker finds the same package."""
    return os.pathsep.join(part for part in sys.path if part)
