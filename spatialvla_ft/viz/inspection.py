"""The page of `spatialvla-ft data inspect`: one file without any other.

Points that instructions name, drawn into pictures: a ring around the pixel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.opening import find_card, open_source
from spatialvla_ft.data.projection import Values, pixels, placed
from spatialvla_ft.data.sampler import evenly_spaced
from spatialvla_ft.inspection import Inspection, facts
from spatialvla_ft.inspection.cameras import View, field_of_view
from spatialvla_ft.inspection.findings import Finding
from spatialvla_ft.viz.embed import figure_uri, jpeg_uri
from spatialvla_ft.viz.html import escape, page, paragraph, picture, section, table
from spatialvla_ft.viz.inspection_plots import plot_actions, plot_gripper, plot_lengths
from spatialvla_ft.viz.sheets import FRAME, contact_sheet

RINGS = {"target_point": (230, 159, 0), "reference_point": (86, 180, 233)}
"""Colour of a ring by the field of a sample."""
COLOURS = {"target_point": "orange", "reference_point": "blue"}
RADIUS = 11
ROWS, COLUMNS = 8, 6
"""Episodes and moments of a plot."""

Picture = UInt8[np.ndarray, "H W 3"]
Row = tuple[int, Sequence[tuple[int, Picture]]]
"""An episode, and (step, picture) of some of its steps."""


def ringed(picture: Picture, rings: Mapping[tuple[int, int, int], Float[np.ndarray, 2]]) -> Picture:
    """The picture as large as a contact sheet shows it, with a ring around each pixel.

    Args:
        picture: of any size.
        rings: colour -> (u, v) in pixels of `picture`; NaN and what lies outside is not drawn.
    """
    scale = FRAME / picture.shape[1]
    size = (FRAME, round(picture.shape[0] * scale))
    image = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    for colour, uv in rings.items():
        if not np.isfinite(uv).all():
            continue
        u, v = (float(value) * scale for value in uv)
        for shade, r, width in (((0, 0, 0), RADIUS + 1.5, 6), (colour, RADIUS, 3)):
            draw.ellipse((u - r, v - r, u + r, v + r), outline=shade, width=width)
    return np.asarray(image)


def ringed_rows(values: Values, card: Card, slot: str, rows: Sequence[Row]) -> list[Row]:
    """The pictures of a camera's contact sheet with the card's points at their steps.

    Args:
        values: of the dataset.
        card: names the points, K and the camera's pose.
        slot: of the camera.
        rows: the pictures.
    """

    def shown(episode: int, step: int, picture: Picture) -> tuple[int, Picture]:
        size = picture.shape[1], picture.shape[0]
        camera = placed(values, card, slot, size, episode, step)
        rings = {}
        for field, key in card.points.items() if camera is not None else ():
            point = np.asarray(values.value(key, episode, step), np.float64).reshape(-1)
            if camera is not None and point.shape == (3,):
                rings[RINGS[field]] = pixels(point[None], [camera])[0]
        return step, ringed(picture, rings)

    return [(episode, [shown(episode, *frame) for frame in frames]) for episode, frames in rows]


def camera_of_plot(card: Card) -> str:
    """The first camera with K and a pose; DatasetError if there is none."""
    slots = [s for s in card.cameras or {} if s in card.intrinsics and s in card.extrinsics]
    if not slots:
        raise DatasetError(
            f"no camera of card {card.name!r} has both intrinsics and extrinsics, so the points "
            "cannot be drawn; leave --plot out, or add them to the card"
        )
    return slots[0]


def plot_points(dataset: Path, out: Path, points: Sequence[Float[np.ndarray, "T 3"]]) -> Path:
    """A contact sheet of some episodes that have points, through the first camera with K and pose.

    Args:
        dataset: RLDS version directory or LeRobot folder whose card names the points.
        out: PNG file.
        points: (T, 3) of every episode, NaN where there is none.

    Returns:
        the file.
    """
    source = open_source(dataset)
    card = find_card(source)
    assert card is not None, dataset
    slot = camera_of_plot(card)
    key = (card.cameras or {})[slot].path
    having = [e for e, part in enumerate(points) if np.isfinite(part).all(axis=1).any()]
    rows: list[Row] = []
    for episode in (having[i] for i in evenly_spaced(len(having), ROWS)):
        count = len(points[episode])
        steps = evenly_spaced(count, COLUMNS)
        frames = [(step, source.rgb(key, episode, step)) for step in steps]
        rows.append((episode, [(s, picture) for s, picture in frames if picture is not None]))
    rows = ringed_rows(source, card, slot, [row for row in rows if row[1]])
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(contact_sheet(rows)).save(out)
    return out


_STYLE = """<style>
.finding { border-left: 6px solid #8a8f98; background: var(--tint); padding: 9px 16px;
  margin: 10px 0; }
