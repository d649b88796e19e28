"""Replayed episodes beside each other, in step, as the frames of one animation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from spatialvla_ft.quickstart.replay import Replay
from spatialvla_ft.viz.embed import Film

HOLD_MILLISECONDS = 2500
"""How long the last frame stays."""
GAP = 8
DARK, LIGHT = (20, 24, 30), (255, 255, 255)
SOLVED, UNSOLVED = (0, 114, 178), (213, 94, 0)


@dataclass(frozen=True)
class Panel:
    """One episode under its title."""

    title: str
    replay: Replay


def side_by_side(panels: Sequence[Panel]) -> Film:
    """All panels from left to right, at the robot's own speed.

    An episode that has ended stays, framed in the colour of its outcome, until all have.

    Args:
        panels: one or more, of one control rate and one size of picture.
    """
    (hz,) = {panel.replay.control_hz for panel in panels}
    length = max(len(panel.replay.frames) for panel in panels)
    frames = [_beside([_drawn(panel, step) for panel in panels]) for step in range(length)]
    pace = round(1000 / hz)
    return Film(np.stack(frames), (pace,) * (length - 1) + (HOLD_MILLISECONDS,))


def _beside(pictures: Sequence[Image.Image]) -> UInt8[np.ndarray, "H W 3"]:
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, pictures[0].height), LIGHT)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return np.asarray(sheet)


def _drawn(panel: Panel, step: int) -> Image.Image:
    """The episode after so many actions, or as it ended."""
    replay = panel.replay
    last = len(replay.frames) - 1
    scene = Image.fromarray(replay.frames[min(step, last)])
    font = ImageFont.load_default(size=max(11, scene.height // 15))
    head = round(1.7 * font.size)
    picture = Image.new("RGB", (scene.width, head + scene.height), LIGHT)
    picture.paste(scene, (0, head))
    draw = ImageDraw.Draw(picture)
    draw.text((2, head // 2), panel.title, fill=DARK, font=font, anchor="lm")
    colour = DARK
    text = f"{step / replay.control_hz:.1f} s"
    if step >= last:
        colour, text = SOLVED if replay.success else UNSOLVED, replay.ending
        frame = (0, head, picture.width - 1, picture.height - 1)
        draw.rectangle(frame, outline=colour, width=max(3, scene.height // 64))
    _label(draw, picture.height, text, font, colour)
    return picture


def _label(
    draw: ImageDraw.ImageDraw,
    bottom: int,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: tuple[int, int, int],
) -> None:
    at = (14, bottom - 14)
    left, top, right, low = draw.textbbox(at, text, font=font, anchor="ls")
    draw.rectangle((left - 7, top - 6, right + 7, low + 6), fill=colour)
    draw.text(at, text, fill=LIGHT, font=font, anchor="ls")
