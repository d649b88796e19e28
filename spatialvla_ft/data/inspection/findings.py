"""What an inspection finds: where, how bad, on what evidence, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

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
