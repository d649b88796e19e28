"""The gate of the quickstart: did adaptation work, by a rule fixed beforehand?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spatialvla_ft.evaluation.outcome import ClosedLoop
from spatialvla_ft.viz.run_files import BASELINES, POLICIES

THRESHOLD = 0.5
RULE = (
    "the adapted policy solves at least half of its episodes, and its Wilson 95 % interval lies "
    "above the interval of every baseline"
)


@dataclass(frozen=True)
class Gate:
    """Verdict.

    Attributes:
        passed: all conditions of RULE hold.
        reasons: what keeps it from passing, one clause each.
    """

    passed: bool
    reasons: tuple[str, ...]


def judge(outcomes: Mapping[str, Sequence[ClosedLoop]]) -> Gate:
    """Apply RULE to the adapted policy's first task.

    A baseline that is missing, or was evaluated under other conditions, fails the gate: nothing
    was shown about it.
    """
    if not outcomes.get("adapted"):
        return Gate(False, ("the adapted policy was not evaluated (eval/adapted.json)",))
    adapted = outcomes["adapted"][0]
    low = adapted.interval[0]
    reasons = []
    if adapted.rate < THRESHOLD:
        reasons.append(f"the adapted policy solved {adapted.successes} of {adapted.episodes}")
    for name in BASELINES:
        label = f"“{POLICIES[name]}”"
        same = [o for o in outcomes.get(name, ()) if o.task == adapted.task]
        if not same:
            reasons.append(f"baseline {label} was not evaluated (eval/{name}.json)")
            continue
        baseline = same[0]
        if (baseline.robot, baseline.settings) != (adapted.robot, adapted.settings):
            reasons.append(f"baseline {label} was evaluated under other conditions")
        elif not baseline.interval[1] < low:
            reasons.append(
                f"the interval of baseline {label} reaches {baseline.interval[1]:.1%}, that of the "
                f"adapted policy begins at {low:.1%}"
            )
    return Gate(not reasons, tuple(reasons))
