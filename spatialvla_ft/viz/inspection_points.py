"""Points that instructions name, drawn into pictures: a ring around the pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.opening import find_card, open_source
from spatialvla_ft.data.projection import Values, pixels, placed
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
    chosen = np.unique(np.linspace(0, len(having) - 1, min(ROWS, len(having))).astype(int))
    rows: list[Row] = []
    for episode in (having[i] for i in chosen):
        count = len(points[episode])
        steps = np.unique(np.linspace(0, count - 1, min(COLUMNS, count)).astype(int)).tolist()
        frames = [(step, source.rgb(key, episode, step)) for step in steps]
        rows.append((episode, [(s, picture) for s, picture in frames if picture is not None]))
    rows = ringed_rows(source, card, slot, [row for row in rows if row[1]])
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(contact_sheet(rows)).save(out)
    return out
