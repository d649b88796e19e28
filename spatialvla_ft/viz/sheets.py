"""Pictures of several episodes in one: an episode per row, time from left to right.

Pictures in a grid, each under a caption of its own.
"""

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


SIDE = 224
SPACE = 8
LINE = 16


def captioned(
    pictures: Sequence[tuple[UInt8[np.ndarray, "H W 3"], str]], columns: int = 4
) -> UInt8[np.ndarray, "H W 3"]:
    """A sheet of pictures of any size, scaled to one width.

    Args:
        pictures: with their captions, of one or more lines.
        columns: pictures side by side.
    """
    columns = min(columns, len(pictures))
    lines = max(caption.count("\n") + 1 for _, caption in pictures)
    small = [_scaled(picture) for picture, _ in pictures]
    tall = max(image.height for image in small)
    width, height = SIDE + SPACE, lines * LINE + tall + SPACE
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width + SPACE, rows * height + SPACE), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for i, (image, (_, caption)) in enumerate(zip(small, pictures, strict=True)):
        left, top = SPACE + i % columns * width, SPACE + i // columns * height
        for k, line in enumerate(caption.split("\n")):
            draw.text((left, top + k * LINE), _fitting(line, font), fill=(50, 60, 80), font=font)
        sheet.paste(image, (left, top + lines * LINE))
    return np.asarray(sheet)


def _scaled(picture: np.ndarray) -> Image.Image:
    height = max(1, round(picture.shape[0] * SIDE / picture.shape[1]))
    return Image.fromarray(picture).resize((SIDE, height), Image.Resampling.LANCZOS)


def _fitting(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The line, cut so that it stays above its own picture."""
    if font.getlength(line) <= SIDE:
        return line
    while line and font.getlength(line + "…") > SIDE:
        line = line[:-1]
    return line + "…"
