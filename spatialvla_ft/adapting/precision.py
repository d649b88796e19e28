"""Whether bf16, which recipes ask for on behalf of GPUs, is worth it where a processor trains."""

from __future__ import annotations

import json
import platform

from spatialvla_ft.adapting.job import Job


def choose_precision(job: Job) -> tuple[str, list[str]]:
    """(precision, lines for people) of a training.

    What the command line gives stays. A recipe's bf16 is measured on the processor that trains, and
    gives way to float32 where it is slower; the choice is kept with the job, so that a busy moment
    does not turn an adaptation into another one.
    """
    from spatialvla_ft.models.configuration_spatialvla import SpatialVLAConfig
    from spatialvla_ft.training.distributed import trains_on_cpu
    from spatialvla_ft.training.step_cost import NO_SLOWER, bf16_beside_float32

    asked = job.recipe.train.precision
    given = job.origins.get(("train", "precision")) == "given"
    if asked != "bf16" or given or not trains_on_cpu():
        return asked, []
    processor = f"{platform.machine()} {platform.processor()}".strip()
    file = job.records / "bf16.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if kept.get("processor") != processor:
        width = SpatialVLAConfig.from_pretrained(job.base_folder).text_config.hidden_size
        kept = {"processor": processor, "bf16_beside_float32": bf16_beside_float32(width)}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    ratio = kept["bf16_beside_float32"]
    if ratio <= NO_SLOWER:
        return asked, [f"precision: bf16, {ratio:.2g} times as long as float32 on this processor"]
    return "float32", [
        f"precision: float32, because bf16 products, which the recipe asks for, take {ratio:.1f} "
        "times as long on this processor; train.precision=bf16 on the command line takes it anyway"
    ]
