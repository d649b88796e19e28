"""The page of `spatialvla-ft check-robot`: both motions as arrows, for a person to nod at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib.figure import Figure

from spatialvla_ft.actions.spaces import ActionSpace
from spatialvla_ft.data.projection import Placed, pixels
from spatialvla_ft.data.sample import Sample
from spatialvla_ft.data.samples import SampleDataset
from spatialvla_ft.evaluation.motion_match import AxisMatch
from spatialvla_ft.evaluation.robot_check import POSITIONS, Predicted, RobotCheck
from spatialvla_ft.geometry.depth_maps import usable
from spatialvla_ft.viz.embed import BLUE, INK, VERMILION, figure_uri, plain
from spatialvla_ft.viz.html import escape, page, paragraph, percent, picture, section, table

SHOWN = 8
"""Steps that are drawn."""
REACH = 0.12
"""Metres as which the longest of the drawn motions is drawn."""
TRIAD = 0.08
"""Metres of the base's axes that are drawn at the tool."""
AWAY = 1.0
"""Metres before the camera at which axes are drawn where nothing tells a better place."""
RECORDED, SAID = BLUE, VERMILION
_TITLES = {
    "fine": "Nothing looks wrong: nod at the pictures, then let it move slowly.",
    "look": "Look before it moves.",
    "unclear": "The policy follows these motions too little to tell its axes.",
}
_WORDS = {
    "fine": "fine",
    "flipped": "FLIPPED",
    "swapped": "SWAPPED",
    "scaled": "SCALED",
    "still": "does not move",
    "unclear": "cannot be told",
    "constant": "one never changes",
}


@dataclass(frozen=True)
class Drawn:
    """A step as it is drawn.

    Attributes:
        sample: the recorded step.
        recorded, predicted: (dim,) its actions.
        image: of the camera that is shown, or None.
        camera: where that stands and how it sees; None where K or its pose is not known.
        tool: (3,) base frame, metres; None where it is not known.
    """

    sample: Sample
    recorded: Float64[np.ndarray, " dim"]
    predicted: Float64[np.ndarray, " dim"]
    image: UInt8[np.ndarray, "H W 3"] | None
    camera: Placed | None
    tool: Float64[np.ndarray, 3] | None


def steps_to_draw(
    dataset: SampleDataset, predicted: Predicted, *, camera: str | None = None, count: int = SHOWN
) -> list[Drawn]:
    """Those with the largest recorded translations, each axis in turn, of many episodes.

    Args:
        dataset: whose card says what the state is.
        predicted: the steps to choose from.
        camera: slot that is shown; None takes the first.
        count: of the steps.
    """
    space = dataset.action_space
    at = _translation(space)
    motion = predicted.recorded[:, at] if at is not None else predicted.recorded
    chosen: list[int] = []
    order = [np.argsort(-np.abs(motion[:, i])) for i in range(motion.shape[1])]
    seen: set[tuple[str, int]] = set()
    for once in (True, False):  # another episode each time, as long as there are any
        for rank in range(len(motion)):
            for axis in order:
                i = int(axis[rank])
                where = (predicted.samples[i].dataset, predicted.samples[i].episode)
                if len(chosen) < count and i not in chosen and not (once and where in seen):
                    chosen.append(i)
                    seen.add(where)
    proprio = dataset.card.proprio
    told = proprio is not None and proprio.encoding in POSITIONS
    found = []
    for i in chosen:
        sample = predicted.samples[i]
        slot = camera or next(iter(sorted(sample.images)), None)
        image = None if slot is None else sample.images.get(slot)
        placed = None
        if image is not None and slot in sample.intrinsics and slot in sample.extrinsics:
            size = (image.shape[1], image.shape[0])
            placed = Placed(sample.intrinsics[slot], sample.extrinsics[slot], size)
        tool = None
        if told and sample.proprio is not None and np.isfinite(sample.proprio[:3]).all():
            tool = np.asarray(sample.proprio[:3], np.float64)
        found.append(
            Drawn(
                sample,
                predicted.recorded[i].astype(np.float64),
                predicted.predicted[i].astype(np.float64),
                image,
                placed,
                tool,
            )
        )
    return found


