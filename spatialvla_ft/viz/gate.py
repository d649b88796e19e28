"""The verdict on a quickstart: did adaptation work, by a rule fixed beforehand?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from spatialvla_ft.evaluation.outcome import ClosedLoop
from spatialvla_ft.viz.numbers import count, percent, rated
from spatialvla_ft.viz.run_files import BASELINES, POLICIES

LEAST_SOLVED = 0.85
"""Share of its episodes that the adapted policy must solve."""
LEAST_LEAD = 0.25
"""By so much its interval must begin above the end of every baseline's."""
MOST_UNADAPTED = 0.20
"""Share that the base may solve without adaptation: more, and there is little to adapt."""
MOST_WRONG = 0.05
"""Share of episodes that the adapted policy may end at a block that was not named."""


@dataclass(frozen=True)
class Condition:
    """One part of the rule.

    Attributes:
        rule: what is asked for.
        found: the numbers.
        holds: they are as asked for.
    """

    rule: str
    found: str
    holds: bool

    @property
    def sentence(self) -> str:
        """For a terminal or a page."""
        return f"{'Holds' if self.holds else 'DOES NOT HOLD'}: {self.rule}; {self.found}."


@dataclass(frozen=True)
class Verdict:
    """What the rule says, condition by condition."""

    conditions: tuple[Condition, ...]

    @property
    def passed(self) -> bool:
        """Every condition holds."""
        return all(condition.holds for condition in self.conditions)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What keeps it from passing."""
        return tuple(f"{c.rule}; {c.found}" for c in self.conditions if not c.holds)

    @property
    def headline(self) -> str:
        """The whole in one sentence."""
        number, failed = len(self.conditions), len(self.reasons)
        if self.passed:
            return f"Gate passed: all {number} conditions, fixed beforehand, hold."
        return f"Gate NOT passed: {failed} of {number} conditions, fixed beforehand, failed."

    @property
    def sentences(self) -> tuple[str, ...]:
        """The headline, then every condition with its numbers."""
        return (self.headline, *(condition.sentence for condition in self.conditions))


def judge(outcomes: Mapping[str, Sequence[ClosedLoop]]) -> Verdict:
    """Apply the rule to the adapted policy's first task.

    A baseline that is missing, or was evaluated under other conditions, fails: nothing was shown
    about it.

    Args:
        outcomes: results by the names of `run_files.POLICIES`.
    """
    if not outcomes.get("adapted"):
        rule = f"the adapted policy solves at least {percent(LEAST_SOLVED)}"
        return Verdict((Condition(rule, "it was not evaluated (eval/adapted.json)", False),))
    return Verdict(tuple(_conditions(outcomes, outcomes["adapted"][0])))


def _conditions(
    outcomes: Mapping[str, Sequence[ClosedLoop]], adapted: ClosedLoop
) -> Iterator[Condition]:
    yield Condition(
        f"the adapted policy solves at least {percent(LEAST_SOLVED)}",
        f"it solved {rated(adapted.solved)}",
        adapted.rate >= LEAST_SOLVED,
    )
    yield Condition(
        f"it ends at a wrong block in at most {percent(MOST_WRONG)}",
        f"it did in {rated(adapted.wrong)}",
        adapted.wrong.rate <= MOST_WRONG,
    )
    for name in BASELINES:
        baseline, trouble = _baseline(outcomes, adapted, name)
        if name == "unadapted":
            yield Condition(
                f"the base solves at most {percent(MOST_UNADAPTED)} without adaptation",
                trouble if baseline is None else f"it solved {rated(baseline.solved)}",
                baseline is not None and baseline.rate <= MOST_UNADAPTED,
            )
        rule = (
            f"its interval begins at least {100 * LEAST_LEAD:.0f} points above the end of that of "
            f"“{POLICIES[name]}”"
        )
        if baseline is None:
            yield Condition(rule, trouble, False)
            continue
        low, high = adapted.interval[0], baseline.interval[1]
        where = f"{abs(100 * (low - high)):.0f} points {'above' if low >= high else 'BELOW'}"
        found = f"{percent(low)} is {where} {percent(high)} ({count(baseline.solved)})"
        yield Condition(rule, found, low - high >= LEAST_LEAD)


def _baseline(
    outcomes: Mapping[str, Sequence[ClosedLoop]], adapted: ClosedLoop, name: str
) -> tuple[ClosedLoop | None, str]:
    """(the result to compare with, or what is wrong with it)."""
    same = [one for one in outcomes.get(name, ()) if one.task == adapted.task]
    if not same:
        return None, f"that was not evaluated (eval/{name}.json)"
    if (same[0].robot, same[0].settings) != (adapted.robot, adapted.settings):
        return None, f"that was evaluated under other conditions (eval/{name}.json)"
    return same[0], ""
