"""A program that answers a line of JSON to every line, so that processes can take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from ..processes import ChildError, how_it_ended

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
    """

    def __init__(self, module: str, arguments: Sequence[str] = ()) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.module = module

    def ask(self, request: Any) -> dict[str, float]:
        """Send a value as JSON, wait for the answer.

        Raises:
            ChildError: the program ended; its last words are quoted.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            how = how_it_ended(self._process.wait())
            self._errors.seek(0)
            raise ChildError(f"{self.module} ended with {how}: {self._errors.read()[-2000:]}")
        answer: dict[str, float] = json.loads(line)
        return answer

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
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
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
