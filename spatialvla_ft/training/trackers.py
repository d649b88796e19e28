"""Trackers that Accelerate can log to, besides its own: JSON lines, and TensorBoard files.

Accelerate's own TensorBoard tracker goes through torch, which imports TensorFlow where that is
installed; tensorboardX writes the same files without it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process

from .. import files
from .recipe import Recipe
from .tracker_names import init_arguments, without_secrets

PROJECT = "spatialvla_ft"


class JsonLinesTracker(GeneralTracker):
    """Appends every logged step to `metrics.jsonl` of the run's folder."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"

    @property
    def tracker(self) -> Path:
        """The file."""
        return self.path

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """The recipe stands beside the file; nothing to store."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Append one line."""
        line = {"step": step, "time": round(time.time(), 3), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @on_main_process
    def flush(self) -> None:
        """Bring the lines to disk."""
        if self.path.is_file():
            files.to_disk(self.path)


class TensorBoardTracker(GeneralTracker):
    """Scalars in TensorBoard's format under `tensorboard/` of the run's folder."""

    name = "tensorboard"
    requires_logging_directory = False

    def __init__(self, folder: Path, resume_at: int) -> None:
        super().__init__()
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_at + 1)

    @property
    def tracker(self) -> Any:
        """The writer."""
        return self.writer

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """The recipe stands beside the files; nothing to store."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Write one point per value."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    @on_main_process
    def flush(self) -> None:
        """Bring the points to disk."""
        self.writer.flush()

    @on_main_process
    def finish(self) -> None:
        """Close the file."""
        self.writer.close()


def flush(trackers: list[Any]) -> None:
    """Bring to disk what our own trackers were told so far."""
    for tracker in trackers:
        if isinstance(tracker, JsonLinesTracker | TensorBoardTracker):
            tracker.flush()


def make_trackers(names: list[str], folder: Path, resume_at: int) -> list[Any]:
    """Trackers by name for `Accelerator(log_with=...)`; other names are Accelerate's own."""
    ours = {
        "jsonl": lambda: JsonLinesTracker(folder),
        "tensorboard": lambda: TensorBoardTracker(folder, resume_at),
    }
    return [ours[name]() if name in ours else name for name in names]


def init_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the trackers; others than ours get the recipe, and go on as the run they were."""
    names = recipe.train.trackers
    arguments = init_arguments(names, Path(recipe.output)) if accelerator.is_main_process else {}
    content = without_secrets(recipe.model_dump(mode="json"))
    accelerator.init_trackers(PROJECT, config=content, init_kwargs=arguments)


def forget_after(path: Path, step: int) -> None:
    """Drop lines of later steps than `step`, which a resumed run will write again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # a line cut short when the run was killed
    files.write_text(path, "".join(f"{line}\n" for line in kept))
