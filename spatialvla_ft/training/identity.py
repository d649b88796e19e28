"""What must not change between a run and its continuation, and what differs where it did."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..actions.grid_io import grid_to_dict
from .recipe import Recipe

if TYPE_CHECKING:
    from .run import Run

MAY_CHANGE = {
    "output",
    "model.base",  # where it lies; its fingerprint must stay
    "data.workers",
    "data.depth.cache",
    "data.depth.batch_size",
    "data.depth.cache_gb",
    "data.depth.checkpoint",  # likewise
    "train.batch_size",  # as long as the global batch stays
    "train.gradient_accumulation",
    "train.threads",
    "train.activation_checkpointing",
    "train.sharding",
    "train.deepspeed",
    "train.log_every",
    "train.save_every",
    "train.keep_last",
    "train.keep_best",
    "train.keep_every",
    "train.result",
    "train.validate_every",
    "train.validate_samples",
    "train.trackers",
    "train.loss_guard",
}
"""Fields of a recipe that a continued run may have otherwise."""

_TOLERANCE = 1e-6  # relative; another machine may compute statistics with other last bits


def identity(run: Run, world: int) -> dict[str, Any]:
    """What a run is, as {dotted name: plain value}; equal for a run and its continuation.

    Args:
        run: from `build`.
        world: number of ranks.
    """
    processor = run.processor
    facts = {
        "base fingerprint": run.base_fingerprint,
        "frames": {dataset.name: len(dataset) for dataset in run.datasets},
        "weights": list(run.weights),
        "statistics": {d.name: processor.statistics[d.name] for d in run.datasets},
        "grid": grid_to_dict(processor.grid),
        "depth fingerprint": None if run.depth is None else run.depth.estimator.fingerprint,
        "global batch": global_batch(run.recipe, world),
    }
    return {**recipe_identity(run.recipe), **flat(facts)}


def recipe_identity(recipe: Recipe) -> dict[str, Any]:
    """The part of the identity that a recipe tells before anything is built."""
    content = recipe.model_dump(mode="json")
    if recipe.data.depth.source == "estimate":
        content["data"]["depth"] = "estimate"  # whether it is kept shows in the fingerprint
    fields = flat(content)
    return {name: value for name, value in fields.items() if not _may_change(name)}


def global_batch(recipe: Recipe, world: int) -> int:
    """Samples per step of the optimiser, over all ranks."""
    return world * recipe.train.batch_size * recipe.train.gradient_accumulation


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """'name: old in the checkpoint, new now' of every field that differs."""
    lines = []
    for name in dict.fromkeys([*saved, *now]):  # what the recipe says comes before what follows
        old, new = saved.get(name, "absent"), now.get(name, "absent")
        if not _same(old, new):
            lines.append(f"{name}: {old!r} in the checkpoint, {new!r} now")
    return lines


def check_same_run(checkpoint: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Whether a checkpoint is of this run.

    Raises:
        ValueError: it is not; the fields that differ are named with both values.
    """
    lines = differences(saved, now)
    if not lines:
        return
    shown = lines[:8] + ([f"and {len(lines) - 8} more"] if len(lines) > 8 else [])
    cures = ["Restore the recipe, or use another output folder"]
    if any(line.startswith("train.steps:") for line in lines):
        cures.append(
            "the schedule is laid out over train.steps, so a run cannot be made longer or shorter "
            "half way: start a new one with its final/ as model.base"
        )
    if any(line.startswith("global batch:") for line in lines):
        cures.append("ranks x train.batch_size x train.gradient_accumulation must stay the same")
    if any(line.startswith(("frames.", "statistics.")) for line in lines):
        cures.append("the data, its card, or data.action_range is not what it was")
    raise ValueError(
        f"{checkpoint} is of another run than this recipe describes:\n  "
        + "\n  ".join(shown)
        + "\n"
        + "; ".join(cures)
    )


def _may_change(name: str) -> bool:
    parts = name.split(".")
    of_dataset = parts[:2] == ["data", "datasets"] and parts[3:] == ["path"]
    beginnings = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return of_dataset or bool(beginnings & MAY_CHANGE)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists as {dotted name: value}; empty ones stand for themselves."""
    if isinstance(value, dict | list | tuple) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found: dict[str, Any] = {}
        for key, part in items:
            found |= flat(part, f"{name}.{key}" if name else str(key))
        return found
    return {name: [] if value == () else value}


def _same(old: Any, new: Any) -> bool:
    if (old, new) in ((None, "absent"), ("absent", None)):
        return True  # a field that recipes did not have, and that says nothing
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=_TOLERANCE, abs_tol=1e-12)
    return old == new
