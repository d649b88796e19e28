"""Whether a run keeps the depth of its pictures, what that takes on disk, and filling the cache.

A frozen ZoeDepth says the same of a picture whenever it comes back. Where the pictures of a run
come back, each is estimated once, before the first step, as inference sees it: whole, in the
model's size. A random crop then cuts the depth that is kept (docs/decisions/0019).
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Int64

from ..data.pictures import fit_step
from ..data.sample import Sample
from ..data.samples import SampleDataset
from ..depth.cache import DepthCache
from ..depth.load import DeferredEstimator, DepthSpec
from ..depth.zoe_estimator import LEAST_SIDE
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..policy.depth import Filled, SampleDepth
from ..policy.inputs import Collator
from .batches import make_sampler
from .global_batch import process_count
from .identity import global_batch
from .output import DEPTH
from .recipe import Recipe, RecipeError
from .run import Run
from .validation import validated_frames

logger = logging.getLogger(__name__)

WORTH = 2.0
"""Looks at each picture, on average, from which on its depth is kept."""
MOST_OF_DISK = 0.5
"""Of the free space, at most so much is taken without being asked."""
OF_A_FILE = 512
"""Bytes of an entry beside the numbers: header, and what does not compress."""
DRAWN_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class DepthPlan:
    """How a run comes by the depth of its pictures.

    Attributes:
        cached: each picture is estimated once and kept; else in every forward pass.
        pictures: different ones that the run looks at, by all its cameras.
        looks: how often it looks at one, all pictures together.
        bytes: at most, on disk, if it is kept.
        folder: where it is, or would be, kept.
        why: in words, where it is not kept.
    """

    cached: bool
    pictures: int
    looks: int
    bytes: int
    folder: Path
    why: str = ""


def plan_depth(run: Run) -> DepthPlan | None:
    """What is best for a run; None where its samples bring their depth along, or none is needed.

    Raises:
        RecipeError: the recipe asks for a cache that cannot be, or is larger than it allows.
    """
    recipe, config = run.recipe, run.spatialvla.config
    asked = recipe.data.depth
    if asked.source != "estimate" or not config.use_vision_zoe or config.vision_zoe_config is None:
        return None
    layout, size = run.processor.layout, run.processor.image_size
    samples = recipe.train.steps * global_batch(recipe, process_count())
    validations = -(-recipe.train.steps // recipe.train.validate_every)
    held = sum(len(frames) for frames in validated_frames(run))
    pictures = (sum(_counts(run, samples)) + held) * len(layout.cameras)
    looks = (samples + held * validations) * layout.num_views
    need = pictures * (2 * size * size + OF_A_FILE)
    named = asked.cache if isinstance(asked.cache, Path) else None
    folder = named or Path(recipe.output) / DEPTH
    cannot = _cannot(run)
    allowed = int(asked.cache_gb * 1e9)
    why = ""
    if asked.cache == "never":
        why = "data.depth says cache: never"
    elif cannot:
        why = cannot
    elif need > allowed:
        why = (
            f"the depth of {pictures:,} pictures may take {need / 1e9:.1f} GB, more than "
            f"cache_gb: {asked.cache_gb:g} allows; 'data.depth={{source: estimate, cache_gb: "
            f"{np.ceil(need / 1e9):.0f}}}' allows it"
        )
    elif named is None and need > MOST_OF_DISK * _free(folder):
        why = (
            f"it may take {need / 1e9:.1f} GB, more than half of what is free on the disk of "
            f"{folder}; 'data.depth={{source: estimate, cache: DIR}}' names another place"
        )
    elif named is None and looks < WORTH * pictures:
        why = f"each picture is looked at only {looks / max(1, pictures):.1f} times"
    if named is not None and why:
        raise RecipeError(f"data.depth.cache is {named}, but depth cannot be kept there: {why}")
    return DepthPlan(not why, pictures, looks, need, folder, why)


def keep_depth(run: Run, plan: DepthPlan) -> None:
    """Let a run read its depth from a cache (in place)."""
    run.depth = kept_depth(run.recipe, run.processor, plan.folder)
    run.depth_plan = replace(plan, cached=True, why="")
    run.collate = Collator(run.processor, "sensor", as_tokens=run.collate.as_tokens)


def kept_depth(recipe: Recipe, processor: SpatialVLAProcessor, folder: Path) -> SampleDepth:
    """Depth of the base's ZoeDepth on pictures of the model's size, kept in a folder."""
    return SampleDepth(
        DeferredEstimator(DepthSpec(str(recipe.model.base))),
        DepthCache(folder),
        processor.layout.cameras,
        size=processor.image_size,
        path=recipe.data.images,
    )


def depth_in_forward(run: Run, why: str) -> None:
    """Let the model of a run estimate depth in every forward pass after all (in place)."""
    run.depth = None
    run.collate = Collator(run.processor, "estimate", as_tokens=run.collate.as_tokens)
    if run.depth_plan is not None:
        run.depth_plan = replace(run.depth_plan, cached=False, why=why)


def frames_to_fill(run: Run) -> Iterator[tuple[Sequence[Sample], Int64[np.ndarray, " n"]]]:
    """(samples, frames) of all that the run will look at."""
    assert run.depth is not None
    if run.depth.size is None:  # of an estimator of its own: whole datasets, as recorded
        for dataset in [*run.datasets, *run.heldout]:
            yield dataset, np.arange(len(dataset))
        return
    samples = run.recipe.train.steps * global_batch(run.recipe, process_count())
    yield from zip(run.datasets, _drawn(run, samples), strict=True)
    for held, frames in zip(run.heldout, validated_frames(run), strict=True):
        yield Fitted(held, run.depth.size), np.asarray(frames, np.int64)


def fill_depth(
    run: Run, accelerator: Accelerator, on_depth: Callable[[int, int], None] | None
) -> None:
    """Estimate what the cache lacks, each process its share, before any worker asks for it."""
    assert run.depth is not None
    run.depth.estimator.to(accelerator.device)
    rank, world = accelerator.process_index, accelerator.num_processes
    own = fill_share(run, rank, world, on_depth)
    accelerator.wait_for_everyone()
    if world > 1:
        everyone = gather_object(sorted(own.keys))
        absent = sum(not run.depth.cache.path(key).is_file() for key in everyone)
        if absent:
            logger.warning(
                "%s is not on a disk that all machines share: %d pictures that another estimated "
                "are not there, so they are estimated here, too",
                run.depth.cache.folder,
                absent,
            )
            local = accelerator.local_process_index
            fill_share(run, local, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), on_depth)
        accelerator.wait_for_everyone()
    run.depth.estimator.release()


def fill_share(
    run: Run, first: int, stride: int, on_depth: Callable[[int, int], None] | None
) -> Filled:
    """Every `stride`-th frame of those that the run looks at."""
    assert run.depth is not None
    shares = [(samples, frames[first::stride]) for samples, frames in frames_to_fill(run)]
    total, filled, done = sum(len(frames) for _, frames in shares), Filled(), itertools.count(1)

    def tell(_: Filled) -> None:
        if on_depth is not None:
            on_depth(next(done), total)

    for samples, frames in shares:
        size = run.recipe.data.depth.batch_size
        run.depth.fill(samples, frames.tolist(), batch_size=size, on_frame=tell, filled=filled)
    logger.info("%d pictures estimated, %d were cached", filled.estimated, filled.found)
    return filled


class Fitted(Sequence[Sample]):
    """Samples as inference sees them: pictures in the model's size, whole."""

    def __init__(self, dataset: SampleDataset, size: int) -> None:
        self.dataset, self.size = dataset, size
        self.name = dataset.name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, frame: int) -> Sample:
        return fit_step(self.dataset[frame], self.size, "fast")


