"""Pictures of several episodes in one: an episode per row, time from left to right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image, ImageDraw, ImageFont

from spatialvla_ft.pictures import rgb_bytes

FRAME = 236
"""Width of one frame in pixels."""
GAP = 6
LABEL = 26


def contact_sheet(
    rows: Sequence[tuple[int, Sequence[tuple[int, UInt8[np.ndarray, "H W 3"]]]]],
    K: Float64[np.ndarray, "3 3"] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Frames with the number of their step, under the number of their episode.

    Args:
        rows: (episode, [(step, picture), ...]); all pictures of one size.
        K: intrinsics of these pictures; a cross marks the principal point of the first one.
    """
    first = next(picture for _, frames in rows for _, picture in frames)
    scale = FRAME / first.shape[1]
    height = round(first.shape[0] * scale)
    columns = max(len(frames) for _, frames in rows)
    size = (columns * (FRAME + GAP) - GAP, len(rows) * (LABEL + height + GAP) - GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    for i, (episode, frames) in enumerate(rows):
        top = i * (LABEL + height + GAP)
        for j, (step, picture) in enumerate(frames):
            left = j * (FRAME + GAP)
            text = f"episode {episode}, step {step}" if j == 0 else f"step {step}"
            draw.text((left, top + 4), text, fill=(86, 96, 114), font=font)
            shown = Image.fromarray(rgb_bytes(picture, text))
            small = shown.resize((FRAME, height), Image.Resampling.LANCZOS)
            sheet.paste(small, (left, top + LABEL))
            if K is not None and i == j == 0:
                _cross(draw, left + K[0, 2] * scale, top + LABEL + K[1, 2] * scale)
    return np.asarray(sheet)


def _cross(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    for colour, width in (((0, 0, 0), 5), ((255, 255, 255), 2)):
        draw.line((x - 14, y, x + 14, y), fill=colour, width=width)
        draw.line((x, y - 14, x, y + 14), fill=colour, width=width)
