"""What to change in a recipe that does not fit, each change planned like the recipe itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..models.configuration_spatialvla import SpatialVLAConfig
from ..training.recipe import Recipe
from .plan import MemoryPlan, Sharding, plan_memory


def cheaper_recipes(recipe: Recipe) -> Iterator[tuple[list[str], Recipe]]:
    """Recipes that need less, with the overrides that make them; what changes least comes first.

    The same samples make a step in all of them: half the batch goes with twice the accumulation.
    """
    content = recipe.model_dump(mode="json")
    train = content["train"]
    overrides: list[str] = []

    def changed(**values: Any) -> tuple[list[str], Recipe]:
        train.update(values)
        overrides.extend(f"train.{name}={_yaml(value)}" for name, value in values.items())
        return list(overrides), Recipe.model_validate(content)

    if not train["activation_checkpointing"]:
        yield changed(activation_checkpointing=True)
    while train["batch_size"] > 1:
        half = train["batch_size"] // 2
        before = [o for o in overrides if "batch_size" not in o and "accumulation" not in o]
        overrides[:] = before
        yield changed(batch_size=half, gradient_accumulation=train["gradient_accumulation"] * 2)
    if train["precision"] == "float32":
        yield changed(precision="bf16")
    if content["lora"] is None and content["model"]["base"] is not None:
        content["lora"] = {"rank": 32}
        train["freeze"] = None
        overrides.append("lora.rank=32")
        yield changed()


def first_that_fits(
    recipe: Recipe,
    config: SpatialVLAConfig,
    memory: int,
    *,
    gpus: int = 1,
    sharding: Sharding = "none",
    prompt_tokens: int,
) -> tuple[list[str], MemoryPlan] | None:
    """The smallest change that makes a recipe fit, and its plan; None if there is none."""
    for overrides, cheaper in cheaper_recipes(recipe):
        plan = plan_memory(cheaper, config, prompt_tokens=prompt_tokens).on_gpus(gpus, sharding)
        if plan.fits(memory):
            return overrides, plan
    return None


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
