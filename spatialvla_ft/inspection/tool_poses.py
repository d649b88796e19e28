"""Are the streams of tool poses absolute, or differences? `tcp_kind` asked of many episodes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatialvla_ft.actions.spaces import ActionSpace
from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.inspection.findings import Finding
from spatialvla_ft.inspection.motion import quaternion_starts
from spatialvla_ft.inspection.series import Series
from spatialvla_ft.inspection.tcp_kind import (
    DEFAULT_INTERVAL,
    MIN_SAMPLES,
    Kind,
    TcpVerdict,
    tcp_kind,
)

AGREEING, CONTRADICTING = 0.5, 0.05
"""Share of the episodes that must say the same, and that may say the opposite."""
RAW = re.compile(r"tcp|eef|ee_pos|ee_pose|cartesian_pos|end_effector|tool_pos")
"""Names of columns that may hold poses though the card reads none from them."""
RULE = "pose or difference"


@dataclass(frozen=True)
class PoseStream:
    """A stream of tool poses, judged episode by episode.

    Attributes:
        name: proprio, action with its dimensions, or the key of a raw column.
        declared: what the card says it is; None of a column that the card does not read.
        kind: what the episodes say together.
        votes: of the episodes that are long enough.
        too_short: episodes with fewer than 20 samples.
        interval: seconds between samples that was assumed, None where the rate is known.
        numbers: the median over the judged episodes of each number of `tcp_kind`.
        against: {"absolute" or "difference": {why not: in how many episodes}}.
    """

    name: str
    declared: Kind | None
    kind: Kind
    votes: dict[Kind, int]
    too_short: int
    interval: float | None
    numbers: dict[str, float]
    against: dict[str, dict[str, int]]

    @property
    def judged(self) -> int:
        """Episodes that were long enough."""
        return sum(self.votes.values())

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dict(vars(self))

    def told(self) -> str:
        """The verdict, with its votes, for people."""
        if not self.judged:
            return f"AMBIGUOUS: no episode has {MIN_SAMPLES} steps"
        said = ", ".join(f"{n} {kind}" for kind, n in self.votes.items() if n)
        if self.too_short:
            said += f", {self.too_short} shorter than {MIN_SAMPLES} steps"
        word = self.kind.upper() if self.kind == "ambiguous" else self.kind
        return f"{word} (episodes: {said})"

    def why_not(self, story: str) -> str:
        """What speaks against a story, the reason of most episodes first."""
        reasons = self.against[story].items()
        listed = [f"{why} ({n} of {self.judged})" for why, n in reasons]
        return "; ".join(listed) if listed else "possible" if self.judged else "unknown"


def pose_streams(
    card: Card,
    space: ActionSpace,
    actions: Series,
    proprio: Series | None,
    columns: Mapping[str, Series],
    hz: float | None,
) -> tuple[PoseStream, ...]:
    """Every stream of tool poses in the episodes looked at.

    Args:
        card: how the dataset is read.
        space: of the actions.
        actions: standard actions.
        proprio: the state by the card, or None.
        columns: the raw numeric columns.
        hz: steps per second; 5 is assumed where it is not known.
    """
    found = []
    encoding = card.proprio.encoding if card.proprio else None
    if proprio is not None and encoding in ("POS_EULER", "POS_QUAT"):
        # In which order a card's quaternion stands is not said: positions are told without it.
        width = 6 if encoding == "POS_EULER" else 3
        if proprio.values.shape[1] >= width:
            found.append(_judge("proprio", "absolute", proprio.columns(slice(0, width)), hz))
    first = 0
    groups = [*space.groups]
    for i, group in enumerate(groups):
        where = slice(first, first + group.dim)
        first += group.dim
        if group.role != "translation" or group.unit != "m":
            continue
        following = groups[i + 1] if i + 1 < len(groups) else None
        if following is not None and following.role == "rotation" and following.dim == 3:
            where = slice(where.start, where.stop + 3)
        declared: Kind = "difference" if group.delta else "absolute"
        name = f"action {' '.join(space.names[where])}"
        found.append(_judge(name, declared, actions.columns(where), hz))
    read = {term.path for term in card.action.terms}
    read |= {term.path for term in (card.proprio.terms if card.proprio else ())}
    for key, series in columns.items():
        width = series.values.shape[1]
        if key in read or width not in (3, 6, 7) or not RAW.search(key.lower()):
            continue
        taken = 3 if quaternion_starts(series) else min(width, 6)
        found.append(_judge(key, None, series.columns(slice(0, taken)), hz))
    return tuple(found)


def pose_findings(streams: Sequence[PoseStream], others: Sequence[Finding]) -> list[Finding]:
    """Streams that are not what the card says, and those that nobody can tell.

    Args:
        streams: what was judged.
        others: findings so far; an action that another rule calls absolute is told once.
    """
    told = any(finding.rule == "absolute or delta" for finding in others)
    found = []
    for stream in streams:
        if stream.kind == "ambiguous":
            found.append(_ambiguous(stream))
        elif stream.declared not in (None, stream.kind):
            if stream.name.startswith("action") and told:
                continue
            found.append(_contradiction(stream))
    return found


def _ambiguous(stream: PoseStream) -> Finding:
    reads = f"; the card reads it as {stream.declared}" if stream.declared else ""
    if stream.judged:
        stories = ", ".join(
            f"{story}: {stream.why_not(story)}" for story in ("absolute", "difference")
        )
        evidence = f"{stream.told()}{reads}. {stories}"
    else:
        evidence = f"{stream.told()}{reads}"
    return Finding(
        rule=RULE,
        severity="note",
        where=stream.name,
        evidence=evidence,
        cure="the numbers do not tell whether these are poses or differences of poses, in metres "
        "and radians: find out from who recorded them before you rely on the card's reading",
    )


def _contradiction(stream: PoseStream) -> Finding:
    cure = (
        "take the column with the absolute pose, or proprio encoding NONE"
        if stream.kind == "difference"
        else "say how a change is made of it, e.g. relabel: {dims: [0, 6], from: "
        '"observation.state[0:6]", rule: next_minus_current}'
    )
    if stream.name.startswith("action") and stream.kind == "difference":
        cure = "say reference: delta in the card's action, or read the column with the pose"
    return Finding(
        rule=RULE,
        severity="error",
        where=stream.name,
        evidence=f"looks {stream.told()}, {stream.declared} is expected; not {stream.declared}: "
        f"{stream.why_not(stream.declared or '')}",
        cure=cure,
    )


def _judge(name: str, declared: Kind | None, series: Series, hz: float | None) -> PoseStream:
    episodes = [part for part in series.episodes() if len(part) >= MIN_SAMPLES]
    verdicts = [tcp_kind(part, _times(part, hz)) for part in episodes]
    votes: dict[Kind, int] = {"absolute": 0, "difference": 0, "ambiguous": 0}
    for verdict in verdicts:
        votes[verdict.kind] += 1
    names = dict.fromkeys(key for verdict in verdicts for key in verdict.numbers)
    numbers = {
        key: float(np.median([v.numbers[key] for v in verdicts if key in v.numbers]))
        for key in names
    }
    return PoseStream(
        name=name,
        declared=declared,
        kind=_together(votes),
        votes=votes,
        too_short=int((series.lengths < MIN_SAMPLES).sum()),
        interval=None if hz else DEFAULT_INTERVAL,
        numbers=numbers,
        against={
            "absolute": _reasons(verdicts, "against_absolute"),
            "difference": _reasons(verdicts, "against_difference"),
        },
    )


def _times(part: NDArray[Any], hz: float | None) -> NDArray[np.float64] | None:
    return np.arange(len(part)) / hz if hz else None


def _reasons(verdicts: Sequence[TcpVerdict], story: str) -> dict[str, int]:
    return dict(Counter(why for v in verdicts for why in getattr(v, story)).most_common())


def _together(votes: Mapping[Kind, int]) -> Kind:
    total = sum(votes.values())
    pairs: tuple[tuple[Kind, Kind], ...] = (
        ("absolute", "difference"),
        ("difference", "absolute"),
    )
    for kind, opposite in pairs:
        agree, contradict = votes[kind], votes[opposite]
        if total and agree >= AGREEING * total and contradict <= CONTRADICTING * total:
            return kind
    return "ambiguous"
