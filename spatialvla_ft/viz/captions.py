"""Pictures in a grid, each under a caption of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

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