def write_robot_check(
    check: RobotCheck,
    drawn: Sequence[Drawn],
    predicted: Predicted,
    out: Path,
    sure: Figure | None = None,
) -> Path:
    """Write the page; returns its path.

    Args:
        check: what was found.
        drawn: steps that are drawn.
        predicted: all steps.
        out: file of HTML.
        sure: a prediction with its heatmap (`viz/prediction.py`), of heads that have one.
    """
    space = predicted.samples[0].action_space
    untold = f" {escape(', '.join(check.untold))} cannot be told." if check.untold else ""
    verdict = paragraph(
        f"<strong>{_TITLES[check.verdict]}</strong>{untold}",
        kind="verdict good" if check.verdict == "fine" else "verdict",
    )
    lead = (
        paragraph(
            f"A policy predicts at {check.steps} recorded steps of {escape(check.dataset)}; here "
            "its motions are laid beside the recorded ones. Both arrows of a pair should point "
            "the same way, and where the robot really went.",
            kind="lead",
        )
        + verdict
    )
    warnings = "".join(f"<li>{escape(text)}.</li>" for text in check.warnings)
    body = [
        section("What looks wrong", f"<ul>{warnings}</ul>") if warnings else "",
        _axes(check),
        _pictures(drawn, space),
        "" if sure is None else _sure(sure),
        _scatter(check, predicted, space),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page("Before the first motion", lead, "".join(body)), encoding="utf-8")
    return out


def axis_rows(axes: Sequence[AxisMatch]) -> list[list[str]]:
    """[axis, recorded, predicted, same sign, correlation, goes with, verdict] of each."""
    return [
        [
            f"{one.name} ({one.unit})" if len(one.unit) < 5 else one.name,
            f"{one.recorded:.3g}",
            f"{one.predicted:.3g}",
            "–" if one.agreement is None else percent(one.agreement),
            "–" if one.correlation is None else f"{one.correlation:.2f}",
            "–" if one.goes_with is None else one.goes_with,
            _WORDS[one.verdict],
        ]
        for one in axes
    ]


HEAD = ("axis", "recorded", "predicted", "same sign", "r", "follows", "looks")
"""Of `axis_rows`."""


def facts(check: RobotCheck) -> list[str]:
    """Frames, rates and grippers in sentences."""
    frames = ", ".join(f"{role}: {frame}" for role, frame in check.frames.items())
    rates = (check.recorded_hz, check.trained_hz)
    hz = ["unknown" if rate is None else f"{rate:g} Hz" for rate in rates]
    lines = [f"frames: {frames}", f"rate: recorded {hz[0]}, trained {hz[1]}"]
    lines += [
        f"{one.name}: open in {percent(one.recorded_open)} of the recorded and "
        f"{percent(one.predicted_open)} of the predicted steps, the same in "
        f"{percent(one.agreement)}: {_WORDS[one.verdict]}"
        for one in check.grippers
    ]
    if check.moved is not None:
        wrong = [one.name for one in check.moved if one.verdict in ("flipped", "swapped")]
        but = f", but not in {', '.join(wrong)}" if wrong else ""
        lines.append(f"the recorded tool moves as the recorded actions say{but}")
    return lines


def _sure(figure: Figure) -> str:
    return section(
        "Where it wants to go, and how sure it is",
        paragraph(
            "The first of the steps above: the motion among the points that the policy sees, with "
            "the probability of its head's cells, and the space of that motion by itself. One dark "
            "spot is a policy that is sure; two are two ways, of which it takes one."
        ),
        picture(figure_uri(figure), "A prediction with its heatmap over the scene", kind="pan"),
    )


