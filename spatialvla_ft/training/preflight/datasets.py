"""What a run will read: each dataset in numbers, from a bounded number of its episodes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from ...actions.normalise import ActionStatistics, normalise
from ...actions.ranges import lost_dimensions, lost_words, widened_words
from ...actions.spaces import RawActions
from ...data.cards.fields import Intrinsics
from ...data.sampler import evenly_spaced
from ...data.samples import SampleDataset
from ..run import Run

EPISODES, STEPS = 32, 20_000
"""At most so many episodes of a dataset, and steps, are read."""
MANY_OUTSIDE = 0.1
"""Share outside q01..q99 that is worth a warning; by their meaning it is 2 %."""
FEW_EPISODES = 20
"""Fewer may not span the robot's motion: with a draw of ten a policy could not go one way."""
CONSTANT_LABEL = 0.99


@dataclass(frozen=True)
class Dimension:
    """One action dimension.

    Attributes:
        name, unit: of it.
        q01, q99: what becomes -1 and 1; None for a gripper, which is not normalised.
        outside: share of the steps read that are beyond them (or, a gripper, beyond 0..1).
        reach: the value in the data that lies farthest from the middle of that range.
        note: "constant", "rare motion, kept", "motion is lost" or empty.
    """

    name: str
    unit: str
    q01: float | None
    q99: float | None
    outside: float
    reach: float
    note: str = ""


@dataclass(frozen=True)
class Camera:
    """One camera: pixels as recorded, and where its K comes from."""

    name: str
    width: int
    height: int
    intrinsics: str
    field_of_view: float


@dataclass(frozen=True)
class DatasetFacts:
    """One dataset of a run.

    Attributes:
        share: of the samples of a batch.
        heldout: episodes kept for validation.
        control_hz: actions per second, None where the card does not say.
        depth: where it comes from, in words.
        steps_read: of which numbers below are.
        not_finite: NaN and infinite numbers, by "actions" and "proprioception".
        common_label: by slot, the share of the steps that have its most frequent token.
        notes: what is worth knowing, and nothing to worry about.
        still: by dimension or slot, the warning that it never changes.
    """

    name: str
    episodes: int
    frames: int
    share: float
    heldout: int
    control_hz: float | None
    dimensions: list[Dimension]
    cameras: list[Camera]
    depth: str
    steps_read: int
    not_finite: dict[str, int]
    common_label: dict[str, float]
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    still: dict[str, str] = field(default_factory=dict)


def dataset_facts(run: Run, index: int, seen: SomeActions) -> DatasetFacts:
    """Look at dataset `index` of a run, some actions of which were read."""
    dataset = run.datasets[index]
    statistics = ActionStatistics.from_dict(run.processor.statistics[dataset.name])
    actions = seen.finite
    heldout = [len(held.episodes) for held in run.heldout if held.name == dataset.name]
    lost = lost_dimensions(statistics, actions.astype(np.float64))
    facts = DatasetFacts(
        name=dataset.name,
        episodes=len(dataset.episodes),
        frames=len(dataset),
        share=run.weights[index] / sum(run.weights),
        heldout=sum(heldout),
        control_hz=dataset.action_space.control_hz,
        dimensions=_dimensions(dataset, statistics, actions, lost),
        cameras=_cameras(run, dataset),
        depth=_depth(run, dataset),
        steps_read=seen.steps,
        not_finite=seen.not_finite,
        common_label=_common_labels(run, actions, statistics),
    )
    space = dataset.action_space
    facts.notes.extend(widened_words(statistics, space.names, space.units))
    facts.warnings.extend(
        f"{dataset.name}: {words}; q01..q99, the released range, clips the rest away: "
        "data.action_range=motion keeps it (a run that has begun must start anew, --fresh)"
        for words in lost_words(statistics, lost, space.names, space.units)
    )
    _judge(facts, dataset)
    return facts


@dataclass(frozen=True)
class SomeActions:
    """Actions of some episodes.

    Attributes:
        finite: (n, dim) those without NaN and infinity.
        steps: how many were read.
        not_finite: NaN and infinite numbers, by "actions" and "proprioception".
    """

    finite: RawActions
    steps: int
    not_finite: dict[str, int]


def read_some(dataset: SampleDataset) -> SomeActions:
    """Actions of some episodes, evenly spaced."""
    chosen = evenly_spaced(len(dataset.episodes), EPISODES)
    parts, bad, steps = [], {"actions": 0, "proprioception": 0}, 0
    for episode in dataset.episodes[chosen].tolist():
        found = dataset.standardised(episode)
        parts.append(found.action)
        bad["actions"] += int((~np.isfinite(found.action)).sum())
        if found.proprio is not None:
            bad["proprioception"] += int((~np.isfinite(found.proprio)).sum())
        steps += len(found.action)
        if steps >= STEPS:
            break
    actions = np.concatenate(parts) if parts else np.zeros((0, dataset.action_space.dim))
    return SomeActions(RawActions(actions[np.isfinite(actions).all(axis=1)]), steps, bad)


