"""What somebody may have meant by a name or a path that is not there."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

SURE = 0.85
"""Likeness from which one name is enough of an answer."""
MARKS = ("features.json", "config.json", "adapter_config.json", "meta/info.json")
"""Files that make a folder a dataset or a checkpoint."""


def near_names(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """The names most like `name`: one where it is clearly meant, else up to `most`."""
    found = difflib.get_close_matches(name, list(known), n=most)
    if found and difflib.SequenceMatcher(None, name, found[0]).ratio() >= SURE:
        return found[:1]
    return found


def near_path(path: str | os.PathLike[str]) -> str:
    """A hint for a message about a path that is not there, or not what it should be.

    " (did you mean X?)" where something beside it is called much alike, or the dataset or
    checkpoint lies one folder deeper; " (there is no folder X)" where that is where the path goes
    wrong; empty where nothing can be said.
    """
    path = Path(path)
    try:
        if path.is_dir():
            inside = [child for child in sorted(path.iterdir()) if _is_one(child)]
            return _ask(inside[:3])
        return _beside(path)
    except OSError:  # a folder that may not be listed
        return ""


def no_checkpoint(option: str, given: str | None) -> str:
    """What to say of a checkpoint that is no folder and cannot be on the Hub; else empty."""
    if given is None or given.count("/") == 1 or Path(given).is_dir():
        return ""
    return (
        f"{option} {given} is no folder{near_path(given)}; name a checkpoint folder, or OWNER/NAME "
        f"on the Hub: {option}=CHECKPOINT"
    )


def _is_one(folder: Path) -> bool:
    return folder.is_dir() and any((folder / mark).is_file() for mark in MARKS)


def _beside(path: Path) -> str:
    first_gone = path
    while not first_gone.parent.exists() and first_gone.parent != first_gone:
        first_gone = first_gone.parent
    folder = first_gone.parent
    if not folder.is_dir():
        return ""
    rest = path.relative_to(first_gone)
    names = near_names(first_gone.name, sorted(os.listdir(folder)))  # noqa: PTH208
    found = [folder / name / rest for name in names]
    whole = [one for one in found if one.exists()]
    if whole or found:
        return _ask(whole or found)
    return "" if first_gone == path else f" (there is no folder {first_gone})"


def _ask(paths: list[Path]) -> str:
    return f" (did you mean {' or '.join(map(str, paths))}?)" if paths else ""
