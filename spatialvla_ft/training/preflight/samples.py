"""What the model will be shown: samples of the first batch, read back from their own tokens."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...actions.grid import ActionGrid
from ...actions.layout import axis_values
from ...actions.normalise import ActionStatistics, normalise, unnormalise
from ...data.sample import Sample
from ...depth.metres import FAR, NEAR, DepthWarning
from ...policy.inputs import Collator
from ..batches import Frames, StepBatches, make_sampler
from ..run import Run

CHECKED = 8
"""Samples of the batch that are checked."""
FLAT = 1 / 255
"""Standard deviation of pixels, of 1, below which a picture shows nothing."""
UNDEFINED = 1e-6
"""Length of a translation without a direction, and slack at the edge of a bin."""
MOSTLY_UNKNOWN = 0.9


@dataclass(frozen=True)
class SampleFacts:
    """A sample as the model gets it.

    Attributes:
        dataset, episode, step, instruction: which one.
        prompt: decoded from the token ids, image tokens counted rather than shown.
        tokens: number of ids of the whole sequence.
        names, units: of the action dimensions.
        recorded: (chunk, dim) in the robot's units.
        decoded: the same read back from the label tokens, or from the normalised actions that a
            head learns from.
        pictures: {camera: {"mean", "std", "min", "max"}} of pixel values, 0 to 1.
        depth: {"median", "unknown"} of the depth that comes along, metres and a share; or None.
    """

    dataset: str
    episode: int
    step: int
    instruction: str
    prompt: str
    tokens: int
    names: list[str]
    units: list[str]
    recorded: list[list[float]]
    decoded: list[list[float]]
    pictures: dict[str, dict[str, float]]
    depth: dict[str, float] | None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def first_samples(run: Run, *, world: int = 1, rank: int = 0, step: int = 0) -> list[SampleFacts]:
    """The first samples of micro-batch `step`, as the loop will make them."""
    frames, collate = Frames(run), run.collate
    if run.depth is not None:  # what the cache may lack is neither shown nor needed here
        frames.depth = None
        collate = Collator(run.processor, "estimate", as_tokens=run.collate.as_tokens)
    places = next(iter(StepBatches(make_sampler(run, world, rank), step, step + 1)))[:CHECKED]
    samples = [frames[place] for place in places]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DepthWarning)  # told below, with the sample and the cure
        batch = collate(samples)
    return [
        _facts(run, sample, {name: tensor[i] for name, tensor in batch.items()})
        for i, sample in enumerate(samples)
    ]


def _facts(run: Run, sample: Sample, row: dict[str, Tensor]) -> SampleFacts:
    processor = run.processor
    real, suffix = row["attention_mask"].bool(), row["token_type_ids"].bool()
    prompt = row["input_ids"][real & ~suffix].tolist()
    problems: list[str] = []
    place = f"{sample.dataset} episode {sample.episode} step {sample.step}"
    statistics = ActionStatistics.from_dict(processor.statistics[sample.dataset])
    decoded: Any = np.full_like(sample.actions, np.nan)
    try:
        recorded = normalise(sample.actions, statistics)
        if "labels" in row:
            labels = row["labels"][row["labels"] != -100][:-1]  # the last one ends the sequence
            read = processor.decode_actions(labels[None], unnorm_key=sample.dataset)
            decoded = read["actions"][0]
            far = outside_its_bin(processor.grid, recorded, read["normalised"][0])
        else:
            decoded, far = processor.to_robot_units(row["actions"][None], sample.dataset)[0], []
        if far:
            problems.append(
                f"{place}: the label tokens decode to {_named(sample, decoded)}, recorded is "
                f"{_named(sample, unnormalise(recorded, statistics))}, another bin of "
                f"{', '.join(far)}; grid and statistics do not belong together"
            )
    except ValueError as error:
        problems.append(f"{place}: the label tokens cannot be decoded: {error}")
    text = processor.tokenizer.decode([i for i in prompt if i != processor.image_token_id])
    facts = SampleFacts(
        dataset=sample.dataset,
        episode=sample.episode,
        step=sample.step,
        instruction=sample.instruction,
        prompt=f"[{prompt.count(processor.image_token_id)} image tokens]{text}",
        tokens=int(real.sum()),
        names=list(sample.action_space.names),
        units=list(sample.action_space.units),
        recorded=np.asarray(sample.actions).tolist(),
        decoded=np.asarray(decoded).tolist(),
        pictures=_pictures(run, row["pixel_values"]),
        depth=_depth(row.get("depth")),
        problems=problems,
    )
    _judge(facts, place, text, processor.num_observation_tokens, prompt, processor.image_token_id)
    return facts


def outside_its_bin(
    grid: ActionGrid, recorded: Float[np.ndarray, "n dim"], decoded: Float[np.ndarray, "n dim"]
) -> list[str]:
    """Axes on which a decoded action does not lie in the bin of the recorded one.

    Args:
        grid: whose bins.
        recorded: normalised actions.
        decoded: what their tokens decode to, normalised.
    """
    one = axis_values(np.clip(np.asarray(recorded, np.float64), -1, 1), grid.slots)
    other = axis_values(np.asarray(decoded, np.float64), grid.slots)
    wrong = []
    for slot in grid.slots:
        if slot.shape == "switch":
            column = slice(slot.start, slot.stop)
            same = (recorded[:, column] >= 0.5) == (decoded[:, column] >= 0.5)
            wrong += [] if same.all() else [slot.name]
        for k, axis in enumerate(slot.axes):
            judged = np.ones(len(recorded), bool)
            if slot.shape == "sphere":  # a bin's centre outside the cube decodes to its surface
                point = decoded[:, slot.start : slot.stop]
                judged = np.abs(point).max(axis=1) < 1 - UNDEFINED
            if slot.shape == "sphere" and k < 2:  # no direction, or a pole without a longitude
                length = [values[slot.axes[2]] for values in (one, other)]
                judged &= np.minimum(*length) > UNDEFINED
                if k == 1:
                    sines = [np.sin(values[slot.axes[0]]) for values in (one, other)]
                    judged &= np.minimum(*sines) > UNDEFINED
            edges = grid.edges[axis]
            places = np.clip(np.searchsorted(edges, one[axis], "right"), 1, len(edges) - 1)
            low, high = edges[places - 1] - UNDEFINED, edges[places] + UNDEFINED
            near = np.minimum(abs(one[axis] - low), abs(one[axis] - high)) < 3 * UNDEFINED
            inside = ((other[axis] >= low) & (other[axis] <= high)) | near
            wrong += [] if inside[judged].all() else [axis]
    return wrong


def _named(sample: Sample, actions: np.ndarray) -> str:
    values = zip(sample.action_space.names, actions[0], strict=True)
    return ", ".join(f"{name} {value:.3g}" for name, value in values)


def _pictures(run: Run, pixels: Tensor) -> dict[str, dict[str, float]]:
    """Of the present step's pictures, by camera."""
    views = pixels if pixels.ndim == 4 else pixels[None]
    cameras = run.processor.layout.cameras
    return {
        camera: {
            "mean": float(view.mean()),
            "std": float(view.std()),
            "min": float(view.min()),
            "max": float(view.max()),
        }
        for camera, view in zip(cameras, views[-len(cameras) :], strict=True)
    }


