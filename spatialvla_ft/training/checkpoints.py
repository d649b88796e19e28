"""Checkpoints that resume: trainable weights, optimiser, schedule, and one integer for the data.

A checkpoint appears whole or not at all: it is written beside its place and renamed. Randomness and
data order are functions of (seed, step), so neither needs a state of its own.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

logger = logging.getLogger(__name__)

PREFIX = "step-"
STATE = "state.json"


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trainable parameters by name."""
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    *,
    keep_last: int,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write the checkpoint after `step` completed steps and drop the oldest ones.

    Raises:
        OSError: disk full or folder read-only; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{step:08d}"
    scratch = folder / f".{final.name}.{os.getpid()}"
    try:
        scratch.mkdir()
        tensors = {n: t.contiguous().cpu() for n, t in trainable_state(model).items()}
        save_file(tensors, str(scratch / "trainable.safetensors"))
        states = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        torch.save(states, scratch / "optimizer.pt")
        (scratch / STATE).write_text(json.dumps({"step": step, **(extra or {})}) + "\n")
        for file in scratch.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if final.exists():
            shutil.rmtree(final)
        scratch.rename(final)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    for old in all_checkpoints(folder)[:-keep_last]:
        shutil.rmtree(old)
    return final


def all_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.glob(f"{PREFIX}*") if (p / STATE).is_file())


def step_of(checkpoint: Path) -> int:
    """Completed steps of a checkpoint."""
    return int(json.loads((checkpoint / STATE).read_text())["step"])


def load(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    *,
    expected: dict[str, Any] | None = None,
) -> int:
    """Restore a checkpoint in place; returns the number of completed steps.

    Raises:
        ValueError: it belongs to another run (other parameters, or another recipe).
    """
    state = json.loads((checkpoint / STATE).read_text())
    for key, value in (expected or {}).items():
        if state.get(key) != value:
            raise ValueError(
                f"{checkpoint} was written with {key} {state.get(key)!r}, this run has {value!r}: "
                "the recipe changed. Use another output folder, or restore the recipe"
            )
    saved = load_file(str(checkpoint / "trainable.safetensors"))
    own = trainable_state(model)
    if set(saved) != set(own):
        differ = sorted(set(saved) ^ set(own))[:4]
        raise ValueError(
            f"{checkpoint} holds other trainable parameters than this run, e.g. {differ}; the "
            "recipe changed. Use another output folder, or restore the recipe"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])
    states = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(states["optimizer"])
    scheduler.load_state_dict(states["scheduler"])
    return int(state["step"])