.finding.error { border-color: var(--bad); }
.finding.warning { border-color: #e69f00; }
.finding p { margin: 2px 0; max-width: none; }
.finding .kind { font-weight: 600; }
.finding .cure { color: var(--soft); font-size: 0.94rem; }
pre { background: var(--tint); padding: 14px 16px; overflow-x: auto; line-height: 1.5; }
pre code { background: none; padding: 0; overflow-wrap: normal; }
pre .check { color: var(--bad); font-weight: 600; }
</style>"""


def write_inspection(seen: Inspection, out: Path) -> Path:
    """Write the page; returns its path."""
    body = [_findings(seen)]
    if seen.draft:
        body.append(_draft(seen.draft.to_yaml()))
    body += [_cameras(seen), _points(seen), _actions(seen), _gripper(seen), _poses(seen)]
    body += [_episodes(seen), _words(seen)]
    body.append(_as_section(facts.features(seen), "What the dataset holds, before any card."))
    out.parent.mkdir(parents=True, exist_ok=True)
    lead = paragraph(escape(facts.summary(seen)) + ".", kind="lead") + _verdict(seen.findings)
    out.write_text(page(seen.name, _STYLE + lead, "".join(body)), encoding="utf-8")
    return out


def _verdict(findings: tuple[Finding, ...]) -> str:
    counts = Counter(finding.severity for finding in findings)
    bad = counts["error"] + counts["warning"]
    parts = [
        f"{counts[kind]} {kind}{'s' if counts[kind] > 1 else ''}"
        for kind in ("error", "warning", "note")
        if counts[kind]
    ]
    text = f"<strong>{', '.join(parts)}.</strong>" if parts else "<strong>Nothing smells.</strong>"
    return paragraph(text, kind="verdict" if bad else "verdict good")


def _findings(seen: Inspection) -> str:
    if not seen.findings:
        return ""
    blocks = [
        f'<div class="finding {f.severity}"><p><span class="kind">{f.severity.capitalize()}: '
        f"{escape(f.rule)}</span>, {escape(f.where)}</p><p>{_sentence(f.evidence)}</p>"
        f'<p class="cure">{_sentence(f.cure)}</p></div>'
        for f in seen.findings
    ]
    return section("What smells", *blocks)


def _sentence(text: str) -> str:
    return escape(text[:1].upper() + text[1:]) + "."


def _draft(text: str) -> str:
    marked = escape(text).replace("CHECK", '<span class="check">CHECK</span>')
    return section(
        "Drafted card",
        paragraph(
            "The dataset brings no card, so this one was guessed from names, shapes and numbers, "
            "and everything below was read through it. Settle every CHECK, then save it as "
            "<code>card.yaml</code> beside the dataset (<code>--draft-card</code> writes it)."
        ),
        f"<pre><code>{marked}</code></pre>",
    )


def _as_section(content: facts.Table, text: str, *more: str) -> str:
    title, head, rows = content
    # Text columns stand left of the numbers.
    words = 1
    while words < len(head) and not all(r[words][:1] in "-0123456789" for r in rows if r[words]):
        words += 1
    cells = [[escape(cell) for cell in row] for row in rows]
    return section(title, paragraph(text), table(head, cells, text_columns=words), *more)


def _cameras(seen: Inspection) -> str:
    sheets = [_sheet(seen, slot, view) for slot, view in seen.views.items()]
    return _as_section(
        facts.cameras(seen),
        "By the slots of the card. Rows are episodes, time goes from left to right.",
        *sheets,
    )


def _points(seen: Inspection) -> str:
    if not seen.points:
        return ""
    return _as_section(
        facts.points(seen),
        "Places of what the instruction names, in the robot's base frame. A camera sees a point "
        "where it lies inside of its picture; what may hide it is not looked at.",
    )


def _sheet(seen: Inspection, slot: str, view: View) -> str:
    rows: list[Row] = [(episode, frames) for episode, frames in view.sheet if frames]
    if not rows or view.size is None:
        return paragraph(f"{escape(slot)}: no pictures.", kind="missing")
    width, height = view.size
    text = f"<strong>{escape(slot)}</strong>, {escape(view.key)}, {width} × {height} pixels. "
    if view.K is None:
        text += "No K: the field of view is unknown."
    else:
        K = np.asarray(view.K)
        vertical = field_of_view(K[[1, 0, 2]][:, [1, 0, 2]], height)
        text += (
            f"Cross in the first frame: principal point ({K[0, 2]:.1f}, {K[1, 2]:.1f}). Field of "
            f"view {field_of_view(K, width):.0f}° × {vertical:.0f}°, focal lengths {K[0, 0]:.1f} "
            f"and {K[1, 1]:.1f} pixels."
        )
    marked = [column.field for column in seen.points if slot in column.seen]
    K_shown = view.K
    if marked:
        text += f" Ring: {', '.join(f'{name} {COLOURS[name]}' for name in marked)}."
        rows = ringed_rows(seen.source, seen.card, slot, rows)
        K_shown = None if view.K is None else np.diag([FRAME / width, FRAME / width, 1]) @ view.K
    sheet = contact_sheet(rows, K_shown)
    return picture(jpeg_uri(sheet), f"Frames of camera {slot}", text)


def _actions(seen: Inspection) -> str:
    figure = plot_actions(seen)
    drawn = (
        paragraph("No step is free of NaN and infinity: nothing to draw.", kind="missing")
        if figure is None
        else picture(
            figure_uri(figure),
            "Histograms of every action dimension",
            "Blue: the standard action in the robot's units, with q01 and q99. Orange: the same "
            "as training sees it, clipped to -1 to 1; a bar at the very end is what was clipped.",
        )
    )
    return _as_section(
        facts.actions(seen),
        "Standard actions of the episodes looked at, after the card. q01 and q99 bound 98 % of "
        "the steps; training maps them to -1 and 1 and clips what lies outside, except where that "
        "would take rare motion away (see the findings).",
        drawn,
    )


def _gripper(seen: Inspection) -> str:
    figure = plot_gripper(seen)
    if figure is None:
        return ""
    return _as_section(
        facts.grippers(seen),
        "Absolute, 1 = open and 0 = closed. Compare with the pictures above.",
        picture(
            figure_uri(figure),
            "The gripper over time",
            "Blue: the standard action. Grey, right scale: the raw column it is made of.",
        ),
    )


def _poses(seen: Inspection) -> str:
    if not seen.poses:
        return ""
    rate = "" if seen.poses[0].interval is None else " No rate is known, so 5 steps a second were "
    rate += "assumed." if rate else ""
    return _as_section(
        facts.poses(seen),
        "Two stories, told in metres, radians and seconds: positions of a tool (absolute), or "
        "steps that it makes (difference). One that no arm can do is ruled out; if both remain, "
        "or none, the numbers say nothing and the card must be right by itself." + rate,
    )


def _episodes(seen: Inspection) -> str:
    return section(
        "Episodes and rates",
        paragraph(escape(facts.rates(seen)) + "."),
        picture(figure_uri(plot_lengths(seen)), "Histogram of episode lengths"),
    )


def _words(seen: Inspection) -> str:
    return _as_section(facts.words(seen), "How many of the episodes looked at begin with them.")
