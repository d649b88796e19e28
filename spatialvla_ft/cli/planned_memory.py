"""Planned memory beside what this machine has for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

    from spatialvla_ft.bench.memory_plan import MARGIN, plan_memory
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
