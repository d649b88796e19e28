"""Cards, cameras and mixtures that come with the toolkit."""

from __future__ import annotations

from pathlib import Path

FOLDER = "data_mixtures"


def shipped(name: str) -> Path:
    """A file of `data_mixtures/`: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    places = (package / FOLDER / name, package.parent / FOLDER / name)
    return next((place for place in places if place.is_file()), places[0])
