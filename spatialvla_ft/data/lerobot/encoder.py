"""Video encoders, opened without their side effects on the process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_THREADS = Path("/proc/self/task")


def open_encoder(stream: Any) -> None:
    """Open the encoder of a PyAV stream whose size and pixel format are set.

    SVT-AV1 writes its settings to standard error unless told to keep to errors, and where it is
    run by root (in most containers) it makes its own threads and the one that opened it SCHED_FIFO
    99, for good. Threads that wait for each other by spinning, as OpenMP's do, can then keep every
    core from the one they wait for: the process stands still, and the machine with it.
    """
    os.environ.setdefault("SVT_LOG", "1")
    with scheduling_kept():
        stream.codec_context.open()


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """What runs in it may change neither this thread's scheduling nor start real-time threads."""
    if not (hasattr(os, "sched_setscheduler") and _THREADS.is_dir()):
        yield
        return
    me = threading.get_native_id()
    before = _threads()
    kept = _scheduling(me)
    try:
        yield
    finally:
        for thread in {me, *_threads() - before}:
            try:
                if _scheduling(thread) != kept:
                    policy, priority = kept
                    os.sched_setscheduler(thread, policy, os.sched_param(priority))
            except ProcessLookupError:
                continue  # it has ended


def _scheduling(thread: int) -> tuple[int, int]:
    """Policy and real-time priority."""
    return os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority


def _threads() -> set[int]:
    return {int(entry.name) for entry in _THREADS.iterdir()}
