"""What a stage of an adaptation is, and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatialvla_ft.cli.adapting.job import Job
from spatialvla_ft.cli.adapting.ledger import Record

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
