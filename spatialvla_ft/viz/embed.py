"""Pictures as data URIs, so that a page needs no other file.

Colours that stay apart for colour-blind readers (Okabe and Ito), and common axis dress.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from spatialvla_ft.pictures import rgb_bytes

DPI = 120


@dataclass(frozen=True)
class Film:
    """Frames of equal size, and how long each stays.

    Attributes:
        frames: at least one.
        milliseconds: one per frame.
    """

    frames: UInt8[np.ndarray, "T H W 3"]
    milliseconds: tuple[int, ...]


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
    Image.fromarray(rgb_bytes(image)).save(buffer, "jpeg", quality=88)
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


def film_uri(film: Film) -> str:
    """An endless WebP at the film's own speed."""
    return data_uri(film_bytes(film, "webp", quality=75, method=2), "image/webp")


def film_bytes(film: Film, kind: str, **options: Any) -> bytes:
    """An endless animation at the film's own speed; `options` are Pillow's for this kind."""
    buffer = io.BytesIO()
    first, *others = [Image.fromarray(frame) for frame in film.frames]
    first.save(
        buffer,
        kind,
        save_all=True,
        append_images=others,
        duration=list(film.milliseconds),
        loop=0,
        **options,
    )
    return buffer.getvalue()


BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
GREY, INK = "#8A8F98", "#1D2430"


def plain(axes: Axes) -> None:
    """A light grid and no box."""
    axes.grid(True, color="#E3E6EA", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
