"""Batches of a run: which frames a rank gets, read by workers, prepared for the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from torch.utils.data import BatchSampler, Dataset

from ..data.pictures import fit_step
from ..data.sample import Sample
from ..data.sampler import Sampler
from ..data.samples import read_in_disk_order
from ..data.words import draw_words
from .hand_over import Loader
from .point_loss import PatchGrid, PointCollator
from .run import Run
from .step_cost import workers_here
from .stopping import leave_to_main_process


class Frames(Dataset[Sample]):
    """(dataset, frame, global slot) to a sample of the model's size.

    Which of several sentences is said, and the augmentation, follow from the slot.
    """

    def __init__(self, run: Run) -> None:
        self.datasets = run.datasets
        self.depth = run.depth
        self.augment = run.augment
        self.seed = run.recipe.seed
        self.size = run.processor.image_size
        self.path = run.recipe.data.images

    def __getitem__(self, place: tuple[int, int, int]) -> Sample:
        """The sample at a frame of a dataset."""
        dataset, frame, slot = place
        sample = draw_words(self.datasets[dataset][frame], slot, self.seed)
        if self.depth is not None:
            sample = self.depth(sample)
        if self.augment is None:
            return fit_step(sample, self.size, self.path)
        return self.augment(sample, slot, self.seed, size=self.size, path=self.path)

    def __getitems__(self, places: list[tuple[int, int, int]]) -> list[Sample]:
        """The samples of a batch; videos are read forward."""
        return read_in_disk_order(self.__getitem__, places)


class StepBatches(BatchSampler):
    """Batches of this rank, from a step on; a pure function of the step."""

    def __init__(self, sampler: Sampler, start: int, stop: int) -> None:
        self.sampler, self.start, self.stop = sampler, start, stop

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        """One list of (dataset, frame, global slot) per micro-batch."""
        for step in range(self.start, self.stop):
            slots = self.sampler.slots(step).tolist()
            yield [(d, f, g) for (d, f), g in zip(self.sampler.batch(step), slots, strict=True)]

    def __len__(self) -> int:
        """Number of micro-batches left."""
        return self.stop - self.start


def make_sampler(run: Run, world: int = 1, rank: int = 0) -> Sampler:
    """Which frames this rank trains on; a step of it is a micro-batch."""
    return Sampler(
        run.recipe.seed,
        run.weights,
        [len(dataset) for dataset in run.datasets],
        world=world,
        rank=rank,
        batch=run.recipe.train.batch_size,
    )


def make_loader(run: Run, sampler: Sampler, start: int, stop: int) -> Loader:
    """Micro-batches `start` to `stop` of a rank, collated; the order is the sampler's."""
    collate: Callable[[Sequence[Sample]], dict[str, Tensor]] = run.collate
    if run.points:
        size = run.spatialvla.config.vision_config.patch_size
        grid = PatchGrid(run.processor.image_size, size, run.processor.layout)
        collate = PointCollator(run.collate, grid, run.points)
    return Loader(
        Frames(run),
        StepBatches(sampler, start, stop),
        collate,
        workers=workers_here(run.recipe.data.workers),
        on_start=leave_to_main_process,
    )


def epoch_words(run: Run, world: int = 1) -> str:
    """How many steps an epoch is, and how often each dataset comes in it."""
    sampler, micro = make_sampler(run, world), run.recipe.train.gradient_accumulation
    names = [dataset.name for dataset in run.datasets]
    steps = sampler.steps_per_epoch
    words = f"one epoch = {steps / micro:,.1f} steps, as many samples as there are frames"
    if len(names) == 1:
        return words
    passes = zip(names, sampler.passes(steps), strict=True)
    return f"{words}; in it come " + ", ".join(f"{name} {n:.2f} times" for name, n in passes)