def _cannot(run: Run) -> str:
    """Why the depth of a picture is not always the same, or cannot be had apart; empty if it is."""
    recipe, model = run.recipe, run.spatialvla
    if recipe.model.base is None or "vision_zoe_config" in recipe.model.overrides:
        return "the ZoeDepth is not one of a checkpoint"
    backbone = model.vision_zoe_model.config.backbone_config
    side = backbone.image_size if isinstance(backbone.image_size, int) else backbone.image_size[0]
    if side < LEAST_SIDE or side % (2 * backbone.patch_size):
        return f"an input of {side} pixels does not fit the patches of its ZoeDepth"
    if model.config.compatibility == "released":
        return (
            "with compatibility: released the depth of a picture depends on the others of its batch"
        )
    if any(p.requires_grad for p in model.vision_zoe_model.parameters()):
        return "the ZoeDepth is trained"
    return ""


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    return shutil.disk_usage(place).free


def _counts(run: Run, samples: int) -> list[int]:
    """Different frames of each dataset among so many samples."""
    passes = make_sampler(run).passes(samples / run.recipe.train.batch_size).tolist()
    pairs = zip(passes, run.datasets, strict=True)
    return [min(len(dataset), int(np.ceil(share * len(dataset)))) for share, dataset in pairs]


def _drawn(run: Run, samples: int) -> list[Int64[np.ndarray, " n"]]:
    """Those frames: all where each comes at least once, else those that the sampler draws."""
    sampler = make_sampler(run)
    passes = sampler.passes(samples / run.recipe.train.batch_size)
    if bool((passes >= 1).all()):
        return [np.arange(len(dataset)) for dataset in run.datasets]
    seen = [np.zeros(len(dataset), bool) for dataset in run.datasets]
    for start in range(0, samples, DRAWN_AT_ONCE):
        drawn = sampler.draw(np.arange(start, min(samples, start + DRAWN_AT_ONCE)))
        for i, mask in enumerate(seen):
            mask[drawn[drawn[:, 0] == i, 1]] = True
    return [np.flatnonzero(mask) for mask in seen]
