"""Samples per optimiser step: a recipe states them, the accumulation follows from the machine."""

from __future__ import annotations

import os

from .recipe import Recipe, RecipeError


def process_count() -> int:
    """How many processes train together, as `accelerate launch` and `torchrun` tell each one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the one that speaks for all."""
    return int(os.environ.get("RANK", "0")) == 0


def with_accumulation(recipe: Recipe, processes: int) -> Recipe:
    """The recipe with the accumulation that makes its global batch; itself where it states none.

    global_batch = batch_size x gradient_accumulation x processes.

    Raises:
        RecipeError: no whole number does, or the recipe states another one.
    """
    train = recipe.train
    if train.global_batch is None:
        return recipe
    at_once = train.batch_size * processes
    shown = f"train.batch_size {train.batch_size} x {processes} process(es)"
    if "gradient_accumulation" in train.model_fields_set:
        stated = at_once * train.gradient_accumulation
        if stated != train.global_batch:
            raise RecipeError(
                f"train.global_batch is {train.global_batch}, but {shown} x "
                f"train.gradient_accumulation {train.gradient_accumulation} = {stated}; leave "
                "gradient_accumulation out, and it follows from the others"
            )
        return recipe
    if train.global_batch % at_once:
        share = train.global_batch / processes
        fitting = [n for n in range(1, int(share) + 1) if train.global_batch % (n * processes) == 0]
        near = min(fitting, key=lambda n: abs(n - train.batch_size), default=None)
        cure = (
            f"set train.batch_size={near}" if near else "use a number of processes that divides it"
        )
        raise RecipeError(
            f"train.global_batch {train.global_batch} is no multiple of {shown} = {at_once}: {cure}"
        )
    count = train.global_batch // at_once
    known = train.model_copy(update={"gradient_accumulation": count})
    return recipe.model_copy(update={"train": known})
