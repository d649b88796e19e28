"""From a recipe to the objects of a training run; the only module that knows recipes.

The datasets of a recipe: opened, filtered, with episodes held out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..actions.grid import ActionGrid
from ..actions.grid_io import load_grid
from ..actions.layout import slots_of
from ..actions.normalise import ActionStatistics
from ..data.augment import Augment
from ..data.cards.fields import CONTROL_HZ, RECORDED
from ..data.mixtures import Opened, Part, excluded_datasets, find_mixture, open_mixture
from ..data.opening import holdout
from ..data.reading import Reading
from ..data.samples import SampleDataset
from ..data.stats.fits import MixtureActions
from ..depth.cache import DepthCache
from ..depth.load import DeferredEstimator, DepthSpec
from ..models.checkpoint_files import refuse_out_of_reach
from ..models.lora import adapt_to_grid, fingerprint, spatial_rows
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.observation import ObservationLayout
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..models.small import small_model, small_processor
from ..near import no_checkpoint
from ..policy.depth import SampleDepth
from ..policy.inputs import Collator, DepthInput, takes_depth
from .action_head import head_fields
from .action_ranges import run_proprio, run_statistics
from .depth_plan import keep_depth, plan_depth
from .global_batch import process_count, with_accumulation
from .point_loss import check_points, point_fields
from .recipe import Depth, Recipe, RecipeError
from .run import Run
from .trainable import trainable_part


def open_data(recipe: Recipe, chunk: int, layout: ObservationLayout) -> Opened:
    """The datasets that are trained on, their shares, and what is held out of each."""
    opened = _open(recipe, chunk, layout)
    pairs = [
        _divide(dataset, held, part, recipe)
        for dataset, held, part in zip(opened.datasets, opened.heldout, opened.parts, strict=True)
    ]
    return dataclasses.replace(
        opened, datasets=[train for train, _ in pairs], heldout=[held for _, held in pairs]
    )


def _open(recipe: Recipe, chunk: int, layout: ObservationLayout) -> Opened:
    """The datasets of the recipe, each with its weight; every problem with them at once."""
    data = recipe.data
    reading = Reading(
        card=None,  # each part's own
        horizon=chunk,
        window=layout.window,
        cameras=layout.cameras,
        depth=None if data.depth.source == "sensor" else False,
    )
    if data.mixture is not None:
        mixture = data.mixture
        return open_mixture(
            find_mixture(mixture.name, mixture.file),
            root=mixture.root,
            reading=reading,
            assume_intrinsics=data.assume_intrinsics,
            balance_weights=mixture.balance_weights,
            excuse=mixture.excuse,
        )
    parts = {
        str(entry.path): Part(**{**entry.model_dump(), "path": str(entry.path)})
        for entry in data.datasets
    }
    if len(parts) < len(data.datasets):
        raise RecipeError(f"data.datasets name the same folder twice: {list(parts)}")
    return open_mixture(
        parts, reading=reading, assume_intrinsics=data.assume_intrinsics, balance_weights=False
    )


def _divide(
    dataset: SampleDataset, held: SampleDataset | None, part: Part, recipe: Recipe
) -> tuple[SampleDataset, SampleDataset | None]:
    """What is trained on, and what is held out: by the mixture, or else by `data.holdout`."""
    train = dataset
    if held is None and recipe.data.holdout > 0:
        train, held = holdout(dataset, recipe.data.holdout, recipe.seed)
    if part.episodes is not None:
        if part.episodes > len(train.episodes):
            raise RecipeError(
                f"{dataset.name}: episodes is {part.episodes}, but {len(train.episodes)} are left "
                "after the holdout; record more, or lower its episodes or data.holdout"
            )
        order = np.random.default_rng(recipe.seed).permutation(len(train.episodes))
        train = train.subset(train.episodes[np.sort(order[: part.episodes])])
    return train, held


logger = logging.getLogger(__name__)


def build(recipe: Recipe, *, fresh: bool = False) -> Run:
    """Open the data, make or load the model, fit or keep the grid, attach adapters.

    `fresh` says that the run starts over: what its output folder holds counts for nothing.
    """
    recipe = with_accumulation(recipe, process_count())
    chunk, layout = chunk_and_layout(recipe)
    opened = open_data(recipe, chunk, layout)
    datasets = opened.datasets
    heldout = [held for held in opened.heldout if held is not None]
    names = [dataset.name for dataset in datasets]
    if len(set(names)) != len(names):
        raise RecipeError(f"data.datasets name the same dataset twice: {names}")
    layout = _with_proprio(recipe, layout, datasets)
    overrides = {**recipe.model.overrides, **observation_fields(layout)}
    statistics = run_statistics(recipe, datasets, fresh=fresh)

    known = known_grid(recipe)
    zero_bin = recipe.grid.zero_bin if known is None else known.zero_bin
    if zero_bin:  # 0 must mean no motion in the robot's units too
        deltas = datasets[0].action_space.deltas
        statistics = {name: known.symmetric(deltas) for name, known in statistics.items()}
    grid = grid_of(recipe, datasets, statistics, opened.weights)
    overrides |= head_fields(recipe, datasets[0].action_space, grid or known)
    base_fingerprint = None
    if recipe.model.new is not None:
        model, processor = _new(recipe, datasets, grid, overrides)
    else:
        model, processor = _load(recipe, overrides)
        base_fingerprint = fingerprint(model)
        if grid is not None:
            if recipe.grid.adapt_embeddings:
                adapt_to_grid(model, processor.grid, grid)
            elif grid.counts != processor.grid.counts:
                raise RecipeError(
                    f"the new grid has {grid.counts} tokens per slot, the base "
                    f"{processor.grid.counts}: set grid.adapt_embeddings: true, or fit a grid with "
                    "the base's bins (`spatialvla-ft grids fit --bins ...`)"
                )
            processor.set_grid(grid)
            model.action_grid = grid
            # Tokens of a refitted grid mean nothing in the units of the base's datasets.
            processor.statistics.clear()
            processor.intrinsic_config.clear()
            for key in (RECORDED, CONTROL_HZ):
                processor.settings.pop(key, None)
    processor.layout = layout
    processor.statistics.update({name: s.to_dict() for name, s in statistics.items()})
    if layout.proprio_dim is not None:
        for dataset in datasets:
            entry = run_proprio(recipe, dataset, fresh=fresh).to_dict()["action"]
            processor.statistics[dataset.name]["proprio"] = entry
    processor.intrinsic_config.update(_intrinsics(datasets, layout.cameras))
    for dataset in datasets:
        if dataset.card.control_hz is not None:
            rates = processor.settings.setdefault(CONTROL_HZ, {})
            rates[dataset.name] = dataset.card.control_hz
        if dataset.card.recorded is not None:
            entries = processor.settings.setdefault(RECORDED, {})
            entries[dataset.name] = dataset.card.recorded.model_dump(mode="json")
    _check_depth(recipe, model)
    if recipe.train.slot_weights is not None and model.action_head is not None:
        logger.warning(
            "train.slot_weights weigh tokens, and head %r has none: they count for nothing",
            model.action_head.kind,
        )
    points = point_fields(recipe.train.point_loss)
    check_points(datasets, points)

    rows = spatial_rows(model)
    run = Run(
        recipe=recipe,
        model=trainable_part(recipe, model),
        processor=processor,
        datasets=datasets,
        weights=opened.weights,
        heldout=heldout,
        collate=Collator(
            processor, depth_input(recipe.data.depth), as_tokens=model.action_head is None
        ),
        augment=Augment(**recipe.data.augment.model_dump()) if recipe.data.augment else None,
        rows=rows,
        base_fingerprint=base_fingerprint,
        overrides=overrides,
        points=points,
        depth=estimated_depth(recipe, model, layout.cameras),
    )
    run.depth_plan = plan_depth(run)
    if run.depth_plan is not None and run.depth_plan.cached:
        keep_depth(run, run.depth_plan)
    return run


def chunk_and_layout(recipe: Recipe) -> tuple[int, ObservationLayout]:
    """Actions per prediction and what is observed; proprioception is settled by the data."""
    base = recipe.model.base
    if base is not None and not Path(base).is_dir():
        if said := no_checkpoint("model.base", base):
            raise RecipeError(said)
        try:
            refuse_out_of_reach(base)
        except ValueError as error:
            raise RecipeError(f"model.base {error}") from error
    if recipe.model.new is not None:
        chunk, known = recipe.model.new.action_chunk_size, ObservationLayout()
    else:
        processor = SpatialVLAProcessor.from_pretrained(base)
        chunk, known = processor.action_chunk_size, processor.layout
    data = recipe.data
    layout = ObservationLayout(
        known.cameras if data.cameras is None else tuple(data.cameras),
        known.window if data.window is None else data.window,
        known.proprio_dim if data.proprio is not False else None,
    )
    if not known.is_released and layout.num_views != known.num_views:
        raise RecipeError(
            f"{base} sees {known.window} step(s) of {known.cameras}, data asks for {layout.window} "
            f"of {layout.cameras}: a model that learnt several views keeps their number"
        )
    return chunk, layout


def _with_proprio(
    recipe: Recipe, layout: ObservationLayout, datasets: Sequence[SampleDataset]
) -> ObservationLayout:
    """The layout with as many numbers of proprioception as the data has, if it is wanted."""
    wanted = recipe.data.proprio or (recipe.data.proprio is None and layout.proprio_dim is not None)
    if not wanted:
        return layout
    dims = {dataset.name: dataset.proprio_dim for dataset in datasets}
    if layout.proprio_dim is not None:
        dims["the base"] = layout.proprio_dim
    if len(set(dims.values())) != 1:
        raise RecipeError(
            f"proprioception of different widths cannot be one input: {dims}; train on datasets "
            "that agree, or set data.proprio: false"
        )
    return dataclasses.replace(layout, proprio_dim=next(iter(dims.values())))


def observation_fields(layout: ObservationLayout) -> dict[str, Any]:
    """Config fields of a layout; none for the released one, so that configs stay as they are."""
    if layout.is_released:
        return {}
    return {
        "num_cameras": len(layout.cameras),
        "observation_window": layout.window,
        "proprio_dim": layout.proprio_dim,
    }


def known_grid(recipe: Recipe) -> ActionGrid | None:
    """The grid of a file, or of the base where the recipe fits none; None where one is fitted."""
    if recipe.grid.file is not None:
        return load_grid(Path(recipe.grid.file))
    if recipe.grid.fit is None and recipe.model.new is None:
        return SpatialVLAProcessor.from_pretrained(recipe.model.base).grid
    return None


def grid_of(
    recipe: Recipe,
    datasets: Sequence[SampleDataset],
    statistics: dict[str, ActionStatistics],
    weights: Sequence[float],
) -> ActionGrid | None:
    """The grid this run uses, of the data's action space; None keeps the base's."""
    asked = recipe.grid
    space = datasets[0].action_space
    slots = slots_of(space)
    for dataset in datasets:
        if slots_of(dataset.action_space) != slots:
            raise RecipeError(
                f"{dataset.name} has actions {dataset.action_space.names}, {datasets[0].name} "
                f"{space.names}: one run needs one action space"
            )
    known = known_grid(recipe)
    if known is not None:
        if known.slots != slots:
            raise RecipeError(
                f"the grid is for actions {known.action_space.names}, the data has {space.names}: "
                "set grid.fit, or give a grid.file fitted to this robot"
            )
        return known if asked.file is not None else None
    if asked.bins is not None:
        bins = asked.bins
    elif recipe.model.new is not None:
        bins = recipe.model.new.bins
    else:
        base = SpatialVLAProcessor.from_pretrained(recipe.model.base).grid
        bins = base.bins if base.slots == slots else None
    actions = MixtureActions(datasets, statistics, weights)
    if asked.exclude:
        actions = actions.without(_excluded(recipe, datasets))
    return actions.grid(
        asked.fit or "gaussian", bins=bins, min_sigma=asked.min_sigma, zero_bin=asked.zero_bin
    )


def _excluded(recipe: Recipe, datasets: Sequence[SampleDataset]) -> list[str]:
    """The datasets at hand that the fit of the grid leaves out."""
    opened = [dataset.name for dataset in datasets]
    parts, file, mixture = opened, None, recipe.data.mixture
    if mixture is not None:  # with those that are missing and excused
        parts, file = list(find_mixture(mixture.name, mixture.file)), mixture.file
    found = excluded_datasets(recipe.grid.exclude, parts, file)
    gone = [name for name in found if name in opened]
    if not gone:
        logger.warning(
            "grid.exclude (%s) names none of this run's datasets: the grid is fitted to all",
            ", ".join(recipe.grid.exclude),
        )
    return gone


def _new(
    recipe: Recipe,
    datasets: Sequence[SampleDataset],
    grid: ActionGrid,
    overrides: dict[str, Any],
) -> tuple[SpatialVLAForConditionalGeneration, SpatialVLAProcessor]:
    new = recipe.model.new
    texts = sorted({text for dataset in datasets for text in dataset.instructions()})
    processor = small_processor(
        texts,
        grid,
        image_size=new.image_size,
        patch_size=new.patch_size,
        action_chunk_size=new.action_chunk_size,
    )
    model = small_model(
        processor,
        patch_size=new.patch_size,
        vision=new.vision,
        text=new.text,
        seed=recipe.seed,
        **{**new.config, **overrides},
    )
    return model, processor


def _load(
    recipe: Recipe, overrides: dict[str, Any]
) -> tuple[SpatialVLAForConditionalGeneration, SpatialVLAProcessor]:
    base = recipe.model.base
    torch.manual_seed(recipe.seed)  # what the base does not have starts from random numbers
    model = SpatialVLAForConditionalGeneration.from_pretrained(
        base, dtype=torch.float32, **overrides
    )
    return model, SpatialVLAProcessor.from_pretrained(base)


def _intrinsics(datasets: Sequence[SampleDataset], cameras: Sequence[str]) -> dict[str, dict]:
    """K of the first frame of each dataset's cameras, for `intrinsic_config`."""
    known = {}
    for dataset in datasets:
        sample = dataset[0]
        entries = {}
        for camera in cameras:
            if camera not in sample.images:
                raise RecipeError(
                    f"data.cameras names {camera!r}, but {dataset.name} has {sorted(sample.images)}"
                )
            if camera not in sample.intrinsics:
                raise RecipeError(
                    f"{dataset.name} has no intrinsics of camera {camera!r}: add them to its card "
                    "(intrinsics: {" + camera + ": ...}), or data_mixtures/ shows known ones"
                )
            height, width = sample.images[camera].shape[:2]
            entries[camera] = {
                "intrinsic": sample.intrinsics[camera].tolist(),
                "height": int(height),
                "width": int(width),
            }
        first, *others = cameras
        further = {"cameras": {name: entries[name] for name in others}} if others else {}
        known[dataset.name] = {**entries[first], **further}
    return known