def _axes(check: RobotCheck) -> str:
    cells = [[escape(cell) for cell in row] for row in axis_rows(check.axes)]
    for row in cells:
        row[-1] = f"<strong>{row[-1]}</strong>" if row[-1].isupper() else row[-1]
    return section(
        "Axis by axis",
        table(HEAD, cells),
        paragraph(
            "Recorded, predicted: what nine in ten motions stay below. Same sign: of the steps in "
            "which both move. r: correlation of predicted with recorded motions. Follows: the "
            "recorded axis that the policy's axis goes with.",
            kind="soft",
        ),
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in facts(check)) + "</ul>",
    )


def _pictures(drawn: Sequence[Drawn], space: ActionSpace) -> str:
    if not drawn or _translation(space) is None:
        return section(
            "Steps", paragraph("The action has no single translation, so no arrow can be drawn.")
        )
    lengths = [
        float(np.linalg.norm(motion[_translation(space)]))
        for one in drawn
        for motion in (one.recorded, one.predicted)
    ]
    enlarged = REACH / max(*lengths, 1e-9)
    figures = [
        picture(figure_uri(draw_step(one, space, enlarged)), _place(one.sample), _step(one, space),
                kind="pan")
        for one in drawn
    ]  # fmt: skip
    where = (
        "at the tool"
        if all(one.tool is not None for one in drawn)
        else f"at the middle of the picture, {AWAY:g} m away or at its depth, as the state does "
        "not tell where the tool is"
    )
    about = (
        f"Blue: recorded. Orange: predicted. Motions in the picture are drawn {enlarged:.0f} times "
        f"as long as they are. They begin {where}, seen through the camera's K and pose, beside "
        "the axes of the robot's base. Where those are not known, only the two views beside the "
        "picture are drawn: from above, and from the side."
    )
    return section("Steps", paragraph(about), *figures)


def draw_step(one: Drawn, space: ActionSpace, enlarged: float) -> Figure:
    """A picture with both motions as arrows, and the motions from above and from the side."""
    at = _translation(space)
    assert at is not None
    motions = [(one.recorded[at], RECORDED, 3.4), (one.predicted[at], SAID, 1.9)]
    figure = Figure(figsize=(10.6, 3.9), layout="constrained")
    flat, above, side = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    flat.set_axis_off()
    if one.image is not None:
        height, width = one.image.shape[:2]
        flat.imshow(one.image, extent=(0, width, height, 0), interpolation="nearest")
    if one.camera is not None:
        _arrows(flat, one, [(motion * enlarged, *style) for motion, *style in motions])
    names = space.names[at]
    reach = 1.15 * max(float(np.abs(motion).max()) for motion, *_ in motions) or 1.0
    for axes, (i, j), title in ((above, (0, 1), "from above"), (side, (0, 2), "from the side")):
        for motion, colour, width in motions:
            axes.annotate(
                "", (motion[i], motion[j]), (0, 0),
                arrowprops={"arrowstyle": "-|>", "color": colour, "lw": width, "shrinkA": 0,
                            "shrinkB": 0},
            )  # fmt: skip
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.axhline(0, color=INK, lw=0.6)
        axes.axvline(0, color=INK, lw=0.6)
        axes.set_xlabel(f"{names[i]} (m)")
        axes.set_ylabel(f"{names[j]} (m)")
        axes.set_title(title, fontsize=10)
        axes.locator_params(nbins=4)
        plain(axes)
    return figure


