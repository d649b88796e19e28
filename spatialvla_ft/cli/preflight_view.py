"""The pre-flight report in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from spatialvla_ft.training.preflight.datasets import DatasetFacts
    from spatialvla_ft.training.preflight.report import Preflight
    from spatialvla_ft.training.preflight.samples import SampleFacts

SAMPLES = 2
UNIT = 12
"""Letters of a unit that are shown."""
MANY_DATASETS = 4
"""More datasets are listed in one line each."""


def show_preflight(report: Preflight, console: Console, *, problems: bool = True) -> None:
    """Print the report, what is wrong last; `problems` may be left to the error that they make."""
    if len(report.datasets) > MANY_DATASETS:
        console.print(_mixture(report.datasets))
    else:
        for dataset in report.datasets:
            console.print(_dataset(dataset))
    for sample in report.samples[:SAMPLES]:
        console.print(_sample(sample))
    console.print(_groups(report))
    console.print(_plan(report))
    for text in report.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)
    for text in report.problems if problems else ():
        console.print(Text.assemble(("problem: ", "bold red"), text), soft_wrap=True)


def _table(title: str, *columns: str, right: tuple[int, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i in right else "left")
    return table


def _line(facts: DatasetFacts) -> str:
    rate = "rate unknown" if facts.control_hz is None else f"{facts.control_hz:g} Hz"
    return (
        f"{facts.episodes:,} episodes, {facts.frames:,} frames, {facts.heldout:,} episodes held "
        f"out, {facts.share:.1%} of each batch, {rate}"
    )


def _dataset(facts: DatasetFacts) -> Group:
    actions = _table("", "action", "unit", "-1 is", "1 is", "outside", "", right=(2, 3, 4))
    for one in facts.dimensions:
        low, high = (f"{v:.3g}" if v is not None else "" for v in (one.q01, one.q99))
        unit = one.unit.partition(",")[0][:UNIT]
        actions.add_row(one.name, unit, low, high, f"{one.outside:.1%}", one.note)
    lines = [Text.assemble((facts.name, "bold"), f": {_line(facts)}")]
    lines += [
        Text(
            f"  camera {camera.name}: {camera.width} x {camera.height}, "
            f"{camera.field_of_view:.0f} degrees wide, K {camera.intrinsics}"
        )
        for camera in facts.cameras
    ]
    bad = sum(facts.not_finite.values())
    lines.append(Text(f"  depth: {facts.depth}"))
    lines.append(Text(f"  NaN or infinite: {bad or 'none'} (of {facts.steps_read:,} steps read)"))
    lines += [Text(f"  {note}") for note in facts.notes]
    return Group(*lines, actions)


def _mixture(datasets: list[DatasetFacts]) -> Table:
    table = _table(
        "Datasets", "name", "share", "episodes", "frames", "held out", "Hz", "K", "outside",
        right=(1, 2, 3, 4, 5, 7),
    )  # fmt: skip
    for facts in datasets:
        worst = max(facts.dimensions, key=lambda one: one.outside)
        table.add_row(
            facts.name,
            f"{facts.share:.2%}",
            f"{facts.episodes:,}",
            f"{facts.frames:,}",
            f"{facts.heldout:,}",
            "?" if facts.control_hz is None else f"{facts.control_hz:g}",
            ", ".join(sorted({camera.intrinsics for camera in facts.cameras})),
            f"{worst.name} {worst.outside:.1%}",
        )
    return table


def _sample(facts: SampleFacts) -> Group:
    where = f"{facts.dataset}, episode {facts.episode}, step {facts.step}"
    lines = [
        Text.assemble((f"A sample of the first batch: {where}", "bold")),
        Text(f"  prompt  {facts.prompt!r}"),
    ]
    lines += [
        Text(
            f"  picture {camera}: mean {seen['mean']:.2f}, spread {seen['std']:.2f}, from "
            f"{seen['min']:.2f} to {seen['max']:.2f}"
        )
        for camera, seen in facts.pictures.items()
    ]
    if facts.depth is not None:
        lines.append(
            Text(
                f"  depth   median {facts.depth['median']:.2f} m, {facts.depth['unknown']:.0%} "
                "unknown"
            )
        )
    # A line per dimension: two arms would not fit into 80 columns side by side.
    table = _table("", "first action", "recorded", "label tokens say", right=(1, 2))
    for name, recorded, decoded in zip(
        facts.names, facts.recorded[0], facts.decoded[0], strict=True
    ):
        table.add_row(f"  {name}", f"{recorded:.4g}", f"{decoded:.4g}")
    return Group(*lines, table)


def _groups(report: Preflight) -> Table:
    table = _table(
        "Parameters", "part", "all", "trained", "share", "in adapters", right=(1, 2, 3, 4)
    )
    for group in report.groups:
        trained = group.trained + group.adapters
        table.add_row(
            group.name,
            f"{group.total:,}",
            f"{group.trained:,}" if group.trained else "-",
            f"{trained / max(1, group.total):.1%}" if trained else "-",
            f"{group.adapters:,}" if group.adapters else "-",
        )
    total = sum(group.total for group in report.groups)
    own, adapters = (sum(getattr(g, n) for g in report.groups) for n in ("trained", "adapters"))
    table.add_row(
        "all", f"{total:,}", f"{own:,}", f"{(own + adapters) / total:.1%}", f"{adapters:,}"
    )
    return table


def _plan(report: Preflight) -> Table:
    table = Table(title="Plan", title_justify="left", title_style="bold", box=None, pad_edge=False,
                  show_header=False)  # fmt: skip
    for name, words in report.plan.items():
        table.add_row(name, words)
    if report.memory is not None:
        planned, there = (report.memory[n] / 2**30 for n in ("planned", "available"))
        table.add_row(
            "memory",
            f"{planned:.2f} GiB of tensors planned; {report.memory['device']} has {there:.1f} GiB "
            "for them",
        )
    return table
