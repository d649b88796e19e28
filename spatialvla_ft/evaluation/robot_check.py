"""Before the first motion: does a policy mean by its numbers what the robot's recording means?

At recorded steps the predicted motions are laid beside the recorded ones, axis by axis: sign,
order, scale, gripper, rate. A card that reads the wrong column, a flipped frame or millimetres show
here, where nothing can break.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import nn

from ..actions.spaces import ActionSpace
from ..data.cards.fields import CONTROL_HZ
from ..data.sample import Sample
from ..data.samples import SampleDataset
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..policy.inputs import Collator, model_depth_input
from .motion_match import AxisMatch, match_axes
from .open_loop import predicted_frames

RATE_TOLERANCE = 0.05
BATCH = 8
POSITIONS = ("POS_EULER", "POS_QUAT")
"""Kinds of proprioception that begin with the tool's x, y, z in the base frame, metres."""


@dataclass(frozen=True)
class GripperMatch:
    """One gripper: shares of the steps, 1 open and 0 closed.

    Attributes:
        name: of the dimension.
        recorded_open, predicted_open: share of the steps in which it is open.
        agreement: share of the steps in which both say the same.
        verdict: "fine", "flipped", "constant" (one of the two never changes) or "unclear".
    """

    name: str
    recorded_open: float
    predicted_open: float
    agreement: float
    verdict: Literal["fine", "flipped", "constant", "unclear"]


@dataclass(frozen=True)
class RobotCheck:
    """What a policy's motions are beside recorded ones.

    Attributes:
        dataset: where the recorded ones come from.
        steps: how many were compared.
        axes: translations, rotations and joints.
        grippers: one each.
        recorded_hz, trained_hz: actions per second of the dataset and of the policy's training.
        frames: {role of a group: what it is relative to}.
        moved: the recorded translations beside how the tool's own position then changes; None where
            the dataset does not say where the tool is.
        warnings: what looks wrong, for a person.
    """

    dataset: str
    steps: int
    axes: list[AxisMatch]
    grippers: list[GripperMatch]
    recorded_hz: float | None
    trained_hz: float | None
    frames: dict[str, str]
    moved: list[AxisMatch] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Literal["fine", "look", "unclear"]:
        """In a word.

        "look" where something looks wrong, "fine" where the first group of axes can be told and is
        right, "unclear" where it cannot be told.
        """
        if self.warnings:
            return "look"
        first = [one.verdict for one in self.axes if one.role == self.axes[0].role]
        return "fine" if "fine" in first and "unclear" not in first else "unclear"

    @property
    def untold(self) -> list[str]:
        """Axes that these steps do not tell."""
        return [one.name for one in self.axes if one.verdict == "unclear"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"verdict": self.verdict, **asdict(self)}


@dataclass(frozen=True)
class Predicted:
    """Recorded steps and what a policy would do there.

    Attributes:
        samples: the steps.
        recorded, predicted: (n, dim) first action of each, in the robot's units.
        unnorm_key: the statistics that the predicted ones were decoded with.
    """

    samples: list[Sample]
    recorded: Float32[np.ndarray, "n dim"]
    predicted: Float32[np.ndarray, "n dim"]
    unnorm_key: str | None = None


@torch.no_grad()
def predict_recorded(
    model: nn.Module,
    processor: SpatialVLAProcessor,
    dataset: SampleDataset,
    *,
    unnorm_key: str | None = None,
    steps: int = 128,
    on_steps: Callable[[int], None] | None = None,
) -> Predicted:
    """Let a policy predict at recorded steps, evenly spaced.

    Args:
        model: a SpatialVLA model in evaluation mode, on any device.
        processor: of the model.
        dataset: opened with the model's chunk, window and cameras.
        unnorm_key: statistics to decode with; None takes the dataset's own if the processor has
            them, else its only ones.
        steps: at most so many.
        on_steps: told how many are done.

    Raises:
        ValueError: actions of another kind than the policy's.
    """
    if unnorm_key is None and dataset.name in processor.statistics:
        unnorm_key = dataset.name
    key = processor.choose_statistics(unnorm_key)
    own, other = processor.grid.action_space.names, dataset.action_space.names
    if own != other:
        raise ValueError(
            f"the policy's actions are {list(own)}, those of {dataset.name} {list(other)}: they "
            "cannot be compared; give a dataset of the policy's robot, or mend its card"
        )
    collate = Collator(
        processor, model_depth_input(model.config), with_actions=False, unnorm_key=key
    )
    device = next(model.parameters()).device
    samples, predicted = [], []
    chosen = predicted_frames(dataset, steps)
    for start in range(0, len(chosen), BATCH):
        batch = [dataset[frame] for frame in chosen[start : start + BATCH]]
        inputs = {name: tensor.to(device) for name, tensor in collate(batch).items()}
        actions = model.predict_actions(inputs, grid=processor.grid)
        predicted.append(processor.to_robot_units(actions, key)[:, 0])
        samples += batch
        if on_steps is not None:
            on_steps(len(samples))
    recorded = np.stack([sample.actions[0] for sample in samples])
    return Predicted(samples, recorded, np.concatenate(predicted).astype(np.float32), key)


