"""`spatialvla-ft plan-memory`: what a recipe will need, before it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatialvla_ft.cli.options import AsJson

if TYPE_CHECKING:
    from rich.table import Table

    from spatialvla_ft.memory.plan import Measurement, MemoryPlan

UNITS = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9}


def plan_memory(
    recipe: Annotated[
        Path, typer.Argument(help="YAML file, or a name that `spatialvla-ft recipes` lists.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value, as many as needed.")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Plan for these sizes instead of the recipe's model: released, 100m."),
    ] = None,
    work: Annotated[
        str, typer.Option(help="train, or predict (a batch of train.batch_size prompts).")
    ] = "train",
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the longest instruction.")
    ] = 24,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs; each takes train.batch_size.")] = 1,
    sharding: Annotated[
        str, typer.Option(help="none copies the model to each GPU, fsdp divides it.")
    ] = "none",
    gpu_memory: Annotated[
        str | None, typer.Option(help="Memory of one GPU, e.g. 80GiB: say whether the run fits.")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Also run it on the CPU, with random weights, and compare."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Peak tensor memory of a GPU: parameters, gradients, optimiser, activations, logits, cache.

    Nothing is loaded or allocated. Exit code 1 if --gpu-memory is given and is not enough.

    Example: spatialvla-ft plan-memory adapt_lora --sizes released --gpu-memory 80GiB
    """
    from spatialvla_ft.cli.console import fail_with

    with fail_with():
        from spatialvla_ft.memory import plan as bench
        from spatialvla_ft.memory.advice import first_that_fits
        from spatialvla_ft.memory.workloads import config_of
        from spatialvla_ft.training.global_batch import with_accumulation
        from spatialvla_ft.training.recipe import load_recipe

        if work not in ("train", "predict"):
            raise ValueError(f"--work is train or predict, got {work!r}")
        memory = None if gpu_memory is None else _bytes(gpu_memory)
        checked = with_accumulation(load_recipe(recipe, overrides or []), gpus)
        config = config_of(checked, {"released": "4b"}.get(sizes or "", sizes))
        asked = {"work": work, "prompt_tokens": prompt_tokens}
        plan = bench.plan_memory(checked, config, **asked).on_gpus(gpus, sharding)
        measured = bench.measure_memory(checked, config, **asked) if measure else None
        fits = memory is None or plan.fits(memory)
        advice = None
        if not fits and work == "train":
            advice = first_that_fits(
                checked,
                config,
                memory,
                gpus=gpus,
                sharding=sharding,
                prompt_tokens=prompt_tokens,
            )
    report: dict[str, Any] = {**plan.to_dict(), "work": work, "gpus": gpus, "sharding": sharding}
    if measured is not None:
        report["measured_bytes"] = measured.peak
        report["planned_to_measured"] = plan.peak / measured.peak
        report["resident_bytes"] = measured.resident
    if memory is not None:
        report |= {"gpu_memory_bytes": memory, "fits": fits}
    if advice is not None:
        report["fits_with"] = {"overrides": advice[0], "peak_bytes": advice[1].peak}
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _show(recipe, plan, report, measured, config_says=sizes or str(checked.model.base or "new"))
    if not fits:
        raise typer.Exit(1)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([\d.]+)\s*(GiB|MiB|GB)", text)
    if found is None:
        raise ValueError(f"--gpu-memory is a number with GiB, MiB or GB, e.g. 80GiB; got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])


def _show(
    recipe: Path,
    plan: MemoryPlan,
    report: dict[str, Any],
    measured: Measurement | None,
    *,
    config_says: str,
) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True)
    console.print(_table(f"{recipe.name} ({config_says}), {report['work']}, one GPU", plan))
    if measured is not None:
        console.print(
            f"measured on the CPU: {_gib(measured.peak)}; planned / measured "
            f"{report['planned_to_measured']:.3f}"
        )
        if measured.resident is not None:
            console.print(
                f"resident memory of the process grew by {_gib(measured.resident)} (with what "
                "the allocator keeps and the profiler records)"
            )
    if "fits" not in report:
        return
    memory = _gib(report["gpu_memory_bytes"])
    if report["fits"]:
        console.print(f"fits {memory}, a tenth of it left for the context and fragmentation")
        return
    console.print(f"does not fit {memory}: nine tenths of it may be tensors")
    if "fits_with" in report:
        with_ = report["fits_with"]
        console.print(f"fits with {' '.join(with_['overrides'])}: {_gib(with_['peak_bytes'])}")
    else:
        console.print("no change of this recipe fits; more GPUs with --sharding fsdp may")


def _table(title: str, plan: MemoryPlan) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("at the peak")
    table.add_column("GiB", justify="right")
    for name, count in plan.at_peak.items():
        table.add_row(name, f"{count / 2**30:.2f}")
    table.add_section()
    table.add_row("all tensors", f"{plan.peak / 2**30:.2f}")
    return table


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
