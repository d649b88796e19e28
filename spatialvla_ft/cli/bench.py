"""`spatialvla-ft bench`: how fast prediction, training and the codec are on this machine."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatialvla_ft.cli.options import AsJson

if TYPE_CHECKING:
    from spatialvla_ft.bench.figures import Figure, Report


class Part(StrEnum):
    """What is measured."""

    predict = "predict"
    train_logits = "train-logits"
    train_step = "train-step"
    codec = "codec"
    depth = "depth"
    data = "data"
    video = "video"
    graphs = "graphs"
    flex = "flex"
    gpu = "gpu"


class Size(StrEnum):
    """Of the model; random weights."""

    tiny = "tiny"
    hundred_million = "100m"
    four_billion = "4b"


class Device(StrEnum):
    """Where it runs."""

    cpu = "cpu"
    cuda = "cuda"


def bench(
    parts: Annotated[
        list[Part] | None, typer.Argument(help="What to measure; everything if not given.")
    ] = None,
    size: Annotated[
        Size | None,
        typer.Option(
            help="100m is about 100 M parameters without ZoeDepth; 4b the real one. tiny if not "
            "given; of gpu, 4b."
        ),
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="Where to measure. cpu if not given; of gpu, cuda.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds, taken in turns.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the numbers here as JSON; gpu, if not given, to runs/gpu/."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write how the cost of data grows here, as PNG.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure speed side by side in one run, with random weights; no files are needed.

    `gpu` stands alone: what wants a GPU, each part in a process and with a limit of its own, and
    the tests marked gpu, in at most nine minutes. Exit code 1 if a part failed, 0 without a GPU.

    Example: spatialvla-ft bench predict --size 100m --out bench.json
    """
    from spatialvla_ft.cli.bench_gpu import OUT, measure_gpu
    from spatialvla_ft.cli.console import fail_with

    with fail_with():
        if parts is not None and Part.gpu in parts:
            if len(parts) > 1 or plot is not None:
                raise ValueError("gpu runs parts of its own and draws nothing: give it alone")
            measure_gpu(
                out or OUT,
                size=(size or Size.four_billion).value,
                device=(device or Device.cuda).value,
                rounds=rounds,
                as_json=as_json,
            )
            return
        chosen = parts or [part for part in Part if part is not Part.gpu]
        size, device = size or Size.tiny, device or Device.cpu
        reports = [_measure(part, size, device, rounds, plot) for part in chosen]
        result = {"reports": [report.to_dict() for report in reports]}
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(result))
        return
    for report in reports:
        _show(report)


def _measure(part: Part, size: Size, device: Device, rounds: int, plot: Path | None) -> Report:
    """A part's report; what a part does not need is not imported, since a machine may lack it."""
    if part is Part.codec:
        from spatialvla_ft.bench.codec import bench_codec

        return bench_codec(rounds=rounds)
    if part is Part.data:
        from spatialvla_ft.bench.data import bench_data

        return bench_data(rounds=rounds, plot=plot)
    if part is Part.video:
        from spatialvla_ft.bench.video import bench_video

        return bench_video(rounds=rounds)
    if part is Part.predict:
        from spatialvla_ft.bench.predict import bench_predict as measure
    elif part is Part.train_logits:
        from spatialvla_ft.bench.train_logits import bench_train_logits as measure
    elif part is Part.train_step:
        from spatialvla_ft.bench.train_step import bench_train_step as measure
    elif part is Part.graphs:
        from spatialvla_ft.bench.kernels import bench_graphs as measure
    elif part is Part.flex:
        from spatialvla_ft.bench.kernels import bench_flex as measure
    else:
        from spatialvla_ft.bench.depth import bench_depth as measure
    return measure(size.value, device=device.value, rounds=rounds)


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    settings = ", ".join(
        f"{name} {value}" for name, value in report.settings.items() if not isinstance(value, dict)
    )
    table = Table(title=f"{report.part}: {settings}")
    for column, justify in (("", "left"), ("median", "right"), ("least to greatest", "right")):
        table.add_column(column, justify=justify)
    table.add_column("what it counts", overflow="fold")
    for figure in report.figures:
        table.add_row(figure.name, _value(figure), _spread(figure), figure.counts)
    console = Console()
    console.print(table)
    for note in report.notes:
        console.print(f"note: {note}", highlight=False)


def _value(figure: Figure) -> str:
    return "unmeasured" if figure.value is None else f"{figure.value:.4g} {figure.unit}".strip()


def _spread(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{figure.low:.4g} to {figure.high:.4g}"
