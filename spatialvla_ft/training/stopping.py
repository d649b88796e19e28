"""Stopping on request: SIGTERM and SIGUSR1 end a run after the step in progress, with a checkpoint.

Batch systems send one of them before they take the machine away: SLURM at the time limit and on
preemption, clouds when a spot instance is called back.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 75
"""Of the command after such a stop: EX_TEMPFAIL of sysexits.h, "run it again"."""


class StoppedError(Exception):
    """The run was asked to stop, and can be continued.

    Attributes:
        step: completed steps.
        checkpoint: what was written last.
    """

    def __init__(self, reason: str, step: int, steps: int, checkpoint: Path) -> None:
        super().__init__(
            f"stopped by {reason} after step {step} of {steps}; the checkpoint is {checkpoint}. "
            "The same command continues from it"
        )
        self.step, self.checkpoint = step, checkpoint


class StopRequest:
    """Whether a signal has come, and which."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: remember the first."""
        self.reason = self.reason or signal.Signals(number).name


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the signals inside the block; outside the main thread none can be caught."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_to_main_process(worker: int) -> None:
    """A loader worker must outlive a signal to the whole group: the step in progress needs it.

    Args:
        worker: its number, as a DataLoader's `worker_init_fn` gets it.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
