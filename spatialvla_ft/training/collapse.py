"""Whether a policy has collapsed: what it predicts, against what the data does.

A collapsed policy has a falling loss and a fair accuracy, and its robot stands still: it says the
same action whatever it sees, never closes the gripper, never turns, never looks, or never reads.
Predictions are greedy, as on the robot, on frames of held-out episodes.

Shape letters: M actions, D action dimensions, S slots, F frames, N tokens of a frame.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

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
LEAST_REWORDED = 0.12
"""Share that other words must change; unread words stir more than unseen pictures (docs/log.md)."""
DATA_CHANGES = 0.2
"""Where the recorded tokens of the frames differ less, they need change nothing."""
LEAST_GAIN = 0.01
"""Nats by which the loss must rise with the pictures, or the words, of other frames."""


@dataclass(frozen=True)
class Predictions:
    """Greedy predictions on recorded frames, and the same with others' pictures, or others' words.

    Attributes:
        guess, truth: in the robot's units, of actions that the episodes really have.
        guess_ids, truth_ids: their tokens, a column per slot.
        ids, swapped_ids: tokens of every frame with its own pictures and with another frame's.
        other_ids: recorded tokens of the frame that lent its pictures; own_ids its own.
        losses, swapped_losses: cross entropy along the recorded tokens, in nats.
        told: frames for which there was an instruction that says something else.
        told_ids, told_losses: tokens and cross entropy with that instruction and the own pictures.
        lender_ids: recorded tokens of the frame that lent its instruction.
    """

    guess: Float[np.ndarray, "M D"]
    truth: Float[np.ndarray, "M D"]
    guess_ids: Int[np.ndarray, "M S"]
    truth_ids: Int[np.ndarray, "M S"]
    ids: Int[np.ndarray, "F N"]
    swapped_ids: Int[np.ndarray, "F N"]
    own_ids: Int[np.ndarray, "F N"]
    other_ids: Int[np.ndarray, "F N"]
    losses: Float[np.ndarray, " F"]
    swapped_losses: Float[np.ndarray, " F"]
    told: Bool[np.ndarray, " F"]
    told_ids: Int[np.ndarray, "F N"]
    told_losses: Float[np.ndarray, " F"]
    lender_ids: Int[np.ndarray, "F N"]


def lenders(instructions: Sequence[str]) -> list[int]:
    """For each frame one whose instruction says something else, far from it; itself if none does.

    Capitals, spaces and punctuation say nothing.
    """
    said = [" ".join(re.findall(r"\w+", text.lower())) for text in instructions]
    count = len(said)
    found = []
    for i, own in enumerate(said):
        others = ((i + count // 2 + k) % count for k in range(count))
        found.append(next((j for j in others if said[j] != own), i))
    return found


def spread_metrics(
    seen: Predictions, slots: Sequence[Slot], space: ActionSpace
) -> dict[str, float]:
    """variance_ratio/DIMENSION, distinct_tokens/SLOT, image/... and words/... of these."""
    found: dict[str, float] = {}
    for name, ratio in zip(dimension_names(space), _variance_ratio(seen), strict=True):
        if np.isfinite(ratio):
            found[f"variance_ratio/{name}"] = float(ratio)
    for i, slot in enumerate(slots):
        distinct = [len(np.unique(ids[:, i])) for ids in (seen.guess_ids, seen.truth_ids)]
        found[f"distinct_tokens/{slot.name}"] = distinct[0] / distinct[1]
    for name, exchange in (("image", _pictures(seen)), ("words", _words(seen))):
        if exchange.frames:
            found[f"{name}/tokens_changed"] = exchange.changed
            found[f"{name}/loss_gain"] = exchange.gain
    return found


def collapsed(
    seen: Predictions, slots: Sequence[Slot], space: ActionSpace, fixed: Sequence[str] = ()
) -> dict[str, str]:
    """{short name: what is wrong and on what evidence}; empty for a healthy policy.

    Args:
        seen: what was predicted, and what was recorded.
        slots: of the grid.
        space: what the actions are.
        fixed: dimensions that cannot vary, since the grid has one bin for them.
    """
    if len(seen.ids) < LEAST_FRAMES:
        return {}
    return {**_constant(seen, space, fixed), **_unused(seen, slots), **_blind(seen), **_deaf(seen)}


def _variance_ratio(seen: Predictions) -> Float[np.ndarray, " D"]:
    """Variance of the predictions over that of the data; NaN where the data does not move."""
    data = seen.truth.var(axis=0)
    moves = data > 1e-12 * np.maximum(1.0, np.abs(seen.truth).max(axis=0) ** 2)
    return np.where(moves, seen.guess.var(axis=0) / np.where(moves, data, 1.0), np.nan)


def _constant(seen: Predictions, space: ActionSpace, fixed: Sequence[str]) -> dict[str, str]:
    """Dimensions that hardly vary though the data's do; a gripper has a rule of its own."""
    arm = [g.role != "gripper" and name not in fixed for g in space.groups for name in g.names]
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


@dataclass(frozen=True)
class _Exchange:
    """What changes with something of another frame.

    Attributes:
        frames: how many were tried.
        least: share of predicted tokens that must change.
        changed: share of predicted tokens that change; `data`, of the recorded ones that differ.
        gain: nats that the loss rises.
    """

    frames: int
    least: float
    changed: float
    data: float
    gain: float

    @property
    def ignored(self) -> bool:
        """Hardly anything changes, where the data does."""
        return (
            self.frames >= LEAST_FRAMES
            and self.changed < self.least
            and self.data >= DATA_CHANGES
            and self.gain < LEAST_GAIN
        )

    def evidence(self, what: str) -> str:
        return (
            f"{what} change {self.changed:.1%} of the predicted tokens (warned below "
            f"{self.least:.0%}; the recorded ones differ in {self.data:.0%}) and the loss by "
            f"{self.gain:+.3f} nats (warned below {LEAST_GAIN:g})"
        )


def _pictures(seen: Predictions) -> _Exchange:
    return _Exchange(
        len(seen.ids),
        LEAST_CHANGED,
        float((seen.ids != seen.swapped_ids).mean()),
        float((seen.own_ids != seen.other_ids).mean()),
        float((seen.swapped_losses - seen.losses).mean()),
    )


def _words(seen: Predictions) -> _Exchange:
    told = seen.told
    if not told.any():
        return _Exchange(0, LEAST_REWORDED, 0.0, 0.0, 0.0)
    return _Exchange(
        int(told.sum()),
        LEAST_REWORDED,
        float((seen.ids != seen.told_ids)[told].mean()),
        float((seen.own_ids != seen.lender_ids)[told].mean()),
        float((seen.told_losses - seen.losses)[told].mean()),
    )


def _blind(seen: Predictions) -> dict[str, str]:
    """Pictures of other frames change neither the tokens nor the loss."""
    exchange = _pictures(seen)
    if not exchange.ignored:
        return {}
    evidence = exchange.evidence("pictures of other frames")
    return {"image-blind": f"{evidence}: the policy acts without looking"}


def _deaf(seen: Predictions) -> dict[str, str]:
    """Instructions of other frames change neither the tokens nor the loss."""
    exchange = _words(seen)
    if not exchange.ignored:
        return {}
    evidence = exchange.evidence("instructions of other frames")
    return {
        "word-blind": f"{evidence}: the policy acts without reading. That is as it should be only "
        "where every scene leaves one thing to do, or the instructions are other words for one task"
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
