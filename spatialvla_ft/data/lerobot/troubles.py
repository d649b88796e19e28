"""What is wrong with a LeRobot dataset as it lies on disk, and what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from spatialvla_ft.data.errors import DatasetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """One kind of mistake, told by its first case.

    Attributes:
        rule: name of the kind.
        serious: whether what is read would be wrong, so that nothing may be read.
        where: camera or column.
        evidence: episode, step, file and numbers of the first case.
        cure: what to change.
        cases: how many there are.
        unit: what is counted.
    """

    rule: str
    serious: bool
    where: str
    evidence: str
    cure: str
    cases: int = 1
    unit: str = "episodes"

    @property
    def told(self) -> str:
        """The evidence, and how many more there are."""
        others = "" if self.cases == 1 else f" (the first of {self.cases} {self.unit})"
        return f"{self.evidence}{others}"

    def __str__(self) -> str:
        """In a sentence."""
        return f"{self.where}: {self.told}; {self.cure}"


def joined(troubles: Sequence[Trouble]) -> list[Trouble]:
    """One of each kind and place, its cases added up, the first one told."""
    found: dict[tuple[str, str], Trouble] = {}
    for trouble in troubles:
        key = trouble.rule, trouble.where
        first = found.get(key)
        if first is not None:
            trouble = replace(first, cases=first.cases + trouble.cases)
        found[key] = trouble
    return list(found.values())


def refuse(name: str, troubles: Sequence[Trouble]) -> None:
    """Log what is only odd.

    Args:
        name: of the dataset, or empty where the caller adds it.
        troubles: what was found.

    Raises:
        DatasetError: all that is serious.
    """
    serious = [str(trouble) for trouble in troubles if trouble.serious]
    if len(serious) == 1:
        raise DatasetError(f"{name}, {serious[0]}" if name else serious[0])
    if serious:
        told = f"{name} cannot be read right:" if name else "cannot be read right:"
        raise DatasetError("\n  ".join([told, *serious]))
    for trouble in troubles:
        logger.warning("%s, %s", name, trouble)
