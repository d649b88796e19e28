"""Where an adapter's base lies: how that is written down, and how it is found again.

`base.json` of an adapter folder names the base as it was given, and, where that was a folder, the
way to it from the adapter's own folder: a project that moves as a whole, or is used from another
working directory, still finds it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .checkpoint_files import asked_hub, hub_reason, refuse_out_of_reach

BASE_FILE = "base.json"
FROM_HERE = "base_from_here"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def base_entry(named: str, place: str | Path, folder: Path) -> dict[str, str]:
    """What `base.json` in `folder` says of where the base lies.

    Args:
        named: as its user calls it: a folder, or OWNER/NAME on the Hub.
        place: where it was found.
        folder: of the adapter; it may be a scratch folder beside its final place.
    """
    if not Path(place).is_dir():
        return {"base": named}
    way = os.path.relpath(Path(place).resolve(), folder.resolve())
    return {"base": named, FROM_HERE: Path(way).as_posix()}


def read_base(folder: str | Path) -> dict[str, Any]:
    """What `base.json` of an adapter folder says."""
    recorded: dict[str, Any] = json.loads((Path(folder) / BASE_FILE).read_text(encoding="utf-8"))
    return recorded


def find_base(folder: Path, *, given: str | None = None) -> str:
    """The base of an adapter: a folder that is there, or a name that the Hub knows.

    A folder is looked for where `base_from_here` points; under its name from the working directory;
    and, if that name is relative, from the adapter's folder and every folder above it. The Hub is
    asked once, and only for what may be a repository.

    Args:
        folder: of the adapter.
        given: where its user says that the base lies now.

    Raises:
        ValueError: it is not found; says how to name its new place.
    """
    if given is not None:
        try:
            refuse_out_of_reach(given)
        except ValueError as error:
            raise ValueError(f"--base {error}") from error
        return given
    recorded = read_base(folder)
    named = str(recorded["base"])
    place = base_folder(folder, named, recorded.get(FROM_HERE))
    if place is not None:
        return str(place)
    silence = ""
    if FROM_HERE not in recorded and HUB_ID.fullmatch(named):
        error = asked_hub(named)
        if error is None:
            return named
        silence = f"; as a name on the Hub: {hub_reason(error, 'config.json') or error}"
    raise ValueError(
        f"{folder} is an adapter of a base: {named} is no checkpoint folder, neither from the "
        f"working directory nor from the adapter's folder or any above it{silence}. Put the base "
        "back, or say where it lies now: --base FOLDER with `export`, `push`, `eval sim`, "
        "`eval open-loop` and `check-robot`, base= in Python; an export with the base merged needs "
        "none"
    )


def base_folder(folder: Path, named: str, way: str | None = None) -> Path | None:
    """The checkpoint folder that a folder's files call its base; None where none is found.

    Args:
        folder: whose base it is.
        named: how the files call it.
        way: from `folder` to it, where they say that too.
    """
    places = _places(folder.resolve(), named, way)
    return next((place for place in places if (place / "config.json").is_file()), None)


def _places(folder: Path, named: str, way: str | None) -> Iterator[Path]:
    if way is not None:
        yield Path(os.path.normpath(folder / way))
    path = Path(named).expanduser()
    yield path
    if not path.is_absolute():
        yield from (start / path for start in (folder, *folder.parents))