def _check_depth(recipe: Recipe, model: SpatialVLAForConditionalGeneration) -> None:
    if recipe.data.depth.source == "estimate" and takes_depth(model.config):
        raise RecipeError(
            "data.depth is 'estimate', but the model has no ZoeDepth; set data.depth: sensor, name "
            "an estimator (data.depth: {source: estimator, checkpoint: PATH, cache: DIR}), or "
            "start from a checkpoint with one"
        )


def depth_input(depth: Depth) -> DepthInput:
    """Whether samples bring depth along; an estimator's depth travels as a sensor's does."""
    return "estimate" if depth.source == "estimate" else "sensor"


def estimated_depth(
    recipe: Recipe, model: SpatialVLAForConditionalGeneration, cameras: Sequence[str]
) -> SampleDepth | None:
    """What gives samples estimated depth; None where they bring their own or the model does it."""
    asked = recipe.data.depth
    if asked.source != "estimator":
        return None
    if model.config.use_vision_zoe and model.config.vision_zoe_config is not None:
        logger.warning(
            "the model has a ZoeDepth of its own, but trains on depth of %s: evaluate it with the "
            "same estimator (eval sim --depth), or set model.overrides.depth_source: sensor",
            asked.checkpoint,
        )
    estimator = DeferredEstimator(DepthSpec(str(asked.checkpoint), asked.resolution))
    return SampleDepth(estimator, DepthCache(asked.cache), cameras)
