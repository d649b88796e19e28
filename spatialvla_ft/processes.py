"""How child processes end, in words: a signal has a name, a likely cause and a cure."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

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