def _depth(depth: Tensor | None) -> dict[str, float] | None:
    if depth is None:
        return None
    known = depth[torch.isfinite(depth) & (depth > 0)]
    return {
        "median": float(known.median()) if known.numel() else float("nan"),
        "unknown": 1 - known.numel() / depth.numel(),
    }


def _words(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _judge(
    facts: SampleFacts, place: str, text: str, seen: int, prompt: list[int], image: int
) -> None:
    asked = _words(facts.instruction)
    told = _words(re.sub(r"<(bos|eos|pad)>", "", text))
    if prompt.count(image) != seen:
        facts.problems.append(
            f"{place}: the prompt has {prompt.count(image)} image tokens, the model needs {seen}"
        )
    if not asked:
        facts.warnings.append(f"{place}: the instruction is empty; the policy will not hear one")
    elif told != asked and asked.startswith(told):
        facts.problems.append(
            f"{place}: the prompt is cut short: {told!r} of {asked!r} reaches the model"
        )
    elif told != asked:
        facts.warnings.append(
            f"{place}: the tokens say {told!r}, the instruction is {asked!r}; the tokenizer does "
            "not know some of its words"
        )
    for camera, values in facts.pictures.items():
        if not values["std"] >= FLAT:
            facts.problems.append(
                f"{place}: the picture of camera {camera} is one colour ({values['mean']:.2f} of "
                "1); the card names the wrong column, or the recording is damaged"
            )
    if facts.depth is not None and facts.depth["unknown"] > MOSTLY_UNKNOWN:
        facts.warnings.append(
            f"{place}: {facts.depth['unknown']:.0%} of the depth is unknown; use data.depth: "
            "estimate, or mend the sensor"
        )
    elif facts.depth is not None and not NEAR < facts.depth["median"] < FAR:
        facts.warnings.append(
            f"{place}: the median depth is {facts.depth['median']:.3g} m; check depth_scale in the "
            "card"
        )