def _dimensions(
    dataset: SampleDataset,
    statistics: ActionStatistics,
    actions: RawActions,
    lost: Bool[np.ndarray, " dim"],
) -> list[Dimension]:
    space = dataset.action_space
    low = np.where(statistics.mask, statistics.q01, 0.0)
    high = np.where(statistics.mask, statistics.q99, 1.0)
    slack = 1e-6 * np.maximum(1e-3, high - low)
    outside = ((actions < low - slack) | (actions > high + slack)).mean(axis=0)
    found = []
    for i, (name, unit) in enumerate(zip(space.names, space.units, strict=True)):
        arm = bool(statistics.mask[i])
        note = "constant" if statistics.constant[i] else ""
        note = "rare motion, kept" if statistics.widened[i] else note
        note = "motion is lost" if lost[i] else note
        limits = (float(low[i]), float(high[i])) if arm else (None, None)
        reach = float(statistics.reach[i])
        found.append(Dimension(name, unit, *limits, float(outside[i]), reach, note))
    return found


def _cameras(run: Run, dataset: SampleDataset) -> list[Camera]:
    sample = dataset[0]
    found = []
    for name in run.processor.layout.cameras:
        height, width = sample.images[name].shape[:2]
        K = sample.intrinsics[name]
        angle = math.degrees(2 * math.atan(width / 2 / K[0, 0]))
        found.append(Camera(name, width, height, _origin(run, dataset, name), angle))
    return found


def _origin(run: Run, dataset: SampleDataset, camera: str) -> str:
    """Where a camera's K comes from, in words."""
    stated = dataset.card.intrinsics.get(camera)
    assumed = run.recipe.data.assume_intrinsics
    if stated is None and camera in dataset.intrinsics and assumed is not None:
        return f"ASSUMED: {assumed}"
    if camera in dataset.intrinsics:
        return "given"
    return "card" if isinstance(stated, Intrinsics) else "recorded with each frame"


def _depth(run: Run, dataset: SampleDataset) -> str:
    asked = run.recipe.data.depth
    if not run.spatialvla.config.use_vision_zoe:
        return "none: the model has no Ego3D"
    if asked.source == "sensor":
        keys = ", ".join(sorted({str(term.path) for term in dataset.card.depth.values()}))
        return f"recorded by a sensor ({keys})"
    if asked.source == "estimator":
        return f"estimated before training by {Path(str(asked.checkpoint)).name}, from a cache"
    kept = run.depth_plan is not None and run.depth_plan.cached
    return "estimated by the model's ZoeDepth" + (", each picture once" if kept else "")


def _common_labels(run: Run, actions: RawActions, statistics: ActionStatistics) -> dict[str, float]:
    if not len(actions):
        return {}
    ids = run.processor.grid.encode(normalise(actions, statistics))
    slots = run.processor.grid.slots
    return {
        slot.name: float(np.unique(ids[:, i], return_counts=True)[1].max() / len(ids))
        for i, slot in enumerate(slots)
    }


def _judge(facts: DatasetFacts, dataset: SampleDataset) -> None:
    """Fill in what is senseless and what is suspicious."""
    name, problems, warnings = facts.name, facts.problems, facts.warnings
    for what, count in facts.not_finite.items():
        if count:
            problems.append(
                f"{name}: {count} numbers of the {what} are NaN or infinite, in {facts.steps_read} "
                "steps read; mend the data or the card, or leave those episodes out"
            )
    if not facts.frames:
        problems.append(f"{name} has no frames after its filters; loosen them, or remove it")
    if 0 < facts.episodes < FEW_EPISODES:
        warnings.append(
            f"{name}: {facts.episodes} episodes set the range of actions, and the policy cannot "
            "move faster than their q01..q99 in any direction; see above that both ends are what "
            "the robot needs, or record more"
        )
    for one in facts.dimensions:
        if one.q01 is not None and one.outside > MANY_OUTSIDE:
            warnings.append(
                f"{name}: {one.outside:.0%} of {one.name} lie outside q01..q99 and are clipped; "
                "the statistics are of other data, or few episodes stand out (data stats)"
            )
        if one.q01 is None and one.outside > 0:
            warnings.append(
                f"{name}: {one.outside:.0%} of {one.name} lie outside 0..1, where 1 is open and 0 "
                "closed; scale it in the card (data inspect shows its values)"
            )
        if one.note == "constant":
            facts.still[one.name] = (
                f"{name}: {one.name} never changes; if the robot does move so, the card reads the "
                "wrong column"
            )
    constant = {one.name for one in facts.dimensions if one.note == "constant"}
    for slot, share in facts.common_label.items():
        if share > CONSTANT_LABEL and slot not in constant:
            facts.still[slot] = (
                f"{name}: {share:.1%} of the {slot} labels are one and the same token; a policy "
                "that always says it will seem right"
            )
    warnings += facts.still.values()
    warnings += [
        f"{name}, camera {camera.name}: K is assumed ({camera.intrinsics}), so depth points lie "
        "where that camera would see them; measure K and put it into the card"
        for camera in facts.cameras
        if camera.intrinsics.startswith("ASSUMED")
    ]
    if facts.control_hz is None:
        warnings.append(f"{name}: the control rate is unknown; state control_hz in the card")
