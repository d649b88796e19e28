"""Where a demonstration went, told from its end: the tool's place as the gripper closed or opened.

What the robot is sent to is where its tool is when the gripper closes (a grasp), when it opens
again (a release), or, where the gripper never changes, when the episode ends (a touch, a push). All
steps before such an event are on the way to it, so they share one point:

    steps    0 ... c | c+1 ... o | o+1 ... c'| ...
    point    tool[c] |  tool[o]  |  tool[c'] | ... none after the last event

c is the first step whose action commands a closed gripper: at that step the fingers stand around
the thing and have not moved yet.

Shape letter: T steps of an episode.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.spatial.transform import Rotation

By = Literal["auto", "gripper", "contact"]
Kind = Literal["close", "open", "end"]

CLOSED_BELOW, OPEN_ABOVE = 0.3, 0.7
"""Commanded opening below which a gripper counts as closed, above which as open; between, as
before."""
STEADY = 3
"""Steps that a gripper must stay as it is to count as changed."""

NO_STEPS = "the episode has no steps"
NEVER_CLOSES = "the gripper never closes"
ONLY_OPENS = "the gripper opens, but does not close before"
NO_POSITION = "the tool's position is not known where the gripper changes or the episode ends"


@dataclass(frozen=True)
class Gripping:
    """When a commanded opening counts as a change.

    Attributes:
        closed_below, open_above: thresholds, 0 closed to 1 open; between them nothing changes.
        steady: steps; shorter states are taken for noise, except at both ends of an episode.
    """

    closed_below: float = CLOSED_BELOW
    open_above: float = OPEN_ABOVE
    steady: int = STEADY

    def __post_init__(self) -> None:
        """ValueError unless both thresholds are in order."""
        if not 0 <= self.closed_below < self.open_above <= 1:
            raise ValueError(
                f"closed_below {self.closed_below:g} and open_above {self.open_above:g}: 0 <= "
                "closed_below < open_above <= 1 is needed, with 1 = open"
            )
        if self.steady < 1:
            raise ValueError(f"steady: got {self.steady}, allowed are 1 or more steps")


@dataclass(frozen=True)
class Event:
    """Step at which something happens, and what."""

    step: int
    kind: Kind


@dataclass(frozen=True)
class Hindsight:
    """What an episode tells.

    Attributes:
        points: (T, 3) base frame, metres; NaN where there is none.
        events: that gave points, in order.
        why: reason why there are none; empty where there are.
    """

    points: Float32[np.ndarray, "T 3"]
    events: tuple[Event, ...]
    why: str = ""


def closed_steps(opening: Float[np.ndarray, " T"], how: Gripping) -> Bool[np.ndarray, " T"]:
    """Whether the gripper counts as closed, with hysteresis and without short-lived states.

    Args:
        opening: commanded, 1 open, 0 closed.
        how: thresholds, and how long a state must last.
    """
    count = len(opening)
    decided = np.flatnonzero((opening < how.closed_below) | (opening > how.open_above))
    if not len(decided):
        return np.zeros(count, bool)
    # Every step takes the state of the last decided one; those before the first, that one's.
    at = np.maximum(np.searchsorted(decided, np.arange(count), side="right") - 1, 0)
    closed = opening[decided[at]] < how.closed_below
    starts = [0, *(np.flatnonzero(closed[1:] != closed[:-1]) + 1).tolist(), count]
    found = closed.copy()
    for start, stop in itertools.pairwise(starts):
        lasts = stop - start >= how.steady or start == 0 or stop == count
        found[start:] = closed[start] if lasts else found[start - 1]
    return found


def gripper_events(closed: Bool[np.ndarray, " T"]) -> list[Event]:
    """Closings and the openings after them; an opening before the first closing is none."""
    changes = np.flatnonzero(closed[1:] != closed[:-1]) + 1
    events = [Event(int(step), "close" if closed[step] else "open") for step in changes]
    return events[1:] if events and events[0].kind == "open" else events


def in_hindsight(
    tool: Float[np.ndarray, "T 3"],
    opening: Float[np.ndarray, " T"] | None,
    end: Float[np.ndarray, 3] | None,
    by: By = "auto",
    how: Gripping | None = None,
) -> Hindsight:
    """The point that every step of an episode is on its way to.

    Args:
        tool: where the tool is before each action, base frame, metres.
        opening: commanded, 1 open, 0 closed; None for a robot without a gripper.
        end: where the tool is after the last action; None for where it was before.
        by: `gripper` for its changes alone, `contact` for the end of the episode alone, `auto` for
            the end where the gripper never changes and for its changes elsewhere.
        how: when the gripper changes.
    """
    count = len(tool)
    nothing = np.full((count, 3), np.nan, np.float32)
    if not count:
        return Hindsight(nothing, (), NO_STEPS)
    closed = np.zeros(count, bool)
    if opening is not None and by != "contact":
        closed = closed_steps(opening, how or Gripping())
    events = gripper_events(closed)
    if not events:
        opens = bool(closed.any() and not closed.all())
        if by != "contact" and (opens or by == "gripper"):
            return Hindsight(nothing, (), ONLY_OPENS if opens else NEVER_CLOSES)
        events = [Event(count - 1, "end")]
    places = [tool[e.step] if e.kind != "end" or end is None else end for e in events]
    if not np.isfinite(places).all():
        return Hindsight(nothing, (), NO_POSITION)
    points = nothing.copy()
    start = 0
    for event, place in zip(events, places, strict=True):
        points[start : event.step + 1] = place
        start = event.step + 1
    return Hindsight(points, tuple(events))


def with_offset(
    position: Float[np.ndarray, "T 3"], rotation: Rotation, offset: Float[np.ndarray, 3]
) -> Float[np.ndarray, "T 3"]:
    """Positions of a point that is fixed to the tool.

    Args:
        position: of the tool, base frame, metres.
        rotation: T turns from the tool's frame to the base.
        offset: of the point, tool frame, metres.
    """
    return np.asarray(position + rotation.apply(offset))


@dataclass(frozen=True)
class Following:
    """How the tool follows its commands.

    Attributes:
        gain: metres moved per unit commanded; near 1 where commands are metres.
        correlation: near 1 where commands are in the base frame; low in another one.
    """

    gain: float = 0.0
    correlation: float = 0.0


def following(moved: Float[np.ndarray, "N 3"], commanded: Float[np.ndarray, "N 3"]) -> Following:
    """Least squares of moved = gain * commanded; all 0 where nothing moves.

    Args:
        moved: change of the tool's position until the next step, metres.
        commanded: translation of the action of that step.
    """
    finite = np.isfinite(moved).all(axis=1) & np.isfinite(commanded).all(axis=1)
    moved, commanded = moved[finite], commanded[finite]
    across = float((moved * commanded).sum())
    squares, lengths = float((commanded**2).sum()), float((moved**2).sum())
    if squares <= 0 or lengths <= 0:
        return Following()
    return Following(across / squares, across / float(np.sqrt(squares * lengths)))