def check_dataset(
    dataset: SampleDataset, predicted: Predicted, processor: SpatialVLAProcessor
) -> RobotCheck:
    """Judge predictions at the steps of a dataset, its tool's own motion included."""
    rates = processor.settings.get(CONTROL_HZ) or {}
    hz = rates.get(predicted.unnorm_key, processor.grid.action_space.control_hz)
    return check_motions(
        predicted.recorded,
        predicted.predicted,
        dataset.action_space,
        trained_hz=hz,
        dataset=dataset.name,
        moved=tool_motion(dataset, sorted({sample.episode for sample in predicted.samples})),
    )


def check_motions(
    recorded: Float32[np.ndarray, "n dim"],
    predicted: Float32[np.ndarray, "n dim"],
    space: ActionSpace,
    *,
    trained_hz: float | None = None,
    dataset: str = "the recording",
    moved: tuple[Float32[np.ndarray, "m 3"], Float32[np.ndarray, "m 3"]] | None = None,
) -> RobotCheck:
    """Judge motions that a policy predicts at recorded steps, wherever it ran.

    Args:
        recorded: actions in the robot's units; steps with NaN or infinity are left out.
        predicted: the same of the policy.
        space: of both.
        trained_hz: rate of the policy's training, where it is known.
        dataset: name of the recording, for people.
        moved: (commanded translation, how the tool then moved) of recorded steps, where known.

    Raises:
        ValueError: fewer than 3 steps.
    """
    good = np.isfinite(recorded).all(axis=1) & np.isfinite(predicted).all(axis=1)
    recorded, predicted = recorded[good], predicted[good]
    axes: list[AxisMatch] = []
    grippers: list[GripperMatch] = []
    start = 0
    for group in space.groups:
        part = slice(start, start + group.dim)
        start += group.dim
        if group.role == "gripper":
            for i, name in enumerate(group.names, part.start):
                grippers.append(_gripper(name, recorded[:, i] >= 0.5, predicted[:, i] >= 0.5))
            continue
        units = [group.unit] * group.dim
        if group.role == "joint":  # joints do not change places; each is judged alone
            units = [group.unit]
            for i, name in enumerate(group.names, part.start):
                one = slice(i, i + 1)
                axes += match_axes(predicted[:, one], recorded[:, one], [name], units, group.role)
            continue
        axes += match_axes(predicted[:, part], recorded[:, part], group.names, units, group.role)
    own_motion = None
    if moved is not None and len(moved[0]) >= 3:
        names = [name for g in space.groups if g.role == "translation" for name in g.names][:3]
        own_motion = match_axes(moved[1], moved[0], names, ["m"] * 3)
    return RobotCheck(
        dataset=dataset,
        steps=len(recorded),
        axes=axes,
        grippers=grippers,
        recorded_hz=space.control_hz,
        trained_hz=trained_hz,
        frames={group.role: group.frame for group in space.groups},
        moved=own_motion,
        warnings=[
            *(text for one in axes if (text := _axis_warning(one, dataset))),
            *(text for one in grippers if (text := _gripper_warning(one))),
            *_moved_warnings(own_motion, dataset),
            *_rate_warnings(space.control_hz, trained_hz, dataset),
        ],
    )


