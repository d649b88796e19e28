"""Whether a policy has collapsed: what it predicts, against what the data does.

A collapsed policy has a falling loss and a fair accuracy, and its robot stands still: it says the
same action whatever it sees, never closes the gripper, never turns, or never looks. Predictions are
greedy, as on the robot, on frames of held-out episodes.

Shape letters: M actions, D action dimensions, S slots, F frames, N tokens of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ..actions.layout import Slot
from ..actions.spaces import ActionSpace
from .metrics import dimension_names

LEAST_FRAMES = 8
"""Fewer frames say nothing."""
LEAST_VARIANCE = 0.01
"""Share of the data's variance below which a dimension counts as constant."""
COMMON = 0.9
"""A token that makes up so much of the data may be predicted always."""
RARE = 0.05
"""A gripper state must make up this share of the data to be missed."""
LEAST_CHANGED = 0.02
"""Share of tokens that other pictures must change."""
DATA_CHANGES = 0.2
"""Where the recorded tokens of the frames differ less, other pictures need change nothing."""
LEAST_GAIN = 0.01
"""Nats by which the loss must rise with the pictures of other frames."""


@dataclass(frozen=True)
class Predictions:
    """Greedy predictions on recorded frames, and the same with the pictures of other frames.

    Attributes:
        guess, truth: in the robot's units, of actions that the episodes really have.
        guess_ids, truth_ids: their tokens, a column per slot.
        ids, swapped_ids: tokens of every frame with its own pictures and with another frame's.
        other_ids: recorded tokens of the frame that lent its pictures; own_ids its own.
        loss, swapped_loss: mean cross entropy along the recorded tokens, in nats.
    """

    guess: Float[np.ndarray, "M D"]
    truth: Float[np.ndarray, "M D"]
    guess_ids: Int[np.ndarray, "M S"]
    truth_ids: Int[np.ndarray, "M S"]
    ids: Int[np.ndarray, "F N"]
    swapped_ids: Int[np.ndarray, "F N"]
    own_ids: Int[np.ndarray, "F N"]
    other_ids: Int[np.ndarray, "F N"]
    loss: float
    swapped_loss: float


def spread_metrics(
    seen: Predictions, slots: Sequence[Slot], space: ActionSpace
) -> dict[str, float]:
    """variance_ratio/DIMENSION, distinct_tokens/SLOT and image/... of these predictions."""
    found: dict[str, float] = {}
    for name, ratio in zip(dimension_names(space), _variance_ratio(seen), strict=True):
        if np.isfinite(ratio):
            found[f"variance_ratio/{name}"] = float(ratio)
    for i, slot in enumerate(slots):
        distinct = [len(np.unique(ids[:, i])) for ids in (seen.guess_ids, seen.truth_ids)]
        found[f"distinct_tokens/{slot.name}"] = distinct[0] / distinct[1]
    found["image/tokens_changed"] = float((seen.ids != seen.swapped_ids).mean())
    found["image/loss_gain"] = seen.swapped_loss - seen.loss
    return found


def collapsed(seen: Predictions, slots: Sequence[Slot], space: ActionSpace) -> dict[str, str]:
    """{short name: what is wrong and on what evidence}; empty for a healthy policy."""
    if len(seen.ids) < LEAST_FRAMES:
        return {}
    return {**_constant(seen, space), **_unused(seen, slots), **_blind(seen)}


def _variance_ratio(seen: Predictions) -> Float[np.ndarray, " D"]:
    """Variance of the predictions over that of the data; NaN where the data does not move."""
    data = seen.truth.var(axis=0)
    moves = data > 1e-12 * np.maximum(1.0, np.abs(seen.truth).max(axis=0) ** 2)
    return np.where(moves, seen.guess.var(axis=0) / np.where(moves, data, 1.0), np.nan)


