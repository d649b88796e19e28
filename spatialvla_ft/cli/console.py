"""What commands share in talking to people: errors without tracebacks, and live progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from spatialvla_ft.training.run import Run


@contextmanager
def fail_with(*kinds: type[Exception]) -> Iterator[None]:
    """Turn these errors, whose messages are written for people, into a line and exit code 1."""
    try:
        yield
    except kinds as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print("[bold red]error:[/]", Text(str(error)), highlight=False)
        raise typer.Exit(1) from error


class TrainingLog:
    """Called by the loop with every logged step; keeps the last values of each metric."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.task = None
        self.last: dict[str, float] = {}

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Advance the bar and show what matters."""
        self.last.update(values)
        if self.progress is None or self.task is None:
            return
        last = self.last
        text = f"loss {last['loss']:.3f}" if "loss" in last else ""
        if "validation/loss" in last:
            text += f"  held out {last['validation/loss']:.3f}"
        text += f"  {last.get('samples_per_second', 0):.0f} samples/s"
        text += f"  waiting for data {100 * last.get('data_wait_share', 0):.0f} %"
        self.progress.update(self.task, completed=step, text=text)


@contextmanager
def training_progress(run: Run, *, quiet: bool) -> Iterator[TrainingLog]:
    """Say what is trained, then show progress; nothing when quiet."""
    from spatialvla_ft.training.batches import epoch_words
    from spatialvla_ft.training.global_batch import process_count
    from spatialvla_ft.training.parameter_groups import groups_in_words, parameter_groups

    if quiet:
        yield TrainingLog(None)
        return
    console = Console(stderr=True)
    groups = parameter_groups(run.model)
    total = sum(group.total for group in groups)
    trained = sum(group.trained + group.adapters for group in groups)
    frames = sum(len(dataset) for dataset in run.datasets)
    console.print(
        f"training {trained:,} parameters of a model of {total:,} on {frames:,} frames of "
        f"{', '.join(dataset.name for dataset in run.datasets)}"
    )
    for line in groups_in_words(groups):
        console.print(f"  {line}", highlight=False)
    world, train = process_count(), run.recipe.train
    console.print(
        f"one step = {train.batch_size * train.gradient_accumulation * world:,} samples: "
        f"{train.batch_size} at once x {train.gradient_accumulation} accumulated x {world} "
        "process(es)",
        highlight=False,
    )
    console.print(epoch_words(run, world), highlight=False, soft_wrap=True)
    if run.recipe.lora is not None:
        rank = run.recipe.lora.rank
        alpha = rank if run.recipe.lora.alpha is None else run.recipe.lora.alpha
        console.print(f"LoRA rank {rank}, alpha {alpha:g}: updates are scaled by {alpha / rank:g}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as progress:
        log = TrainingLog(progress)
        log.task = progress.add_task("steps", total=run.recipe.train.steps, text="")
        yield log
