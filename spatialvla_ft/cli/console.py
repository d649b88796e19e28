"""What commands share in talking to people: errors without tracebacks, and live progress."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from spatialvla_ft.processes import ChildError, loader_death

if TYPE_CHECKING:
    from spatialvla_ft.training.run import Run

QUIET_SECONDS = 30
"""Between two lines where nobody watches."""


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


class TrainingLog:
    """Called by the loop with every logged step: one calm line, and the last of every metric.

    Where nobody watches (a file, a batch job), a line now and then takes the bar's place.
    """

    def __init__(self, progress: Progress | None, steps: int = 0) -> None:
        self.progress = progress
        self.task = None
        self.steps = steps
        self.last: dict[str, float] = {}
        self.warnings: list[str] = []
        self._told = 0.0

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Advance the bar and show what matters."""
        self.last.update(values)
        if self.progress is None or self.task is None:
            return
        text = progress_words(self.last)
        self.progress.update(self.task, completed=step, text=text)
        now = time.monotonic()
        if not self.progress.console.is_terminal and now - self._told > QUIET_SECONDS:
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


@contextmanager
def training_progress(run: Run, *, quiet: bool) -> Iterator[TrainingLog]:
    """Show progress and warnings on the main process; nothing when quiet."""
    if quiet or os.environ.get("RANK", "0") != "0":
        log = TrainingLog(None)
        with warnings_shown(None, log.warnings):
            yield log
        return
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of the weights that are written at the end, in the middle of ours
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as progress:
        log = TrainingLog(progress, run.recipe.train.steps)
        log.task = progress.add_task("training", total=run.recipe.train.steps, text="")
        with warnings_shown(console, log.warnings):
            yield log