def tool_motion(
    dataset: SampleDataset, episodes: Sequence[int]
) -> tuple[Float32[np.ndarray, "m 3"], Float32[np.ndarray, "m 3"]] | None:
    """Commanded translations of some episodes, and how the tool's position changed after each.

    None where the action is no change of one tool's position, or the state does not tell it.
    """
    proprio, action = dataset.card.proprio, dataset.card.action
    groups = [g for g in dataset.action_space.groups if g.role == "translation"]
    if proprio is None or proprio.encoding not in POSITIONS or len(groups) != 1:
        return None
    if not groups[0].delta or dataset.card.relabel is not None or not action.is_delta:
        return None
    at = dataset.action_space.slice_of("translation")
    commanded, moved = [], []
    for episode in episodes:
        found = dataset.standardised(episode)
        if found.proprio is None or len(found.action) < 2:
            continue
        change = np.diff(found.proprio[:, :3], axis=0)
        order = found.action[:-1, at]
        good = np.isfinite(change).all(axis=1) & np.isfinite(order).all(axis=1)
        commanded.append(order[good])
        moved.append(change[good])
    return (np.concatenate(commanded), np.concatenate(moved)) if commanded else None


def _gripper(name: str, recorded: Bool[np.ndarray, " n"], said: np.ndarray) -> GripperMatch:
    agreement = float((recorded == said).mean())
    verdict: Literal["fine", "flipped", "constant", "unclear"] = "unclear"
    if recorded.all() or said.all() or not recorded.any() or not said.any():
        verdict = "fine" if agreement == 1 else "constant"
    elif (r := float(np.corrcoef(recorded, said)[0, 1])) < -0.3:
        verdict = "flipped"
    elif r > 0.3:
        verdict = "fine"
    return GripperMatch(name, float(recorded.mean()), float(said.mean()), agreement, verdict)


def _axis_warning(one: AxisMatch, dataset: str) -> str:
    same = "" if one.agreement is None else f", same sign in {one.agreement:.0%} of the steps"
    if one.verdict == "flipped":
        return (
            f"{one.name} looks flipped: the policy's {one.name} goes with the recorded "
            f"{one.goes_with} (correlation {one.correlation:.2f}{same}); negate its term "
            f"(ops: [{{scale: -1}}]) in the "
            f"card of {dataset}, or the robot's axis, before it moves"
        )
    if one.verdict == "swapped":
        r = "" if one.correlation is None else f", with {one.name} itself {one.correlation:.2f}"
        return (
            f"{one.name} looks swapped: the policy's {one.name} goes with the recorded "
            f"{one.goes_with} (correlation {one.goes_with_correlation:.2f}{r}); check the order "
            f"and signs of the terms in the card of {dataset}"
        )
    if one.verdict == "scaled":
        assert one.scale is not None
        return (
            f"{one.name} looks scaled: the policy moves {_times(one.scale)} as far as the "
            f"recording ({one.predicted:.3g} beside {one.recorded:.3g} {one.unit}); check the unit "
            f"in the card of {dataset} (m and rad are meant), and --unnorm-key"
        )
    return ""


def _gripper_warning(one: GripperMatch) -> str:
    if one.verdict == "flipped":
        return (
            f"{one.name} looks flipped: predicted and recorded agree in {one.agreement:.0%} of the "
            "steps; 1 is open and 0 closed, see `invert` in the card"
        )
    if one.verdict == "constant":
        return (
            f"{one.name} never changes in one of the two: open in {one.recorded_open:.0%} of the "
            f"recorded steps, in {one.predicted_open:.0%} of the predicted ones"
        )
    return ""


def _moved_warnings(moved: list[AxisMatch] | None, dataset: str) -> list[str]:
    """Where the recording contradicts itself: the tool does not go where the action says."""
    return [
        f"the recording contradicts itself: the tool's own {one.name} changes with the action's "
        f"{one.goes_with} (correlation {one.goes_with_correlation:.2f}); whatever was trained on "
        f"it, the card of {dataset} reads the action or the state wrongly"
        for one in moved or ()
        if one.verdict in ("flipped", "swapped")
    ]


def _rate_warnings(recorded: float | None, trained: float | None, dataset: str) -> list[str]:
    if recorded is None or trained is None or abs(recorded / trained - 1) <= RATE_TOLERANCE:
        return []
    return [
        f"{dataset} was recorded at {recorded:g} Hz, the policy trained at {trained:g} Hz: its "
        f"steps are {_times(recorded / trained)} as long as they should be"
    ]


def _times(factor: float) -> str:
    return f"{factor:.0f} times" if factor >= 10 else f"{factor:.2g} times"
