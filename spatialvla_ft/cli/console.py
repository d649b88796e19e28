"""What commands share in talking to people: errors without tracebacks, and live progress."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from spatialvla_ft.processes import ChildError, loader_death

if TYPE_CHECKING:
    from spatialvla_ft.training.run import Run

QUIET_SECONDS = 30
"""Between two lines where nobody watches."""
FEW_LINES = 200
"""A run that logs no more often than this tells every time, also where nobody watches."""


REFUSALS = (ValueError, OSError, FloatingPointError, ChildError)
"""Errors whose messages are written for people: work that was refused, or cannot be done here."""


@contextmanager
def fail_with(*more: type[Exception]) -> Iterator[None]:
    """The one rule for exit codes: refused work is a line on stderr and exit code 1.

    Typer itself ends with 2 where an option or argument is used wrongly; training that a signal
    stopped ends with 75. Anything else is a fault of ours and keeps its traceback.

    Args:
        *more: errors of this command, beside `REFUSALS`, whose messages are for people.
    """
    try:
        yield
    except (*REFUSALS, *more) as error:
        refuse(error)
    except RuntimeError as error:
        death = loader_death(error)
        if death is None:
            raise
        refuse(death)


def refuse(error: Exception) -> NoReturn:
    """Say an error in one line and end with exit code 1."""
    console = Console(stderr=True, soft_wrap=True)
    console.print("[bold red]error:[/]", Text(str(error)), highlight=False)
    raise typer.Exit(1) from error


class TrainingProgress(Progress):
    """A bar, and below it what is known, which would not fit beside it into 80 columns."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bar, then the words of each task."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields.get("text"):
                yield Text(f"  {task.fields['text']}")


class TrainingLog:
    """Called by the loop with every logged step: one calm line, and the last of every metric.

    Where nobody watches (a file, a batch job), a line now and then takes the bar's place, or one
    for every logged step if those are few. A call without metrics says that a run goes on.
    """

    def __init__(self, progress: Progress | None, steps: int = 0, every: int = 1) -> None:
        self.progress = progress
        self.task = None
        self.steps = steps
        self.pause = 0 if steps <= FEW_LINES * every else QUIET_SECONDS
        self.last: dict[str, float] = {}
        self.warnings: list[str] = []
        self._told = -math.inf
        self._depth: TaskID | None = None

    def depth(self, done: int, total: int) -> None:
        """Show how far the depth of the pictures is, which is estimated before the first step."""
        if self.progress is None:
            return
        if self._depth is None:
            self._depth = self.progress.add_task("depth", total=total, text="")
        self.progress.update(self._depth, completed=done, visible=done < total)
        now = time.monotonic()
        if not self.progress.console.is_terminal and now - self._told > QUIET_SECONDS:
            self._told = now
            print_line(self.progress.console, f"depth of frame {done:,} of {total:,}")

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Advance the bar and show what matters."""
        self.last.update(values)
        if self.progress is None or self.task is None:
            return
        text = progress_words(self.last)
        self.progress.update(self.task, completed=step, text=text)
        if not values:
            print_line(self.progress.console, f"continued at step {step:,} of {self.steps:,}")
            return
        now = time.monotonic()
        if not self.progress.console.is_terminal and now - self._told >= self.pause:
            self._told = now
            print_line(self.progress.console, f"step {step:,} of {self.steps:,}  {text}")


def progress_words(last: dict[str, float]) -> str:
    """Loss, share of right tokens, held-out loss, rate and waiting, as far as they are known."""
    right = [value for name, value in last.items() if name.startswith("accuracy/")]
    parts = []
    if "loss" in last:
        parts.append(f"loss {last['loss']:.3f}")
    if right:
        parts.append(f"{100 * sum(right) / len(right):.0f} % right")
    if "validation/loss" in last:
        parts.append(f"held out {last['validation/loss']:.3f}")
    if "samples_per_second" in last:
        parts.append(f"{last['samples_per_second']:,.0f} samples/s")
    if "data_wait_share" in last:
        parts.append(f"{100 * last['data_wait_share']:.0f} % waiting for data")
    return ", ".join(parts)


class Watch:
    """Told how much of some long work is done: a bar in a terminal, elsewhere a line now and then.

    Attributes:
        what: the work, in a word or two.
        total: how much there is.
    """

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self.progress, self.what, self.total = progress, what, total
        self._task = progress.add_task(what, total=total, note="")
        self._began = self._told = time.monotonic()

    def __call__(self, done: int, note: str = "", *, total: int | None = None) -> None:
        """So much is done, of so much where that has become known; the note is shown behind."""
        self.total = self.total if total is None else total
        self.progress.update(self._task, completed=done, total=self.total, note=note)
        now = time.monotonic()
        if self.progress.disable or self.progress.console.is_terminal:
            return
        if now - self._told >= QUIET_SECONDS:
            self._told = now
            left = (now - self._began) * (self.total - done) / max(done, 1)
            line = f"{self.what}: {done:,} of {self.total:,}, about {left:,.0f} s left"
            print_line(self.progress.console, f"{line}  {note}".rstrip())


@contextmanager
def watching(
    *, quiet: bool = False, in_bytes: bool = False
) -> Iterator[Callable[[str, int], Watch]]:
    """Yields what begins a `Watch` of some work; nothing is shown when quiet."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        *((DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    # Where nobody watches, a bar that is drawn once at the end says nothing.
    with Progress(*columns, console=console, disable=quiet, transient=True) as progress:
        yield lambda what, total: Watch(progress, what, total)


Tell = Callable[[str, int, int], None]
"""Called with some work, how much of it is done, and of how much."""


@contextmanager
def telling(*, quiet: bool = False, in_bytes: bool = False) -> Iterator[Tell]:
    """Yields what is told of works as they go on, a bar for each; nothing is shown when quiet."""
    with watching(quiet=quiet, in_bytes=in_bytes) as begin:
        watches: dict[str, Watch] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in watches:
                watches[what] = begin(what, total)
            watches[what](done, total=total)

        yield tell


def print_line(console: Console, line: str | Text) -> None:
    """A line as it is: no markup, no colours of numbers, no breaks."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Warnings(logging.Handler):
    """Shows what the package warns of above the progress, and keeps it for the summary."""

    def __init__(self, console: Console | None, kept: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.console, self.kept = console, kept

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.kept:
            self.kept.append(text)
        if self.console is not None:
            print_line(self.console, Text.assemble(("warning: ", "yellow"), text))


@contextmanager
def warnings_shown(console: Console | None, kept: list[str]) -> Iterator[None]:
    """While it lasts, warnings of the package go to the console and into a list."""
    handler, package = _Warnings(console, kept), logging.getLogger("spatialvla_ft")
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)


def no_bars_of_weights() -> None:
    """Bars of loading come between our lines; transformers is not loaded just to stop them."""
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


@contextmanager
def training_progress(run: Run, *, quiet: bool) -> Iterator[TrainingLog]:
    """Show progress and warnings on the main process; nothing when quiet."""
    if quiet or os.environ.get("RANK", "0") != "0":
        log = TrainingLog(None)
        with warnings_shown(None, log.warnings):
            yield log
        return
    no_bars_of_weights()  # also of those that are written at the end, in the middle of ours
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    with TrainingProgress(*columns, console=console) as progress:
        log = TrainingLog(progress, run.recipe.train.steps, run.recipe.train.log_every)
        log.task = progress.add_task("training", total=run.recipe.train.steps, text="")
        with warnings_shown(console, log.warnings):
            yield log
