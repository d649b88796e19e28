"""Held-out episodes during training: loss, accuracy, error in robot units, and signs of collapse.

The same evenly spaced frames every time. Ranks share the batches, and every rank makes as many
passes as the others. A batch is spread over its whole dataset, so that swapping the pictures inside
it shows each instruction another scene, and swapping the words tells a scene another instruction.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..actions.reconstruction import fixed_dimensions
from ..data.sample import Sample
from ..data.sampler import evenly_spaced
from ..data.samples import SampleDataset
from ..policy.cells import predicted
from ..policy.inputs import Collator
from .answers import Answers, answers, losses
from .collapse import CollapseWatch, Predictions, collapsed, lenders, spread_metrics
from .metrics import Totals
from .run import Run

logger = logging.getLogger(__name__)

PROBED = 64
"""At most so many frames of a run are predicted token by token, as they are and exchanged."""
SEEN = ("pixel_values", "depth", "intrinsics", "camera_poses")
"""What is swapped with another frame's."""


@dataclass(frozen=True)
class _Part:
    """A batch of one held-out dataset; `counts` is False where it only keeps ranks in step."""

    dataset: int
    frames: list[int]
    counts: bool
    probed: bool


class Validation:
    """Measures a model on the held-out episodes of a run.

    Args:
        run: with `heldout`.
        accelerator: of the loop.
    """

    def __init__(self, run: Run, accelerator: Accelerator) -> None:
        train = run.recipe.train
        self.run, self.accelerator = run, accelerator
        self.watch = CollapseWatch(train.steps, train.validate_every)
        batches = list(_batches(run.heldout, train.validate_samples, max(2, train.batch_size)))
        world, rank = accelerator.num_processes, accelerator.process_index
        padded = [*batches, *batches[:1] * (-len(batches) % world)]
        probing = _probed(batches, PROBED)
        self.parts = [
            _Part(dataset, frames, i < len(batches), i in probing)
            for i, (dataset, frames) in enumerate(padded)
            if i % world == rank
        ]

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """Metrics after so many steps, under `validation/`; warns of a collapse.

        Args:
            model: as `accelerator.unwrap_model` gives it; left in evaluation mode.
            step: completed steps.
        """
        model.eval()
        run, space = self.run, self.run.heldout[0].action_space
        totals = [Totals(run.processor, space) for _ in run.heldout]
        probes: list[Predictions] = []
        for part in self.parts:
            dataset = run.heldout[part.dataset]
            samples = [run.sample(dataset, frame) for frame in part.frames]
            batch = self._on_device(run.collate(samples))
            own, said = self._along(model, batch)
            probe = self._probe(model, samples, batch, own, said) if part.probed else None
            if part.counts:
                self._add(totals[part.dataset], samples, own, said)
                probes += [probe] if probe else []
        found = self._metrics([one.reduce(self.accelerator) for one in totals])
        found |= self._collapse(gather_object(probes), step)
        return {f"validation/{name}": value for name, value in found.items()}

    def _on_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def _along(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Answers]:
        """Loss of each sample, and what the model says along the recorded actions."""
        seen = model(**batch, logits_to_keep="labels")
        plain, grid = self.run.spatialvla, self.run.processor.grid
        return losses(plain, seen, batch), answers(plain, seen, batch, grid)

    def _add(self, totals: Totals, samples: list[Sample], own: Tensor, said: Answers) -> None:
        totals.add_loss(float(own.sum()), len(samples))
        totals.add_tokens(said.tokens)
        names = [sample.dataset for sample in samples]
        guess = self.run.processor.to_robot_units(said.guess, names)
        truth = np.stack([sample.actions for sample in samples])
        totals.add_actions(guess, truth, np.stack([sample.valid for sample in samples]))

    def _metrics(self, totals: list[Totals]) -> dict[str, float]:
        """Of all samples together, and of each dataset where there are several."""
        whole = Totals(self.run.processor, self.run.heldout[0].action_space)
        whole.sums = np.sum([one.sums for one in totals], axis=0)
        found = whole.metrics()
        if len(totals) > 1:
            for dataset, one in zip(self.run.heldout, totals, strict=True):
                found |= {f"{dataset.name}/{n}": v for n, v in one.metrics().items()}
        return found

    def _types_together(self) -> torch.autocast:
        """In which frozen bf16 layers work with float32 adapters; uncached, for CUDA graphs."""
        return torch.autocast(
            self.accelerator.device.type,
            dtype=torch.bfloat16,
            enabled=self.run.recipe.model.dtype == "bf16",
            cache_enabled=False,
        )

    def _probe(
        self,
        model: nn.Module,
        samples: list[Sample],
        batch: dict[str, Tensor],
        own: Tensor,
        said: Answers,
    ) -> Predictions:
        """Greedy predictions of a batch: as it is, with others' pictures, with others' words."""
        processor, count = self.run.processor, len(samples)
        names = [sample.dataset for sample in samples]
        lent = {n: t.roll(count // 2, 0) if n in SEEN else t for n, t in batch.items()}
        swapped_losses = self._along(model, lent)[0]
        lender = lenders([sample.instruction for sample in samples])
        told = np.array([j != i for i, j in enumerate(lender)])
        reworded = [
            replace(sample, instruction=samples[j].instruction)
            for sample, j in zip(samples, lender, strict=True)
        ]
        told_losses = own
        if told.any():
            told_losses = self._along(model, self._on_device(self.run.collate(reworded)))[0]
        prompt = self._prompts(samples)
        plain = self.run.spatialvla
        swapped = {n: t.roll(count // 2, 0) if n in SEEN else t for n, t in prompt.items()}
        with self._types_together():
            ids, guess = predicted(plain, prompt, processor.grid)
            swapped_ids = predicted(plain, swapped, processor.grid)[0]
            told_ids = ids
            if told.any():
                told_ids = predicted(plain, self._prompts(reworded), processor.grid)[0]
        for kept in ("_graphs", "_last_cache"):  # training needs the memory
            vars(plain).pop(kept, None)
        wanted = said.tokens.wanted.cpu().numpy()
        valid = np.stack([sample.valid for sample in samples])
        slots = len(processor.grid.slots)
        return Predictions(
            guess=processor.to_robot_units(guess, names)[valid],
            truth=np.stack([sample.actions for sample in samples])[valid],
            guess_ids=ids.reshape(*valid.shape, slots)[valid],
            truth_ids=wanted.reshape(*valid.shape, slots)[valid],
            ids=ids,
            swapped_ids=swapped_ids,
            own_ids=wanted,
            other_ids=np.roll(wanted, count // 2, axis=0),
            losses=own.cpu().double().numpy(),
            swapped_losses=swapped_losses.cpu().double().numpy(),
            told=told,
            told_ids=told_ids,
            told_losses=told_losses.cpu().double().numpy(),
            lender_ids=wanted[lender],
        )

    def _prompts(self, samples: list[Sample]) -> dict[str, Tensor]:
        collate = Collator(self.run.processor, self.run.collate.depth, with_actions=False)
        return self._on_device(collate(samples))

    def _collapse(self, probes: Sequence[Predictions], step: int) -> dict[str, float]:
        """Metrics of the predictions of all ranks; new findings are warned of."""
        if not probes:
            return {}
        seen, grid = joined(probes), self.run.processor.grid
        slots, space = grid.slots, self.run.heldout[0].action_space
        found = collapsed(seen, slots, space, fixed_dimensions(grid))
        new, over = self.watch.take(step, found)
        if self.accelerator.is_main_process:
            for text in new.values():
                logger.warning("step %d, held out: %s", step, text)
            for name in over:
                logger.warning("step %d, held out: no longer %s", step, name)
        return {**spread_metrics(seen, slots, space), "warnings": float(len(self.watch.standing))}


def joined(probes: Sequence[Predictions]) -> Predictions:
    """Predictions of several batches as one."""
    return Predictions(
        **{
            field.name: np.concatenate([getattr(probe, field.name) for probe in probes])
            for field in fields(Predictions)
        }
    )


def validated_frames(run: Run) -> list[list[int]]:
    """Frames of each held-out dataset that every validation looks at, evenly spaced."""
    return [evenly_spaced(len(held), run.recipe.train.validate_samples) for held in run.heldout]


def _batches(
    datasets: Sequence[SampleDataset], count: int, size: int
) -> Iterator[tuple[int, list[int]]]:
    """(dataset, frames) of every batch: evenly spaced, each batch spread over the dataset."""
    for i, dataset in enumerate(datasets):
        frames = evenly_spaced(len(dataset), count)
        number = -(-len(frames) // size)
        for start in range(number):
            yield i, frames[start::number]


def _probed(batches: Sequence[tuple[int, list[int]]], limit: int) -> set[int]:
    """Batches that are predicted greedily: whole ones, evenly spaced, of at most `limit` frames."""
    usable = [i for i, (_, frames) in enumerate(batches) if len(frames) > 1]
    if not usable:
        return set()
    size = max(len(batches[i][1]) for i in usable)
    number = min(len(usable), max(1, limit // size))
    return {usable[round(k)] for k in np.linspace(0, len(usable) - 1, number)}
