"""Checkpoints that resume: written whole, verified when they are read, kept by a policy.

checkpoints/step-00000500/trainable.safetensors   what is trained
                          optimizer.safetensors   KIND/NAME, e.g. exp_avg/lm_head.weight
                          state.json              step, schedule, identity of the run, validation
                          manifest.json           sizes and checksums of the three
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import files
from .states import TrainingState

logger = logging.getLogger(__name__)

TRAINABLE, OPTIMIZER, STATE = "trainable.safetensors", "optimizer.safetensors", "state.json"
DAMAGED = ".damaged"
_NAME = re.compile(r"step-(\d{8,})")


class OutputError(OSError):
    """Something could not be written; the message says what is left and how to go on."""


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay.

    Attributes:
        last: this many of the newest.
        best: and this many with the lowest validation loss.
        every: and those of every so many steps.
    """

    last: int = 2
    best: int = 0
    every: int | None = None

    def of(self, losses: Mapping[int, float | None]) -> set[int]:
        """The steps that stay, of {step: validation loss}."""
        milestones = {step for step in losses if self.every and step % self.every == 0}
        return {*sorted(losses)[-self.last :], *ranking(losses)[: self.best], *milestones}


def ranking(losses: Mapping[int, float | None]) -> list[int]:
    """Steps that were validated, the lowest loss first; of equal ones the earlier."""
    known = [(loss, step) for step, loss in losses.items() if loss is not None]
    return [step for loss, step in sorted(known) if math.isfinite(loss)]


def save(
    folder: Path,
    state: TrainingState,
    *,
    keep: Keep,
    extra: Mapping[str, Any] | None = None,
    validation: float | None = None,
) -> Path:
    """Write a checkpoint, then drop those that need not stay.

    Args:
        folder: of all checkpoints of the run.
        state: whole tensors, on any device.
        keep: which checkpoints stay.
        extra: further content of `state.json`.
        validation: the validation loss at this step, if it is known.

    Raises:
        OutputError: disk full or folder read-only; earlier checkpoints are untouched.
    """
    place = place_of(folder, state.step)
    optimizer, plain = _split(state.optimizer["state"])
    content = {
        **(extra or {}),
        "step": state.step,
        "validation": validation,
        "scheduler": state.scheduler,
        "optimizer": {"param_groups": state.optimizer["param_groups"], "state": plain},
    }
    what = f"the checkpoint of step {state.step}"
    with writing(what, folder, state.nbytes), files.whole_folder(place) as scratch:
        _save_tensors(state.trainable, scratch / TRAINABLE)
        _save_tensors(optimizer, scratch / OPTIMIZER)
        (scratch / STATE).write_text(json.dumps(content) + "\n", encoding="utf-8")
        files.write_manifest(scratch)
    stay = keep.of(validations(folder)) | {state.step}
    for old in all_checkpoints(folder):
        if step_of(old) not in stay:
            shutil.rmtree(old, ignore_errors=True)
            if old.exists():
                logger.warning("%s could not be deleted", old)
    return place


def load(checkpoint: Path, *, verified: bool = False) -> tuple[TrainingState, dict[str, Any]]:
    """The state of a checkpoint, tensors on the CPU, and the content of its `state.json`.

    Args:
        checkpoint: its folder.
        verified: whether it was compared with its manifest already, by `newest`.

    Raises:
        DamagedError: it is not what was written; the file is named.
    """
    if not verified:
        files.verify(checkpoint)
    content = _content(checkpoint)
    named: dict[str, dict[str, Any]] = {
        n: dict(v) for n, v in content["optimizer"]["state"].items()
    }
    for key, tensor in load_file(str(checkpoint / OPTIMIZER)).items():
        kind, name = key.split("/", 1)
        named.setdefault(name, {})[kind] = tensor
    state = TrainingState(
        step=content["step"],
        trainable=load_file(str(checkpoint / TRAINABLE)),
        optimizer={"state": named, "param_groups": content["optimizer"]["param_groups"]},
        scheduler=content["scheduler"],
    )
    return state, content