def _arrows(axes: Any, one: Drawn, motions: Sequence[tuple[np.ndarray, str, float]]) -> None:
    """The base's axes and both motions, from the tool or before the camera."""
    assert one.camera is not None
    origin = _origin(one)
    width, height = one.camera.size

    def ends(offsets: np.ndarray) -> np.ndarray:
        points = np.vstack([origin[None], origin + offsets])
        return pixels(points, [one.camera] * len(points))  # type: ignore[list-item]

    def arrow(start: np.ndarray, end: np.ndarray, colour: str, thick: float) -> None:
        if np.isfinite(start).all() and np.isfinite(end).all():
            for shade, more in (("white", 2.0), (colour, 0.0)):
                axes.annotate(
                    "", end, start, annotation_clip=False,
                    arrowprops={"arrowstyle": "-|>", "color": shade, "lw": thick + more,
                                "shrinkA": 0, "shrinkB": 0, "mutation_scale": 13},
                )  # fmt: skip

    start, *triad = ends(TRIAD * np.eye(3))
    for name, end in zip("xyz", triad, strict=True):
        arrow(start, end, INK, 0.9)
        if np.isfinite(end).all():
            axes.text(
                *(end + 0.14 * (end - start)), f"+{name}", color=INK, fontsize=9, ha="center",
                va="center", fontweight="bold",
                bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
            )  # fmt: skip
    for motion, colour, thick in motions:
        arrow(start, ends(motion[None])[1], colour, thick)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _origin(one: Drawn) -> np.ndarray:
    """(3,) base frame: the tool, or a point before the middle of the picture."""
    if one.tool is not None:
        return one.tool
    assert one.camera is not None
    away = AWAY
    for depth in (one.sample.depth or {}).values():
        known = depth[usable(depth)]
        away = float(np.median(known)) if known.size else away
        break
    width, height = one.camera.size
    ray = np.linalg.inv(one.camera.K) @ np.array([width / 2, height / 2, 1.0])
    return np.asarray(one.camera.pose[:3, :3] @ (ray * away) + one.camera.pose[:3, 3])


def _scatter(check: RobotCheck, predicted: Predicted, space: ActionSpace) -> str:
    """Every axis: predicted against recorded."""
    names = list(space.names)
    chosen = [one for one in check.axes if one.verdict != "still"]
    if not chosen:
        return ""
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(10.6, 3.5 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes, one in zip(panels, chosen, strict=False):
        i = names.index(one.name)
        recorded, said = predicted.recorded[:, i], predicted.predicted[:, i]
        reach = 1.05 * float(max(np.abs(recorded).max(), np.abs(said).max())) or 1.0
        axes.plot([-reach, reach], [-reach, reach], color=INK, lw=1)
        axes.plot(recorded, said, ".", color=SAID, ms=5, alpha=0.6)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.set_xlabel(f"recorded {one.name}")
        axes.set_ylabel(f"predicted {one.name}")
        axes.set_title(f"{one.name}: {_WORDS[one.verdict]}", fontsize=11, loc="left")
        axes.locator_params(nbins=4)
        plain(axes)
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    return section(
        "Every step",
        paragraph(
            "One point is one step; on the line the policy does exactly what was recorded. A cloud "
            "along the other diagonal is a flipped axis, a flat or steep one another scale."
        ),
        picture(figure_uri(figure), "Predicted against recorded motions, axis by axis", kind="pan"),
    )


def _place(sample: Sample) -> str:
    return f"episode {sample.episode}, step {sample.step}: “{sample.instruction}”"


def _step(one: Drawn, space: ActionSpace) -> str:
    """Numbers of a step: rotation in degrees, gripper in words."""
    parts = [f"<strong>{escape(_place(one.sample))}</strong>"]
    start = 0
    for group in space.groups:
        part = slice(start, start + group.dim)
        start += group.dim
        pair = (one.recorded[part], one.predicted[part])
        if group.role == "gripper":
            said = ["open" if values[0] >= 0.5 else "closed" for values in pair]
        elif group.unit == "rad":
            said = [", ".join(f"{float(np.degrees(v)):z.1f}°" for v in values) for values in pair]
        elif group.unit == "m":
            said = [", ".join(f"{float(1000 * v):z.1f}" for v in values) + " mm" for values in pair]
        else:
            said = [", ".join(f"{v:.3g}" for v in values) for values in pair]
        parts.append(f"{escape('/'.join(group.names))}: recorded {said[0]}, predicted {said[1]}")
    return "; ".join(parts) + "."


def _translation(space: ActionSpace) -> slice | None:
    """The columns of the only translation, a change per step; None where there is none such."""
    groups = [group for group in space.groups if group.role == "translation"]
    if len(groups) != 1 or not groups[0].delta or groups[0].dim != 3:
        return None
    return space.slice_of("translation")
