"""What the tokens of a batch tell: loss, share of right tokens by slot, error in robot units.

Everything is a sum with its count, so that micro-batches, batches of unequal size and ranks add up
to the figure of all their samples. Guesses are restricted to the ids of their slot, as prediction
is, and made along the recorded tokens (teacher forcing).

Shape letters: B samples, N tokens of a sample (slots * chunk), L label rows, V vocabulary, T tokens
of a sequence, H actions of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ..actions.spaces import ActionSpace
from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.processing_spatialvla import SpatialVLAProcessor

MANY_LETTERS = 4
"""A unit of more letters is a sentence, and no part of a metric's name."""


@dataclass(frozen=True)
class Tokens:
    """Action tokens of a batch, absolute ids, the end of the sequence left out.

    Attributes:
        wanted: of the recorded actions.
        guessed: the most likely ones of their slot.
    """

    wanted: Int[Tensor, "B N"]
    guessed: Int[Tensor, "B N"]


def action_tokens(
    logits: Float[Tensor, "L V"], labels: Int[Tensor, "B T"], config: SpatialVLAConfig
) -> Tokens:
    """The action tokens behind the label rows of a batch (`logits_to_keep="labels"`)."""
    rows, wanted = label_rows(logits, labels, config)
    slots = config.action_slots
    count, begin = len(slots), config.action_token_begin_idx
    end = wanted.shape[1] - 1  # the last label ends the sequence
    guessed = torch.empty_like(wanted[:, :end])
    for i, where in enumerate(slots):
        part = rows[:, i:end:count, begin + where.start : begin + where.stop]
        guessed[:, i::count] = part.argmax(-1) + begin + where.start
    return Tokens(wanted[:, :end], guessed)


def sample_losses(
    logits: Float[Tensor, "L V"], labels: Int[Tensor, "B T"], config: SpatialVLAConfig
) -> Float[Tensor, " B"]:
    """Mean cross entropy of each sample; their mean is the loss of the batch."""
    rows, wanted = label_rows(logits, labels, config)
    losses = [F.cross_entropy(one.float(), ids) for one, ids in zip(rows, wanted, strict=True)]
    return torch.stack(losses)


def label_rows(
    logits: Tensor, labels: Tensor, config: SpatialVLAConfig
) -> tuple[Float[Tensor, "B n V"], Int[Tensor, "B n"]]:
    """The label rows of a batch by sample, and the ids that they should predict."""
    labels = labels[:, 1:]
    wanted = labels[labels != config.ignore_index].view(len(labels), -1)
    return logits.view(*wanted.shape, -1), wanted


class Totals:
    """Sums over samples, and the metrics that they make.

    Args:
        processor: decodes tokens by the statistics of each sample's dataset.
        space: names and units of the action dimensions.
    """

    def __init__(self, processor: SpatialVLAProcessor, space: ActionSpace) -> None:
        self.processor = processor
        self.slots = [slot.name for slot in processor.grid.slots]
        self.dimensions = dimension_names(space)
        self.sums = np.zeros(2 + 2 * len(self.slots) + 1 + space.dim)
        self.told: dict[str, float] = {}

    def add_loss(self, total: float, samples: int) -> None:
        """The summed loss of some samples."""
        self.sums[:2] += total, samples

    def add_tokens(self, tokens: Tokens) -> None:
        """Whether each token is right."""
        right = (tokens.wanted == tokens.guessed).cpu().numpy()
        right = right.reshape(-1, len(self.slots))
        middle = 2 + len(self.slots)
        self.sums[2:middle] += right.sum(axis=0)
        self.sums[middle : middle + len(self.slots)] += len(right)

    def add_actions(
        self,
        guess: Float[np.ndarray, "B H D"],
        truth: Float[np.ndarray, "B H D"],
        valid: Bool[np.ndarray, "B H"] | None = None,
    ) -> None:
        """Absolute errors in the robot's units, of all actions or of those that are real."""
        error = np.abs(np.asarray(guess, np.float64) - truth)
        error = error.reshape(-1, error.shape[-1]) if valid is None else error[valid]
        place = 2 + 2 * len(self.slots)
        self.sums[place] += len(error)
        self.sums[place + 1 :] += error.sum(axis=0)

    def add_told(self, metrics: Mapping[str, Tensor], samples: int) -> None:
        """What a head tells beside its loss, as means over some samples."""
        for name, value in metrics.items():
            self.told[name] = self.told.get(name, 0.0) + float(value) * samples

    def reduce(self, accelerator: Accelerator) -> Totals:
        """The sums over all ranks, in place; each head tells the same names on every rank."""
        names = sorted(self.told)
        sums = np.concatenate((self.sums, [self.told[name] for name in names]))
        whole = torch.as_tensor(sums, dtype=_exact(accelerator), device=accelerator.device)
        sums = accelerator.reduce(whole, "sum").cpu().numpy().astype(np.float64)
        self.sums = sums[: len(self.sums)]
        self.told = dict(zip(names, sums[len(self.sums) :].tolist(), strict=True))
        return self

    def metrics(self) -> dict[str, float]:
        """loss, accuracy/SLOT, l1/DIMENSION_UNIT; what was never added is left out."""
        count = len(self.slots)
        right, tokens = self.sums[2 : 2 + count], self.sums[2 + count : 2 + 2 * count]
        actions, errors = self.sums[2 + 2 * count], self.sums[3 + 2 * count :]
        found: dict[str, float] = {}
        if self.sums[1]:
            found["loss"] = self.sums[0] / self.sums[1]
            found |= {f"head/{name}": value / self.sums[1] for name, value in self.told.items()}
        if tokens.all():
            found |= _named("accuracy", self.slots, right / tokens)
        if actions:
            found |= _named("l1", self.dimensions, errors / actions)
        return {name: float(value) for name, value in found.items()}


def dimension_names(space: ActionSpace) -> list[str]:
    """Names of the action dimensions with their units, e.g. x_m, yaw_rad, gripper."""
    return [
        f"{name}_{unit}" if len(unit) <= MANY_LETTERS else name
        for name, unit in zip(space.names, space.units, strict=True)
    ]


def _named(kind: str, names: Sequence[str], values: NDArray[np.float64]) -> dict[str, float]:
    return {f"{kind}/{name}": value for name, value in zip(names, values, strict=True)}


def _exact(accelerator: Accelerator) -> torch.dtype:
    """Sums travel in float64 where the device has it."""
    return torch.float32 if accelerator.device.type == "mps" else torch.float64


def plain(values: dict[str, float]) -> dict[str, float | None]:
    """The same for JSON, which has no NaN and no infinity: None in their place."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
