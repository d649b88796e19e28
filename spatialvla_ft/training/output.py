"""The output folder of a run: held by one process, moved aside rather than deleted, done or not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import files
from .checkpoints import (
    Keep,
    OutputError,
    all_checkpoints,
    free_bytes,
    in_words,
    stored_identity,
)
from .identity import check_same_run, differences, recipe_identity
from .recipe import Recipe, RecipeError
from .run import Run

logger = logging.getLogger(__name__)

LOCK, TRAINED, DEPTH = ".lock", "trained.json", "depth_cache"
_OF_A_RUN = ("recipe.yaml", "metrics.jsonl", "checkpoints", "final")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone; what dead processes left is removed.

    The lock goes with the process, however it ends.

    Raises:
        OutputError: another process trains there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error}. Make it writable, or set another output=DIR"
        ) from error
    with file:
        _lock(file.fileno(), folder)
        for place in (folder, folder / "checkpoints"):
            for left in files.clean(place):
                logger.info("removed %s, which a killed process left", left)
        yield


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logger.warning("%s: its file system has no locks; let one process train there", folder)
            return
        raise OutputError(
            f"another process is training into {folder}; wait until it has ended, or set another "
            "output=DIR"
        ) from error
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())


def refuse_other_run(recipe: Recipe) -> None:
    """Compare the recipe with the newest checkpoint, as far as it can be before anything is built.

    Raises:
        ValueError: the output is of another run; or it is a file, or lies below one.
    """
    folder = Path(recipe.output)
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise OutputError(
                f"cannot write to {folder}: {place} is a file; set another output=DIR"
            )
    found = all_checkpoints(folder / "checkpoints")
    try:
        saved = stored_identity(found[-1]) if found else None
    except (OSError, ValueError, KeyError, TypeError):
        return  # damaged: what goes on from there names it
    if saved is not None:
        now = recipe_identity(recipe)
        check_same_run(found[-1], _of_the_recipe(saved), _of_the_recipe(now))


def _of_the_recipe(fields: dict[str, Any]) -> dict[str, Any]:
    """An identity without what building adds; a grid's name is shared, so it waits for that."""
    sections = set(Recipe.model_fields) - {"grid"}
    return {name: value for name, value in fields.items() if name.split(".")[0] in sections}


def move_aside(recipe: Recipe) -> Path | None:
    """Rename an earlier run's folder to `<output>.old-<n>`; None where there is none.

    Depth that was kept stays: what it is of stands in its keys.

    Raises:
        OutputError: the folder holds something else than a run, or cannot be renamed.
        RecipeError: the recipe needs something in it.
    """
    folder = Path(recipe.output)
    inside = list(folder.iterdir()) if folder.is_dir() else []
    found = sorted(place.name for place in inside if place.name not in (LOCK, DEPTH))
    if not found:
        return None
    if not any(name in found for name in _OF_A_RUN):
        raise OutputError(
            f"{folder} holds {', '.join(found[:4])} but no training run, so --fresh leaves it as "
            "it is; set another output=DIR"
        )
    needed = _paths_inside(recipe.model_dump(mode="json", exclude={"output"}), folder.resolve())
    if needed:
        raise RecipeError(
            f"the recipe reads {needed[0]}, which lies in its output {folder}: --fresh would move "
            "it away; set another output=DIR"
        )
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    try:
        folder.rename(aside)
        if (aside / DEPTH).is_dir():
            folder.mkdir()
            (aside / DEPTH).rename(folder / DEPTH)
        return aside
    except OSError as error:
        raise OutputError(
            f"cannot move the earlier run aside, from {folder} to {aside}: {error}; move it "
            "yourself, or set another output=DIR"
        ) from error


def _paths_inside(value: Any, folder: Path) -> list[str]:
    """Texts of a recipe that name something that exists in a folder."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [found for part in parts for found in _paths_inside(part, folder)]
    if not isinstance(value, str):
        return []
    place = Path(value).resolve()
    return [value] if place.is_relative_to(folder) and place.exists() else []


def finished(recipe: Recipe) -> Path | None:
    """The result of this recipe, if it was trained to its end already."""
    place = Path(recipe.output) / "final"
    try:
        trained = json.loads((place / TRAINED).read_text(encoding="utf-8"))
        same = not differences(trained["recipe"], recipe_identity(recipe))
        return place if same and trained["result"] == recipe.train.result else None
    except (OSError, ValueError, KeyError):
        return None


def last_metrics(folder: Path) -> dict[str, float]:
    """The last value of every metric of a run."""
    values: dict[str, float] = {}
    file = folder / "metrics.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        values |= json.loads(line)
    return {name: value for name, value in values.items() if name not in ("step", "time")}


def write_trained(folder: Path, run: Run, step: int, validation: float | None) -> None:
    """Say in a result's folder what it is: recipe, step, validation loss, datasets' terms."""
    recipe = run.recipe
    content = {
        "step": step,
        "steps": recipe.train.steps,
        "result": recipe.train.result,
        "validation/loss": validation,
        "licences": {d.name: d.card.licence or d.store.licence for d in run.datasets},
        "recipe": recipe_identity(recipe),
    }
    (folder / TRAINED).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def warn_of_space(folder: Path, size: int, steps: int, keep: Keep) -> None:
    """Tell before training that the disk is too small for what the run will write.

    Args:
        folder: of the checkpoints.
        size: bytes of one checkpoint.
        steps: of the run.
        keep: the policy.
    """
    milestones = steps // keep.every if keep.every else 0
    count = keep.last + keep.best + milestones + 1  # one more while the newest is written
    used = sum(file.stat().st_size for file in folder.glob("step-*/*"))
    free = free_bytes(folder)
    if size * count > used + free:
        logger.warning(
            "the disk of %s has %s free, but up to %d checkpoints of %s are planned: lower "
            "train.keep_last or train.keep_best, or set an output on a larger disk",
            folder,
            in_words(free),
            count,
            in_words(size),
        )