def _constant(seen: Predictions, space: ActionSpace) -> dict[str, str]:
    """Dimensions that hardly vary though the data's do; a gripper has a rule of its own."""
    arm = [g.role != "gripper" for g in space.groups for _ in g.names]
    ratio = _variance_ratio(seen)
    stuck = np.flatnonzero((ratio < LEAST_VARIANCE) & arm)
    judged = np.flatnonzero(np.isfinite(ratio) & arm)
    if not stuck.size:
        return {}
    names = [space.names[i] for i in stuck]
    worst = f"{100 * float(ratio[stuck].max()):.2f} %"
    if len(stuck) == len(judged):
        return {
            "constant action": f"every prediction is nearly the same action: its variance is at "
            f"most {worst} of the data's in all of {', '.join(names)} (warned below "
            f"{LEAST_VARIANCE:.0%})"
        }
    return {
        f"constant {name}": f"predicted {name} hardly varies: {100 * ratio[i]:.2f} % of the data's "
        f"variance (warned below {LEAST_VARIANCE:.0%})"
        for name, i in zip(names, stuck, strict=True)
    }


def _unused(seen: Predictions, slots: Sequence[Slot]) -> dict[str, str]:
    """Slots that always get one token though the data has others."""
    found = {}
    for i, slot in enumerate(slots):
        guessed, data = seen.guess_ids[:, i], seen.truth_ids[:, i]
        if len(np.unique(guessed)) > 1:
            continue
        share = float((data == guessed[0]).mean())
        value = seen.guess[0, slot.start : slot.stop]
        if slot.role == "gripper":
            never = "closes" if value[0] >= 0.5 else "opens"
            missed = 1 - share
            if missed >= RARE and (data != guessed[0]).sum() >= 3:
                found[f"{slot.name} never {never}"] = (
                    f"the {slot.name} never {never} in {len(guessed)} predicted actions; the data "
                    f"does in {missed:.1%} of them"
                )
        elif share < COMMON:
            still = slot.delta and bool(np.abs(value).max() < 1e-6)
            found[f"{slot.name} never used"] = (
                f"{slot.name} is always {'no motion' if still else 'one and the same token'} in "
                f"{len(guessed)} predicted actions; the data has {len(np.unique(data))} different "
                "tokens"
            )
    return found


def _blind(seen: Predictions) -> dict[str, str]:
    """Pictures of other frames change neither the tokens nor the loss."""
    changed = float((seen.ids != seen.swapped_ids).mean())
    data = float((seen.own_ids != seen.other_ids).mean())
    gain = seen.swapped_loss - seen.loss
    if changed >= LEAST_CHANGED or data < DATA_CHANGES or gain >= LEAST_GAIN:
        return {}
    return {
        "image-blind": f"pictures of other frames change {changed:.1%} of the predicted tokens "
        f"(warned below {LEAST_CHANGED:.0%}; the recorded ones differ in {data:.0%}) and the loss "
        f"by {gain:+.3f} nats (warned below {LEAST_GAIN:g}): the policy acts without looking"
    }


class CollapseWatch:
    """Warnings from one validation to the next; silent in the first fifth and the first one.

    Args:
        steps: of the whole run.
        validate_every: steps from one validation to the next.
    """

    GRACE = 0.2

    def __init__(self, steps: int, validate_every: int) -> None:
        self.steps, self.validate_every = steps, validate_every
        self.standing: dict[str, str] = {}

    def judges(self, step: int) -> bool:
        """Whether a validation after so many steps counts: an untrained policy is constant too."""
        early = step <= self.validate_every or step < self.GRACE * self.steps
        return step >= self.steps or not early

    def take(self, step: int, found: dict[str, str]) -> tuple[dict[str, str], list[str]]:
        """(what is new, names of what is over) after a validation."""
        if not self.judges(step):
            return {}, []
        before, self.standing = self.standing, found
        new = {name: text for name, text in found.items() if name not in before}
        return new, [name for name in before if name not in found]
