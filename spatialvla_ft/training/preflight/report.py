"""The report before the first step: what will be learnt, by what, and whether it makes sense.

What makes a run senseless stops it, all of it at once; what is merely suspicious warns.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ..batches import epoch_words
from ..depth_plan import WORTH, DepthPlan
from ..distributed import trains_on_cpu
from ..global_batch import process_count
from ..identity import global_batch
from ..recipe import RecipeError
from ..run import Run
from ..step_cost import NO_SLOWER, DepthShare, bf16_beside_float32, depth_share, workers_here
from ..trainable import ParameterGroup, parameter_groups
from .datasets import DatasetFacts, dataset_facts, read_some
from .grid import GridFacts, grid_facts
from .samples import SampleFacts, first_samples

SHOWN = 3
FILE = "preflight.json"
MUCH = 0.3
"""Share of a step's time that is worth a warning where nothing is learnt in it."""


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
    plan = _plan(run, grid)
    if not problems:
        words, suspicious = _costs(run)
        plan |= words
        warnings += suspicious
    return Preflight(
        datasets,
        samples[:SHOWN],
        grid,
        groups,
        plan,
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


def _costs(run: Run) -> tuple[dict[str, str], list[str]]:
    """(plan, warnings) of what takes time without need, as measured here."""
    words, warnings = {}, []
    if run.depth_plan is not None:
        words["depth"], warning = _depth_words(run.depth_plan, depth_share(run))
        warnings += [warning] if warning else []
    asked = run.recipe.data.workers
    if (used := workers_here(asked)) < asked:
        words["workers"] = f"{used} read data, not {asked}: there are no cores for more"
    if run.recipe.train.precision == "bf16" and trains_on_cpu():
        ratio = bf16_beside_float32(run.spatialvla.config.text_config.hidden_size)
        words["precision"] = f"bf16, {ratio:.2g} times as long as float32 on this processor"
        if ratio > NO_SLOWER:
            warnings.append(
                f"bf16 products take {ratio:.1f} times as long as those of float32 on this "
                "processor (measured), and are less exact: set train.precision=float32"
            )
    return words, warnings


def _depth_words(plan: DepthPlan, cost: DepthShare | None) -> tuple[str, str]:
    """(what the plan says, a warning or nothing)."""
    times = f"{plan.looks:,} times"
    if plan.cached:
        words = f"each of {plan.pictures:,} pictures is estimated once, not {times} in all"
        if cost is not None:
            once, always = plan.pictures * cost.depth, plan.looks * cost.depth
            words += (
                f": {_duration(once)} before the first step here, instead of {_duration(always)}, "
                f"{cost.share:.0%} of every step"
            )
        return f"{words}; kept in {plan.folder}, at most {plan.bytes / 1e9:.2g} GB", ""
    words = f"ZoeDepth runs in every forward pass, {times} for {plan.pictures:,} pictures"
    if cost is not None:
        words += f", {cost.share:.0%} of the time of a step here"
    words += f": {plan.why}"
    if cost is None or cost.share < MUCH:
        return words, ""
    saves = "data.depth=sensor saves it where the data has depth"
    if plan.looks >= WORTH * plan.pictures:
        saves = "'data.depth={source: estimate, cache: DIR}' estimates each picture once"
    return words, (
        f"{cost.share:.0%} of the time of a step is ZoeDepth ({1000 * cost.depth:.0f} ms a "
        f"picture): {plan.why}; {saves} (docs/depth.md)"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
