"""Pictures as data URIs, so that a page needs no other file."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

DPI = 120
HOLD_MILLISECONDS = 1500
"""How long an animation shows its last frame."""


def data_uri(content: bytes, kind: str) -> str:
    """`content` of MIME type `kind`, as the address of an <img>."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def figure_uri(figure: Figure) -> str:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return data_uri(buffer.getvalue(), "image/png")


def jpeg_uri(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """A picture of a scene as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=88)
    return data_uri(buffer.getvalue(), "image/jpeg")


def png_uri(path: Path) -> str:
    """A PNG file; one that is large is stored with 256 colours."""
    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            buffer, "png", optimize=True
        )
    small = min(path.read_bytes(), buffer.getvalue(), key=len)
    return data_uri(small, "image/png")


def animation_uri(
    frames: UInt8[np.ndarray, "T H W 3"], *, hz: float, success: bool | None = None
) -> str:
    """An endless WebP of an episode at its own speed, with a counter of the executed actions.

    The last frame stays for a while, framed and labelled with the outcome if it is given.
    """
    pictures = [Image.fromarray(frame) for frame in frames]
    for step, picture in enumerate(pictures):
        _label(picture, f"action {step} of {len(frames) - 1}")
    if success is not None:
        _frame(pictures[-1], "solved" if success else "not solved", success)
    durations = [round(1000 / hz)] * (len(pictures) - 1) + [HOLD_MILLISECONDS]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "webp",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        quality=75,
        method=2,
    )
    return data_uri(buffer.getvalue(), "image/webp")


def _label(picture: Image.Image, text: str, *, top: int = 0) -> None:
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(10, picture.height // 22))
    box = draw.textbbox((8, top + 6), text, font=font)
    draw.rectangle((box[0] - 5, box[1] - 4, box[2] + 5, box[3] + 4), fill=(20, 24, 30))
    draw.text((8, top + 6), text, fill=(255, 255, 255), font=font)


def _frame(picture: Image.Image, text: str, good: bool) -> None:
    colour = (0, 114, 178) if good else (213, 94, 0)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=colour, width=6)
    _label(picture, text, top=picture.height // 12)
