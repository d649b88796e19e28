"""What each stage did, with what; a stage is done again where that is no longer so.

What a stage of an adaptation is, and its outcome.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spatialvla_ft.adapting.job import Job
from spatialvla_ft.files import write_text

FORMAT = 1
SHOWN = 4
"""Changes that are named one by one."""


@dataclass(frozen=True)
class Record:
    """One finished stage.

    Attributes:
        stage: its name.
        inputs: everything that its outcome depends on, {name: plain value}.
        result: what it found, plain values.
        files: what it wrote, {what: path}.
        warnings: what it warned of.
        seconds: how long it took.
    """

    stage: str
    inputs: dict[str, Any]
    result: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def digest(self) -> str:
        """Hash of what was found, which later stages depend on."""
        return digest_of(self.result)


def digest_of(content: Any) -> str:
    """Short hash of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write_record(folder: Path, record: Record) -> None:
    """Keep a record as `folder/STAGE.json`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **asdict(record)}, indent=1) + "\n"
    write_text(folder / f"{record.stage}.json", text)


def read_record(folder: Path, stage: str) -> Record | None:
    """The record of a stage, or None where there is no readable one."""
    try:
        content = json.loads((folder / f"{stage}.json").read_text(encoding="utf-8"))
        return Record(**content) if content.pop("format") == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def why_again(record: Record | None, inputs: Mapping[str, Any]) -> str | None:
    """Why a stage has to be done (again), in words; None where its record holds.

    Args:
        record: of the last time.
        inputs: of now, plain values.
    """
    if record is None:
        return "not done yet"
    now = json.loads(json.dumps(inputs))  # tuples become lists, as in the record
    changed = [name for name in {**record.inputs, **now} if _differs(name, record.inputs, now)]
    if changed:
        told = [_change(name, record.inputs.get(name), now.get(name)) for name in changed[:SHOWN]]
        more = [f"and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
        return "changed: " + "; ".join([*told, *more])
    gone = [path for path in record.files.values() if not Path(path).exists()]
    return f"{gone[0]} is gone" if gone else None


def put_aside(folder: Path, stage: str, inputs: Mapping[str, Any]) -> str | None:
    """Before a stage works: its record counts no more, but `STAGE.before.json` keeps it.

    Returns:
        why it is done, if an earlier try was cut short; None otherwise.
    """
    path, before = folder / f"{stage}.json", folder / f"{stage}.before.json"
    if path.exists():
        path.replace(before)
        return None
    record = read_record(folder, f"{stage}.before")
    if record is None:
        return None
    return why_again(record, inputs) or "it was not finished"


_ABSENT = object()


def _differs(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return bool(old.get(name, _ABSENT) != new.get(name, _ABSENT))


def _change(name: str, old: Any, new: Any) -> str:
    """A change as a person can read it: hashes are only named."""
    texts = [json.dumps(value) for value in (old, new)]
    if any(len(text) > 40 for text in texts) or name.startswith("the "):
        return name
    return f"{name} was {texts[0]}, is {texts[1]}"


Done = Mapping[str, Record]
"""Records of the stages before, by name."""


@dataclass
class Outcome:
    """What a stage found and wrote.

    Attributes:
        result: plain values; later stages depend on them.
        files: {what: path}.
        lines: for people, what was found.
        warnings: for people, what they should look at.
    """

    result: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: as in `--stop-after`.
        title: what it does, for people.
        inputs: everything that its outcome depends on, plain values by name.
        work: does it.
    """

    name: str
    title: str
    inputs: Callable[[Job, Done], dict[str, Any]]
    work: Callable[[Job, Done], Outcome]


class NeedsPersonError(Exception):
    """A person has to look before it goes on; the message says at what, and how to go on."""