def all_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first; whether they are sound is for `newest` to say."""
    if not folder.is_dir():
        return []
    return sorted(
        (p for p in folder.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)), key=step_of
    )


def place_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Completed steps of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def validation_of(checkpoint: Path) -> float | None:
    """The validation loss at a checkpoint's step; None where it is not known."""
    try:
        return _content(checkpoint)["validation"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stored_identity(checkpoint: Path) -> dict[str, Any]:
    """What the run of a checkpoint was, as `identity` says it; the checkpoint is not verified."""
    return dict(_content(checkpoint)["identity"])


def validations(folder: Path) -> dict[int, float | None]:
    """{step: validation loss} of all checkpoints."""
    return {step_of(place): validation_of(place) for place in all_checkpoints(folder)}


def best(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation loss; None where none was validated."""
    ranked = ranking(validations(folder))
    return place_of(folder, ranked[0]) if ranked else None


def is_among_best(folder: Path, step: int, validation: float, count: int) -> bool:
    """Whether a step with this validation loss would be one of the best, beside what is kept."""
    return step in ranking({**validations(folder), step: validation})[:count]


def newest(folder: Path) -> tuple[Path | None, list[files.DamagedError]]:
    """The newest sound checkpoint, and what is wrong with newer ones.

    Raises:
        DamagedError: there are checkpoints, but none of them is sound.
    """
    damaged: list[files.DamagedError] = []
    found = all_checkpoints(folder)
    for checkpoint in reversed(found):
        try:
            files.verify(checkpoint)
        except files.DamagedError as error:
            damaged.append(error)
            continue
        return checkpoint, damaged
    if found:
        every = "; ".join(str(error) for error in damaged)
        raise files.DamagedError(
            f"none of the checkpoints in {folder} is sound: {every}. Bring one back from a copy, "
            "or start over with --fresh, which moves the run aside"
        )
    return None, []


def set_aside(folder: Path, sound: int) -> list[Path]:
    """Rename the damaged checkpoints of later steps than the sound one to `step-….damaged`."""
    moved = []
    for place in all_checkpoints(folder):
        if step_of(place) > sound:
            aside = place.with_name(place.name + DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            moved.append(place.rename(aside))
    return moved


def _content(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))


def _split(
    named: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors of an optimiser as {KIND/NAME: tensor}, plain values as {NAME: {KIND: value}}."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, values in named.items():
        for kind, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{kind}/{name}"] = value
            else:
                plain.setdefault(name, {})[kind] = value
    return tensors, plain


def _save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, str(file))


@contextmanager
def writing(what: str, folder: Path, size: int | None = None) -> Iterator[None]:
    """Tell of failed writes inside the block in words that help.

    Args:
        what: is being written.
        folder: of the run's checkpoints.
        size: bytes it needs, if they are known.

    Raises:
        OutputError: for an OSError, and for safetensors' own way to tell of one.
    """
    try:
        yield
    except OutputError:
        raise
    except (OSError, SafetensorError) as error:
        earlier = all_checkpoints(folder)
        left = (
            f"The last checkpoint is that of step {step_of(earlier[-1])}, {earlier[-1]}: the same "
            "command continues from it"
            if earlier
            else "There is no checkpoint yet: the same command starts from the beginning"
        )
        room = f"{in_words(free_bytes(folder))} are free there"
        if size is not None:
            room = f"It needs {in_words(size)}, {room}"
        raise OutputError(
            f"cannot write {what} to {folder.parent}: {error}. {room}. {left}. First make room (or "
            "keep less: train.keep_last, train.keep_best), or make the folder writable"
        ) from error


def free_bytes(place: Path) -> int:
    """Free bytes on the disk of a place that need not exist yet."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def in_words(count: float) -> str:
    """A number of bytes, e.g. "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
