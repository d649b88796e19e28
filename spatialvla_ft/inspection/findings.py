"""What an inspection finds: where, how bad, on what evidence, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.checks import check_files, clip_troubles, row_troubles
from spatialvla_ft.data.lerobot.store import TASK, LeRobotSource
from spatialvla_ft.data.store import Source

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about a dataset that smells.

    Attributes:
        rule: name of the rule, the same in every dataset.
        severity: `error` where training would break or learn nonsense, `warning` where it
            probably would, `note` where it is good to know.
        where: column, dimension, camera or episode.
        evidence: what was measured, with its numbers.
        cure: what to change, mostly a line of the card.
    """

    rule: str
    severity: Severity
    where: str
    evidence: str
    cure: str

    def to_dict(self) -> dict[str, str]:
        """As JSON can hold it."""
        return asdict(self)


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors, warnings, notes; else in the order given."""
    order = get_args(Severity)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))


def percent(share: float) -> str:
    """A share as text; tenths below 10 %."""
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def findings_of_files(source: Source, card: Card) -> list[Finding]:
    """What is wrong with the files of a LeRobot dataset that a card reads, of all episodes.

    Where the frames lie, time stamps, frame numbers, numbers of tasks, missing files: nothing of it
    needs a picture decoded.
    """
    if not isinstance(source, LeRobotSource):
        return []
    store = source.store
    store.go_by(card.video)
    terms = [*(card.cameras or {}).values(), *card.depth.values()]
    keys = [term.path for term in terms if term.path in store.info.features]
    found = [
        Finding(
            rule="not read",
            severity="note",
            where=feature.key,
            evidence=feature.obstacle,
            cure="no harm unless a card names it",
        )
        for feature in store.info.features.values()
        if feature.obstacle is not None
    ]
    troubles = clip_troubles(store, keys)
    if any(trouble.serious for trouble in troubles):
        keys = []  # rows are looked at once their clips are right
    words = TASK in card.language.keys
    try:
        troubles += row_troubles(store, keys, words=words)
        check_files(store, keys, np.arange(len(store.episodes)))
    except DatasetError as error:
        found.append(
            Finding(
                rule="files",
                severity="error",
                where=store.name,
                evidence=str(error),
                cure="the dataset is not whole",
            )
        )
    return found + [
        Finding(
            rule=trouble.rule,
            severity="error" if trouble.serious else "warning",
            where=trouble.where,
            evidence=trouble.told,
            cure=trouble.cure,
        )
        for trouble in troubles
    ]
