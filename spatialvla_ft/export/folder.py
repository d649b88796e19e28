"""Output folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def refuse_used(out: Path, option: str = "--out") -> None:
    """ValueError unless `out`, the value of a command's option, is free or an empty folder."""
    if out.is_file():
        raise ValueError(f"{option} {out} is a file; name a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f"{option} {out} is not empty ({len(list(out.iterdir()))} entries): name a new folder, "
            "or remove this one first"
        )


@contextmanager
def appears_whole(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `out` only if nothing goes wrong."""
    refuse_used(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.parent / f".{out.name}.{os.getpid()}"
    try:
        scratch.mkdir()
        yield scratch
        scratch.rename(out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def even_modes(folder: Path) -> None:
    """Give all files one mode: safetensors are born readable by their owner only."""
    mode = (folder / "processor_config.json").stat().st_mode
    for file in folder.iterdir():
        file.chmod(mode)
