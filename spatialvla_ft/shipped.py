"""What comes with the toolkit beside its code: cards, cameras and mixtures, and recipes by name."""

from __future__ import annotations

import os
from pathlib import Path

from .near import near_names, near_path


def shipped_folder(name: str) -> Path:
    """`data_mixtures` or `recipes`: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    places = (package / name, package.parent / name)
    return next((place for place in places if place.is_dir()), places[0])


def shipped(name: str) -> Path:
    """A file of `data_mixtures/`."""
    return shipped_folder("data_mixtures") / name


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the toolkit, {name: file}; `toy/NAME` is NAME at toy size.

    Files that begin with _ are parts of recipes, and those of launch/ are for launchers.
    """
    folder = shipped_folder("recipes")
    files = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("toy/*.yaml"))]
    return {
        file.relative_to(folder).with_suffix("").as_posix(): file
        for file in files
        if not file.name.startswith("_")
    }


def find_recipe(given: str | os.PathLike[str], folder: Path = Path()) -> Path | None:
    """A recipe's file: where there is a file of that path, it; else the shipped one of that name.

    Args:
        given: a path as seen from `folder`, or a name such as adapt_lora.
        folder: the working directory, if it is not said.
    """
    file = folder / given
    return file if file.is_file() else shipped_recipes().get(Path(given).as_posix())


def no_recipe(given: str | os.PathLike[str], folder: Path = Path()) -> str:
    """Words about a recipe that `find_recipe` does not find: what was meant, and what there is."""
    file, names = folder / given, shipped_recipes()
    name = f"toy/{file.stem}" if file.parent.name == "toy" else file.stem
    near = near_names(name, names)
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    known = ", ".join(name for name in names if "/" not in name)
    wrong = "is a folder" if file.is_dir() else f"does not exist{near_path(file)}"
    return (
        f"{file} {wrong}, and no recipe of that name comes with the toolkit{meant}; "
        f"`spatialvla-ft recipes` tells of each: {known}, and toy/NAME of most"
    )
