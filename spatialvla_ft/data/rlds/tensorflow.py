"""TensorFlow Datasets, loaded without what TensorFlow says of itself meanwhile."""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_IDLE = re.compile(
    rb"I\d{4} |WARNING: All log messages before absl::InitializeLog|"
    rb"E\d{4} .*failed call to cuInit"
)
"""Information, and that there is no GPU, which nothing here would use."""


def tensorflow_datasets() -> Any:
    """The module; warnings and errors of its loading are shown, information is not.

    TensorFlow writes to the file descriptor of standard error, past Python, before its levels of
    logging count.
    """
    if "tensorflow" not in sys.modules:
        with _without_idle_lines():
            tensorflow = importlib.import_module("tensorflow")
            tensorflow.config.set_visible_devices([], "GPU")
            tensorflow.constant(0)
    return importlib.import_module("tensorflow_datasets")


@contextmanager
def _without_idle_lines() -> Iterator[None]:
    """While it lasts, lines to standard error are held back; those that matter follow after it."""
    sys.stderr.flush()
    try:
        shown = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(shown, 2)
            os.close(shown)
            held.seek(0)
            for line in held.read().splitlines(keepends=True):
                if not _IDLE.match(line):
                    os.write(2, line)
