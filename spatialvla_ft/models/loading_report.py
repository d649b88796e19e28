"""What transformers says after loading weights, turned into an error that names what is wrong.

The library gives weights that a checkpoint lacks random values and logs a table. A robot that runs
on random values is no use, so here it is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

SHOWN = 6


def check_loaded(info: dict[str, Any], source: str | Path, *, cure: str = "") -> None:
    """ValueError unless a checkpoint held exactly the weights that its config asks for.

    Args:
        info: the library's `output_loading_info`.
        source: what was loaded, for the message.
        cure: what to do about missing or unexpected weights, a sentence.
    """
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        lines = [f"{name} {tuple(have)} (needed {tuple(need)})" for name, have, need in mismatched]
        raise ValueError(
            f"{source}: {len(mismatched)} weights have another shape than config.json gives them: "
            f"{shown(lines)}. Weights and config are of two checkpoints, or a size was overridden: "
            "take both from the same one; a grid of other bins is a matter of `adapt_to_grid`"
        )
    problems = []
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        problems.append(f"{len(missing)} weights are missing: {shown(missing)}")
    if info["unexpected_keys"]:
        unexpected = sorted(info["unexpected_keys"])
        problems.append(f"{len(unexpected)} weights are not part of the model: {shown(unexpected)}")
    if problems:
        raise ValueError(f"{source}: {'; '.join(problems)}. {cure}".rstrip())


def shown(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@contextmanager
def readable_weights(source: str | Path) -> Iterator[None]:
    """Turn what goes wrong with weight files into a ValueError that names them."""
    try:
        yield
    except (SafetensorError, FileNotFoundError) as error:
        absent = absent_shards(source)
        if absent:
            raise ValueError(
                f"{source}: its index names {len(absent)} weight files that are not there: "
                f"{shown(absent)}; fetch the checkpoint again, it is incomplete"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise
        broken = broken_files(source)
        which = shown(broken) if broken else "a weight file"
        raise ValueError(
            f"{source}: {which} cannot be read ({error}): it was cut short while being fetched or "
            "written, or is a Git LFS pointer; fetch it again (from the Hub: force_download=True)"
        ) from error


def absent_shards(source: str | Path) -> list[str]:
    """Weight files that the index of a folder names and the folder lacks."""
    index = Path(source) / "model.safetensors.index.json"
    if not index.is_file():
        return []
    named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return sorted(name for name in named if not (Path(source) / name).is_file())


def broken_files(source: str | Path) -> list[str]:
    """Weight files of a folder that safetensors cannot open, with their sizes."""
    broken = []
    for file in sorted(Path(source).glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError:
            broken.append(f"{file.name} ({file.stat().st_size:,} bytes)")
    return broken
