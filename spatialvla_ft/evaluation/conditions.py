"""Under which conditions a policy is evaluated in simulation: those of its training data.

A recording says in its card how it was made; training hands that on in `processor_config.json`, and
an export keeps it. What the command line gives goes before, and where nothing is known the old
defaults stand. Whichever it is, it is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.cards.fields import RECORDED, Recorded

DEFAULTS: dict[str, Any] = {
    "tasks": ["touch"],
    "image_size": 64,
    "camera_mode": "random",
    "distractors": [0],
}
"""Where neither the command line nor a recording says; a robot must be named."""
OPTIONS = {
    "robot": "--robot",
    "tasks": "--task",
    "image_size": "--image-size",
    "camera_mode": "--camera-mode",
    "distractors": "--distractors",
}


@dataclass(frozen=True)
class Conditions:
    """What an evaluation is run under.

    Attributes:
        robot, tasks, image_size, camera_mode, distractors: of the simulation.
        dataset: whose conditions were taken where nothing was given; None where none is known.
        lines: for people, where each comes from.
        warnings: where it is not what the policy was trained on, or scenes that it was trained on.
    """

    robot: str
    tasks: tuple[str, ...]
    image_size: int
    camera_mode: str
    distractors: tuple[int, ...]
    dataset: str | None
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "tasks": list(self.tasks), "distractors": list(self.distractors)}


def recorded_of_checkpoint(folder: Path) -> dict[str, Recorded]:
    """How the simulated datasets behind a checkpoint or adapter were recorded, by name."""
    file = folder / "processor_config.json"
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8")).get(RECORDED) or {}
    return {name: Recorded.model_validate(one) for name, one in content.items()}


def conditions_of(
    given: Mapping[str, Any],
    recorded: Mapping[str, Recorded],
    seeds: Sequence[int],
    *,
    whose: str = "the policy's training data",
) -> Conditions:
    """What to evaluate under.

    Args:
        given: by the command line, of the fields of `OPTIONS`; None where not given.
        recorded: how the datasets were recorded, by name.
        seeds: of the episodes to come.
        whose: whose datasets these are, for people.

    Raises:
        ValueError: no robot is named or known, or the datasets were recorded differently.
    """
    name, known = _chosen(given, recorded)
    taken: dict[str, Any] = {}
    lines, warnings = [], []
    for what in OPTIONS:
        wanted = given.get(what)
        if wanted is not None:
            taken[what] = wanted
            if known is not None and _differs(what, wanted, getattr(known, what)):
                warnings.append(
                    f"{OPTIONS[what]} is {_words(wanted)}, but {name} was recorded with "
                    f"{_words(getattr(known, what))}: these are other conditions than those of "
                    "training"
                )
        elif known is not None:
            taken[what] = getattr(known, what)
        elif what in DEFAULTS:
            taken[what] = DEFAULTS[what]
        else:
            raise ValueError(
                f"nothing says how {whose} was recorded, so give the robot: --robot robot_a or "
                "--robot robot_b"
            )
    own = [what for what in OPTIONS if given.get(what) is None]
    listed = "; ".join(f"{OPTIONS[what][2:]} {_words(taken[what])}" for what in own)
    if own and known is not None:
        lines.append(f"as {name} was recorded: {listed}")
    elif own:
        lines.append(f"nothing says how {whose} was recorded; by default: {listed}")
    for other, one in recorded.items():
        first, last = one.seeds
        both = [seed for seed in seeds if first <= seed <= last]
        if both and one.robot == taken["robot"] and set(one.tasks) & set(taken["tasks"]):
            warnings.append(
                f"seeds {both[0]} to {both[-1]} are among those that {other} was recorded with "
                f"({first} to {last}): the policy may know these {len(both)} scenes; take others "
                "with --seed"
            )
    return Conditions(
        robot=taken["robot"],
        tasks=tuple(taken["tasks"]),
        image_size=int(taken["image_size"]),
        camera_mode=taken["camera_mode"],
        distractors=tuple(taken["distractors"]),
        dataset=name,
        lines=lines,
        warnings=warnings,
    )


def _chosen(
    given: Mapping[str, Any], recorded: Mapping[str, Recorded]
) -> tuple[str | None, Recorded | None]:
    """The dataset whose conditions count."""
    fitting = {
        name: one for name, one in recorded.items() if given.get("robot") in (None, one.robot)
    }
    fitting = fitting or dict(recorded)
    if not fitting:
        return None, None
    open_ = [what for what in OPTIONS if given.get(what) is None]
    told = {
        name: json.dumps([getattr(one, what) for what in open_]) for name, one in fitting.items()
    }
    if len(set(told.values())) > 1:
        raise ValueError(
            f"the policy's datasets {', '.join(fitting)} were recorded under different "
            f"conditions: say whose count with --unnorm-key, or give "
            f"{', '.join(OPTIONS[what] for what in open_)}"
        )
    return next(iter(fitting.items()))


def _differs(what: str, wanted: Any, known: Any) -> bool:
    if what == "tasks":
        return not set(wanted) <= set(known)
    return bool((list(wanted) if isinstance(wanted, tuple) else wanted) != known)


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
