"""Folders and files that appear whole or not at all, and that tell later whether they still are.

A folder is written beside its place, brought to disk file by file, and renamed; the rename is
brought to disk too. A process killed at any moment leaves the old folder or the new one, and
perhaps a hidden scratch folder that `clean` removes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

MANIFEST = "manifest.json"
WRITING, REPLACED = ".writing", ".replaced"
_READ = 1 << 22  # bytes


class DamagedError(ValueError):
    """A folder no longer holds what was written; the message names the file and what is wrong."""


@contextlib.contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """An empty scratch folder that takes the place when the block ends without an error.

    What lay there before is deleted last. One process at a time may write to a place.

    Raises:
        OSError: disk full or folder read-only; what lay there before is still there.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = _beside(place, WRITING)
    replaced = _beside(place, REPLACED)
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        yield scratch
        _open_as_the_folder(scratch)
        for found in [*scratch.rglob("*"), scratch]:
            to_disk(found)
        if place.exists():
            place.rename(replaced)
        scratch.rename(place)
        to_disk(place.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        if replaced.exists() and not place.exists():
            replaced.rename(place)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def clean(folder: Path) -> list[Path]:
    """Remove what killed processes left half done in a folder; returns what was found.

    No other process may be writing there.
    """
    found = []
    for replaced in sorted(folder.glob(f".*{REPLACED}")):
        place = folder / replaced.name[1 : -len(REPLACED)]
        if not place.exists():  # killed between the two renames
            replaced.rename(place)
            continue
        found.append(replaced)
    found += sorted(folder.glob(f".*{WRITING}"))
    for scratch in found:
        if scratch.is_dir():
            shutil.rmtree(scratch)
        else:
            scratch.unlink()
    return found


@contextlib.contextmanager
def whole_file(place: Path) -> Iterator[Path]:
    """A scratch file to write, which takes the place when the block ends without an error.

    The folder must exist. Any number of processes and threads may write to one place; the last
    wins. It is not brought to disk, so a crash of the machine may lose it; `write_text` does that.
    """
    scratch = _beside(place, f".{uuid.uuid4().hex[:12]}{WRITING}")
    try:
        yield scratch
        scratch.replace(place)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_text(place: Path, text: str) -> None:
    """Replace a file's content in one go: readers and later runs see the old or the new.

    The name of its scratch file is fixed: what a killed process left is written over.
    """
    scratch = _beside(place, WRITING)
    try:
        scratch.write_text(text, encoding="utf-8")
        to_disk(scratch)
        scratch.replace(place)
        to_disk(place.parent)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_manifest(folder: Path) -> None:
    """List the folder's files with their sizes and checksums in `manifest.json`."""
    files = {
        file.name: {"bytes": file.stat().st_size, "xxh3_128": checksum(file)}
        for file in sorted(folder.iterdir())
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def verify(folder: Path) -> None:
    """Compare a folder with its manifest.

    Raises:
        DamagedError: the manifest, or a file that it lists, is missing, shorter, longer or altered.
    """
    for name, written in _read_manifest(folder).items():
        file = folder / name
        try:
            size = file.stat().st_size
            if size != written["bytes"]:
                raise DamagedError(f"{file} has {size:,} bytes, {written['bytes']:,} were written")
            if checksum(file) != written["xxh3_128"]:
                raise DamagedError(f"{file} has another content than what was written (checksum)")
        except FileNotFoundError:
            raise DamagedError(f"{file} is missing") from None
        except OSError as error:
            raise DamagedError(f"{file} cannot be read: {error.strerror}") from error


def checksum(file: Path) -> str:
    """XXH3, 128 bits, of a file's content: against damage, not against malice."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as handle:
        while part := handle.read(_READ):
            digest.update(part)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        files: dict[str, dict[str, Any]] = json.loads(text)["files"]
        complete = all({"bytes", "xxh3_128"} <= set(written) for written in files.values())
    except FileNotFoundError:
        raise DamagedError(f"{folder / MANIFEST} is missing") from None
    except OSError as error:
        raise DamagedError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise DamagedError(f"{folder / MANIFEST} is not what was written")
    return files


def _open_as_the_folder(folder: Path) -> None:
    """Let others read a folder's files as they may the folder: safetensors are born 0600."""
    mode = folder.stat().st_mode & 0o666  # which the umask has been through
    for found in folder.rglob("*"):
        if found.is_file():
            found.chmod(mode)


def _beside(place: Path, ending: str) -> Path:
    return place.parent / f".{place.name}{ending}"


def to_disk(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk; some file systems cannot do folders."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


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


def copy_visible(folder: Path, out: Path, left_out: Collection[str] = ()) -> None:
    """Copy all files below a folder but hidden ones and those in `left_out` (relative paths)."""
    for source in sorted(folder.rglob("*")):
        name = source.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or not source.is_file() or name.as_posix() in left_out:
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / name)
