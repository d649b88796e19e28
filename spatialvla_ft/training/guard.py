"""Whether a step may be taken: no NaN, no infinity, and no loss that has run away."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from .sections import LossGuard

LEAST_HISTORY = 50
"""Steps before a loss can be called far above what it was."""
LEAST_RISE = 1.0
"""Nats above the median that are a rise, so that a loss near 0 may be noisy."""


class Guard:
    """Judges every step before the optimiser moves; all ranks judge the same numbers.

    A loss has run away when it stays above `factor` times the median of the last `window` steps,
    and at least one nat above it, for `steps` steps in a row.

    Args:
        rule: factor, steps, window; None only looks for what is not finite.
    """

    def __init__(self, rule: LossGuard | None) -> None:
        self.rule = rule
        self.history: deque[float] = deque(maxlen=rule.window if rule else 1)
        self.high = 0

    @property
    def calm(self) -> bool:
        """Whether the last loss was an ordinary one, so that a checkpoint is a good one."""
        return self.high == 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to remember, as JSON holds it."""
        return {"history": list(self.history), "high": self.high}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` gave; a shorter window keeps the newest."""
        self.history.extend(state["history"])
        self.high = state["high"]

    def judge(self, losses: Sequence[Sequence[float]], norm: float) -> str | None:
        """What is wrong with the step, in words, or None.

        Args:
            losses: of every rank's micro-batches.
            norm: of the gradient, before clipping.
        """
        for rank, own in enumerate(losses):
            for k, value in enumerate(own):
                if not math.isfinite(value):
                    where = f"micro-batch {k + 1} of {len(own)}, rank {rank}"
                    return f"the loss became {value:g} ({where})"
        if not math.isfinite(norm):
            return f"the norm of the gradient became {norm:g}"
        return self._run_away(fmean([value for own in losses for value in own]))

    def _run_away(self, loss: float) -> str | None:
        rule, usual = self.rule, 0.0
        if rule is None:
            return None
        if len(self.history) >= min(LEAST_HISTORY, rule.window):
            usual = median(self.history)
            limit = max(rule.factor * usual, usual + LEAST_RISE)
            self.high = self.high + 1 if loss > limit else 0
        if self.high == 0:
            self.history.append(loss)  # what is too high never becomes what is usual
        if self.high < rule.steps:
            return None
        return (
            f"the loss has run away: {loss:.3g}, above {rule.factor:g} times its median "
            f"{usual:.3g} for {self.high} steps in a row (train.loss_guard)"
        )
