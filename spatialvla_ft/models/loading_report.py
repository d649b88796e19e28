"""What transformers says after loading weights, turned into an error that names what is wrong.

The library gives weights that a checkpoint lacks random values and logs a table. A robot that runs
on random values is no use, so here it is an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
            "take both from the same one, and change bins with `adapt_embeddings`, never by hand"
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
