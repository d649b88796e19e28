"""Planned memory of a run beside what this machine has, and what would make it fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatialvla_ft.training.recipe import Recipe
    from spatialvla_ft.training.run import Run

LARGE = 100_000_000
"""Parameters from which a plan is worth its seconds even on a CPU."""


def planned_memory(run: Run, *, always: bool) -> dict[str, Any] | None:
    """{"planned", "available": bytes, "device": name} of this process, or None.

    Small models on a CPU are not worth the seconds that a plan takes; four-bit layers cannot be
    planned.

    Args:
        run: from `build`.
        always: plan small models on a CPU too.
    """
    import torch

    from spatialvla_ft.memory.plan import MARGIN, plan_memory
    from spatialvla_ft.training.global_batch import process_count

    on_gpu = torch.cuda.is_available()
    large = sum(p.numel() for p in run.model.parameters()) > LARGE
    if not (always or on_gpu or large) or run.recipe.model.quantisation is not None:
        return None
    plan = plan_memory(run.recipe, run.spatialvla.config).on_gpus(process_count(), "none")
    device, memory = "this machine", free_host()
    if on_gpu:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        device, memory = properties.name, properties.total_memory
    if memory is None:
        return None
    return {
        "planned": plan.peak,
        "available": int(MARGIN * memory),
        "device": device,
        "parts": plan.at_peak,
    }


def free_host() -> int | None:
    """Bytes of the host's memory that a process can still get; None where the system is silent."""
    known = Path("/proc/meminfo")
    if not known.is_file():
        return None
    line = next(x for x in known.read_text().splitlines() if x.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


GIB = 2**30


def plan_beside_machine(recipe: Recipe, base: Path) -> dict[str, Any]:
    """{"peak", "parts", "available": bytes or None, "device", "fits", "advice": overrides or None}.

    Four-bit weights are not planned; their "peak" is None.

    Args:
        recipe: what is trained.
        base: folder of its base.
    """
    from spatialvla_ft.memory.advice import first_that_fits
    from spatialvla_ft.memory.plan import PROMPT_TOKENS, plan_memory
    from spatialvla_ft.memory.workloads import config_of
    from spatialvla_ft.training.global_batch import with_accumulation

    recipe = with_accumulation(recipe, 1)
    local = recipe.model.model_copy(update={"base": str(base)})
    recipe = recipe.model_copy(update={"model": local})
    device, available = _machine()
    if recipe.model.quantisation is not None:
        return {"peak": None, "device": device, "available": available, "fits": True}
    config = config_of(recipe)
    plan = plan_memory(recipe, config)
    fits = available is None or plan.fits(available)
    found: dict[str, Any] = {
        "peak": plan.peak,
        "parts": plan.at_peak,
        "device": device,
        "available": available,
        "fits": fits,
        "advice": None,
    }
    if not fits and available is not None:
        advice = first_that_fits(recipe, config, available, prompt_tokens=PROMPT_TOKENS)
        found["advice"] = None if advice is None else advice[0]
    return found


def in_words(found: dict[str, Any]) -> tuple[str, list[str]]:
    """(line for people, warnings)."""
    has = "" if found["available"] is None else f" has {found['available'] / GIB:.1f} GiB"
    if found["peak"] is None:
        return f"memory: four-bit weights are not planned; {found['device']}{has}", []
    line = f"memory: {found['peak'] / GIB:.2f} GiB of tensors planned; {found['device']}{has}"
    if found["fits"]:
        return line, []
    cure = "more GPUs, or a GPU with more memory, are needed"
    if found["advice"] is not None:
        cure = f"it would fit with {' '.join(found['advice'])}"
    return line, [f"{line}, a tenth of which is left free: too little; {cure}"]


def _machine() -> tuple[str, int | None]:
    """Name and bytes of the device that trains."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return properties.name, int(properties.total_memory)
    return "the CPU", free_host()
