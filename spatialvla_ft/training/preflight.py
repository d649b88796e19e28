"""The report before the first step: what will be learnt, by what, and whether it makes sense.

What makes a run senseless stops it, all of it at once; what is merely suspicious warns.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .batches import epoch_words
from .global_batch import process_count
from .identity import global_batch
from .parameter_groups import ParameterGroup, parameter_groups
from .preflight_data import DatasetFacts, dataset_facts, read_some
from .preflight_grid import GridFacts, grid_facts
from .preflight_samples import SampleFacts, first_samples
from .recipe import RecipeError
from .run import Run

SHOWN = 3
FILE = "preflight.json"


class PreflightError(RecipeError):
    """A run that makes no sense; the message lists every reason."""


@dataclass(frozen=True)
class Preflight:
    """What was found before the first step.

    Attributes:
        datasets: what is learnt from.
        samples: of the first batch; checked ones beyond the first few are left out.
        grid: how the grid suits the data, or None where no action could be read.
        groups: parameters of the model by part.
        plan: precision, schedule, batch, LoRA, in words by name.
        memory: planned bytes beside what there is, or None where nothing was planned.
        problems: why the run must not start.
        warnings: what is suspicious.
        seconds: what looking took.
    """

    datasets: list[DatasetFacts]
    samples: list[SampleFacts]
    grid: GridFacts | None
    groups: list[ParameterGroup]
    plan: dict[str, str]
    memory: dict[str, Any] | None
    problems: list[str]
    warnings: list[str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def refuse(self) -> None:
        """PreflightError with every problem, if there is one."""
        if self.problems:
            raise PreflightError(
                f"{len(self.problems)} problem(s) make this run senseless:\n"
                + "\n".join(f"- {problem}" for problem in self.problems)
            )


def preflight(run: Run, *, memory: dict[str, Any] | None = None) -> Preflight:
    """Look at a run before it starts; reads some episodes of each dataset and a few samples.

    Args:
        run: from `build`.
        memory: {"planned", "available": bytes, "device": name}, if it was planned.
    """
    began = time.perf_counter()
    seen = [read_some(dataset) for dataset in run.datasets]
    datasets = [dataset_facts(run, i, some) for i, some in enumerate(seen)]
    samples = first_samples(run, world=process_count())
    problems = _each([*datasets, *samples], "problems")
    warnings = _each([*datasets, *samples], "warnings")
    groups = parameter_groups(run.model)
    if not any(group.trained or group.adapters for group in groups):
        problems.append("nothing is trained: every parameter stays as it is (train.only, freeze)")
    if not run.heldout:
        warnings.append(
            "no episode is held out, so nothing will tell overfitting or collapse; set data.holdout"
        )
    frames = sum(one.frames for one in datasets)
    grid = grid_facts(run, [some.finite for some in seen], frames)
    warnings += [] if grid is None else grid.warnings
    batch = global_batch(run.recipe, process_count())
    if frames and batch > frames:
        warnings.append(
            f"a step takes {batch:,} samples, and there are {frames:,} frames: each step sees "
            "every frame at least once; lower train.batch_size or train.global_batch"
        )
    if memory is not None and memory["planned"] > memory["available"]:
        warnings.append(
            f"{memory['planned'] / 2**30:.1f} GiB of tensors are planned, {memory['device']} has "
            f"{memory['available'] / 2**30:.1f} GiB for them; `spatialvla-ft plan-memory` says "
            "what would fit"
        )
    return Preflight(
        datasets,
        samples[:SHOWN],
        grid,
        groups,
        _plan(run, grid),
        memory,
        problems,
        warnings,
        time.perf_counter() - began,
    )


def _each(parts: Iterable[Any], what: str) -> list[str]:
    return list(dict.fromkeys(text for part in parts for text in getattr(part, what)))


def _plan(run: Run, grid: GridFacts | None) -> dict[str, str]:
    """The optimisation in words."""
    recipe, train = run.recipe, run.recipe.train
    world = process_count()
    total = world * train.batch_size * train.gradient_accumulation
    plan = {
        "steps": f"{train.steps:,}, validation every {train.validate_every:,}, checkpoint every "
        f"{train.save_every:,}",
        "batch": f"{total:,} samples a step = {train.batch_size} at once x "
        f"{train.gradient_accumulation} accumulated x {world} process(es)",
        "epoch": epoch_words(run, world),
        "learning rate": f"{train.learning_rate:g}, {train.schedule}, {train.warmup:.1%} warm-up",
        "precision": train.precision
        + (", activations recomputed" if train.activation_checkpointing else ""),
        "gradient": f"clipped to a norm of {train.clip_norm:g}",
    }
    if grid is not None:
        used = ", ".join(f"{n:,} of {of:,} {name}" for name, (n, of) in grid.used.items())
        plan["grid"] = f"{grid.kind}, {grid.tokens:,} tokens (in use {used}), loses {grid.loss:.3g}"
    if recipe.lora is not None:
        rank = recipe.lora.rank
        alpha = rank if recipe.lora.alpha is None else recipe.lora.alpha
        plan["LoRA"] = f"rank {rank}, alpha {alpha:g}: updates are scaled by {alpha / rank:g}"
        if alpha / rank < 0.5:
            plan["LoRA"] += " (weak: the robot may barely move)"
    return plan
