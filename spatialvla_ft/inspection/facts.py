"""An inspection as tables of text, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spatialvla_ft.inspection.cameras import field_of_view
from spatialvla_ft.inspection.findings import percent
from spatialvla_ft.inspection.gripper import convention
from spatialvla_ft.inspection.look import Inspection

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
SENTENCES = 12
"""Instructions that are listed."""


def summary(seen: Inspection) -> str:
    """One sentence: how much there is, how much was looked at, and by which card."""
    looked = (
        "all of them looked at"
        if len(seen.episodes) == seen.num_episodes
        else f"{len(seen.episodes)} of them looked at, {len(seen.action):,} actions"
    )
    how = "a drafted card" if seen.draft else f"card {seen.card.name}"
    return (
        f"{seen.source.format}, split {seen.split}: {seen.num_steps:,} steps in "
        f"{seen.num_episodes:,} episodes, {looked}; read by {how}"
    )


def rates(seen: Inspection) -> str:
    """Control rate and episode lengths in a sentence."""
    low, middle, high = np.quantile(seen.all_lengths, [0, 0.5, 1])
    text = f"{low:.0f} to {high:.0f} steps per episode, median {middle:.0f}"
    hz = seen.card.control_hz or seen.measured_hz
    if hz:
        stated = "the card says" if seen.card.control_hz else "the time stamps say"
        text += f"; {stated} {hz:g} Hz, so {low / hz:.1f} to {high / hz:.1f} s"
    return text + ("" if hz else "; the control rate is unknown")


def tables(seen: Inspection) -> Iterator[Table]:
    """(title, head, rows) of everything that is best read as a table."""
    yield features(seen)
    yield cameras(seen)
    if seen.points:
        yield points(seen)
    yield actions(seen)
    yield grippers(seen)
    if seen.poses:
        yield poses(seen)
    yield words(seen)


def features(seen: Inspection) -> Table:
    """What the dataset holds, before any card."""
    rows: list[tuple[str, ...]] = []
    for field in seen.source.fields:
        shape = " x ".join("?" if side < 0 else str(side) for side in field.shape) or "1"
        kind = f"{field.kind} ({field.stored})" if field.stored else field.kind
        rows.append((field.key, kind, field.dtype, shape, field.per))
    return "Features", ("column", "holds", "type", "shape", "one per"), rows


def cameras(seen: Inspection) -> Table:
    """Size, field of view and depth of each camera."""
    rows: list[tuple[str, ...]] = []
    for slot, view in seen.views.items():
        size = "none" if view.size is None else f"{view.size[0]} x {view.size[1]}"
        angle = "no K"
        if view.K is not None and view.size is not None:
            angle = f"{field_of_view(view.K, view.size[0]):.0f} deg"
        depth = "none"
        if view.depth_range is not None:
            depth = f"{view.depth_range[0]:.2f} to {view.depth_range[1]:.2f} m"
        elif view.depth_key:
            depth = "unit unknown"
        rows.append((slot, view.key, size, angle, depth))
    head = ("camera", "column", "pixels", "field of view", "depth, 1 to 99 %")
    return "Cameras", head, rows


def points(seen: Inspection) -> Table:
    """The points that instructions name: how many steps have them, where, and who sees them."""
    rows: list[tuple[str, ...]] = []
    for column in seen.points:
        share = percent(column.known / column.steps) if column.steps else "none"
        ends = zip(column.low, column.high, strict=True)
        box = ", ".join(f"{low:.2f} to {high:.2f}" for low, high in ends)
        shown = ", ".join(f"{slot} {percent(part)}" for slot, part in column.seen.items())
        steps = f"{column.known:,} of {column.steps:,} ({share})"
        rows.append(
            (
                column.field,
                column.key,
                steps,
                box or "none",
                shown or ("no pose" if column.known else ""),
            )
        )
    head = ("point", "column", "steps that have it", "x, y, z in metres", "in the picture of")
    return "Points", head, rows


@np.errstate(invalid="ignore")  # NaN and infinity are shown, and told as findings
def actions(seen: Inspection) -> Table:
    """Statistics of the standard action."""
    values = seen.action.values
    columns = (
        values.min(axis=0), seen.q01, values.mean(axis=0), seen.q99, values.max(axis=0),
        values.std(axis=0),
    )  # fmt: skip
    rows = [
        (f"{name}, {unit}" if len(unit) < 5 else name, *(short_number(c[i]) for c in columns))
        for i, (name, unit) in enumerate(zip(seen.space.names, seen.space.units, strict=True))
    ]
    return "Actions", ("dimension", "min", "q01", "mean", "q99", "max", "std"), rows


def short_number(value: float) -> str:
    """Three digits, two of what is tiny, so that a table fits into 80 columns."""
    return f"{value:.2g}" if abs(value) < 1e-3 else f"{value:.3g}"


def grippers(seen: Inspection) -> Table:
    """What the gripper's numbers look like, raw and standard."""
    rows: list[tuple[str, ...]] = []
    for term in seen.card.action.gripper_terms:
        series = seen.raw_action.get(term.path or "")
        if series is None:
            rows.append((f"{term}, constant by the card", "", ""))
            continue
        raw = series.values[:, term.columns].ravel()
        ops = ", ".join(op.name for op in term.ops) or "none"
        rows.append((f"raw: {term}", convention(raw), f"ops: {ops}"))
    for i, (name, kept) in enumerate(zip(seen.space.names, seen.is_arm, strict=True)):
        if not kept:
            standard = seen.action.values[:, i]
            is_open = float((standard >= 0.5).mean())
            rows.append((f"{name}, 1 = open", convention(standard), f"open in {is_open:.0%}"))
    return "Gripper", ("column", "looks like", ""), rows


def poses(seen: Inspection) -> Table:
    """Whether streams of tool poses are absolute: the verdict, and the numbers that it rests on."""
    streams = seen.poses
    rows: list[tuple[str, ...]] = [
        ("the card says", *(stream.declared or "nothing" for stream in streams)),
        ("the numbers say", *(stream.told() for stream in streams)),
        ("against absolute", *(stream.why_not("absolute") for stream in streams)),
        ("against difference", *(stream.why_not("difference") for stream in streams)),
    ]
    for name in dict.fromkeys(name for stream in streams for name in stream.numbers):
        values = (stream.numbers.get(name) for stream in streams)
        rows.append((name, *("" if value is None else f"{value:.3g}" for value in values)))
    head = ("median of the episodes", *(stream.name for stream in streams))
    return "Poses: absolute, or differences?", head, rows


def words(seen: Inspection) -> Table:
    """The instructions that most episodes start with."""
    rows: list[tuple[str, ...]]
    rows = [(text or "(empty)", str(n)) for text, n in seen.words.most_common(SENTENCES)]
    if len(seen.words) > SENTENCES:
        rest = seen.words.most_common()[SENTENCES:]
        rows.append((f"and {len(rest)} others", str(sum(n for _, n in rest))))
    return "Instructions", ("words", "episodes"), rows
