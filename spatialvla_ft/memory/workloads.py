"""What a recipe makes a machine do, on made-up inputs of the same shapes.

A step here is the loop's step: the same precision, optimiser, clipping and accumulation. Inputs are
random, and prompts of one batch are equally long.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from ..actions.grid import ActionGrid
from ..actions.grid_io import load_grid
from ..actions.spaces import ActionSpace, end_effector_delta
from ..models.action_tables import set_action_counts
from ..models.checkpoint_files import fill_from_processor_config
from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.observation import ObservationLayout
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..models.small import small_config, small_processor
from ..training.action_head import head_fields
from ..training.build import observation_fields
from ..training.recipe import Recipe, RecipeError
from .sizes import bench_config

PROPRIO_NUMBERS = 8
"""Numbers of proprioception where only the dataset knows how many."""


def config_of(recipe: Recipe, size: str | None = None) -> SpatialVLAConfig:
    """Configuration of the model that a recipe trains, found without its data and weights.

    With the action tokens of `grid.file` or `grid.bins`. A grid that is fitted has the base's bins;
    where the data have another action space, only `grid.file` tells how many tokens that makes.

    Args:
        recipe: whose model it is.
        size: a name of `bench.sizes`, in place of the recipe's own model.
    """
    data = recipe.data
    layout = ObservationLayout(
        ("primary",) if data.cameras is None else tuple(data.cameras),
        data.window or 1,
        PROPRIO_NUMBERS if data.proprio else None,
    )
    known = _grid(recipe) or _grid_of_base(recipe)
    space = end_effector_delta() if known is None else known.action_space
    changes = {
        **recipe.model.overrides,
        **observation_fields(layout),
        **head_fields(recipe, space, known),
    }
    if size is not None:
        fields = bench_config(size).to_dict()
        return _with_grid(SpatialVLAConfig(**{**fields, **changes}), recipe)
    new = recipe.model.new
    if new is not None:
        processor = small_processor(
            ["pick up the block"],
            _grid(recipe) or ActionGrid.uniform(bins=new.bins),
            image_size=new.image_size,
            patch_size=new.patch_size,
            action_chunk_size=new.action_chunk_size,
        )
        return small_config(
            processor,
            patch_size=new.patch_size,
            vision=new.vision,
            text=new.text,
            **{**new.config, **changes},
        )
    base = Path(str(recipe.model.base))
    if not (base / "config.json").is_file():
        raise RecipeError(
            f"model.base {base} has no config.json to read sizes from: give a checkpoint folder "
            "(model.base=FOLDER; config.json and processor_config.json are enough), or plan for "
            "the released size with --sizes released"
        )
    config = SpatialVLAConfig.from_pretrained(base, **changes)
    fill_from_processor_config(config, base)
    return _with_grid(config, recipe)


def _grid(recipe: Recipe) -> ActionGrid | None:
    """A grid of the size that the recipe asks for; None where that is the model's own."""
    if recipe.grid.file is not None:
        return load_grid(Path(recipe.grid.file))
    return None if recipe.grid.bins is None else _uniform(recipe.grid.bins, recipe)


def _grid_of_base(recipe: Recipe) -> ActionGrid | None:
    """That of a base on this disk."""
    base = recipe.model.base
    if base is None or not (Path(base) / "processor_config.json").is_file():
        return None
    return SpatialVLAProcessor.from_pretrained(base).grid


def _uniform(bins: tuple[int, ...], recipe: Recipe) -> ActionGrid:
    """Of the base's action space, or of one arm where there is no base on this disk."""
    base = _grid_of_base(recipe)
    return ActionGrid.uniform(space=None if base is None else base.action_space, bins=bins)


def _with_grid(config: SpatialVLAConfig, recipe: Recipe) -> SpatialVLAConfig:
    if (grid := _grid(recipe)) is not None:
        set_action_counts(config, grid.counts)
    return config


def make_inputs(
    config: SpatialVLAConfig, batch: int, prompt_tokens: int, *, depth: bool, actions: bool
) -> dict[str, Tensor]:
    """Inputs of the shapes that the processor returns; random pictures.

    Args:
        config: sizes.
        batch: samples.
        prompt_tokens: of the instruction, begin and newline included.
        depth: whether depth is given.
        actions: whether action tokens and labels follow the prompt, or actions come beside it, as
            the model's head wants them.
    """
    layout = ObservationLayout(
        tuple(f"camera{i}" for i in range(config.num_cameras)),
        config.observation_window,
        config.proprio_dim,
    )
    views, side = layout.num_views, config.vision_config.image_size
    seen = layout.num_tokens(config.num_image_tokens)
    ids = torch.full((batch, seen + prompt_tokens), 3)
    ids[:, :seen] = config.image_token_index
    types = torch.zeros_like(ids)
    inputs: dict[str, Tensor] = {}
    if actions and config.action_head is not None:
        numbers = ActionSpace.from_dict(config.action_head["space"]).dim
        shape = (batch, config.action_chunk_size, numbers)
        inputs |= {"actions": torch.zeros(shape), "valid": torch.ones(shape, dtype=torch.bool)}
    elif actions:
        count = len(config.action_token_counts) * config.action_chunk_size
        suffix = torch.full((batch, count + 1), config.action_token_begin_idx)
        suffix[:, -1] = 1  # the end of the sequence
        ids = torch.cat((ids, suffix), 1)
        types = torch.cat((types, torch.ones_like(suffix)), 1)
        inputs["labels"] = ids.masked_fill(types == 0, config.ignore_index)
        inputs["token_type_ids"] = types
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    shape = (batch,) if views == 1 else (batch, views)
    inputs["pixel_values"] = torch.rand(*shape, 3, side, side)
    if config.use_vision_zoe:
        camera = [[side, 0.0, side / 2], [0.0, side, side / 2], [0.0, 0.0, 1.0]]
        inputs["intrinsics"] = torch.tensor(camera).expand(*shape, 3, 3).clone()
    if depth:
        inputs["depth"] = 0.5 + torch.rand(*shape, side, side)
    if config.proprio_dim is not None:
        inputs["proprio"] = torch.rand(batch, config.observation_window, config.proprio_dim)
    return inputs


def training_steps(
    model: nn.Module, recipe: Recipe, inputs: dict[str, Tensor]
) -> Callable[[], torch.optim.Optimizer]:
    """Two optimiser steps of a recipe, as a function without arguments.

    Two, because the first one has no optimiser states yet. With accumulation each has two passes,
    however many the recipe has, since later ones need no more memory than the second.

    Args:
        model: from `trainable_part`.
        recipe: precision, optimiser and accumulation.
        inputs: from `make_inputs`.
    """
    train = recipe.train
    trained = [p for p in model.parameters() if p.requires_grad]
    forward = model.forward
    if train.precision == "bf16":
        device = inputs["input_ids"].device.type
        forward = convert_outputs_to_fp32(torch.autocast(device, dtype=torch.bfloat16)(forward))

    def work() -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(trained, lr=train.learning_rate, fused=True)
        model.train()
        for _ in range(2):
            outputs = None
            for _ in range(min(train.gradient_accumulation, 2)):
                outputs = forward(**inputs, logits_to_keep="labels")
                (outputs.loss / train.gradient_accumulation).backward()
            torch.nn.utils.clip_grad_norm_(trained, train.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        return optimizer

    return work


def predictions(
    model: SpatialVLAForConditionalGeneration,
    inputs: dict[str, Tensor],
    between: Callable[[], None] = lambda: None,
) -> Callable[[], Tensor]:
    """Two predictions of a batch, as a function without arguments; the second reuses the cache.

    Args:
        model: any.
        inputs: from `make_inputs`.
        between: called after the first one.
    """

    def work() -> Tensor:
        model.eval()
        predict = model.predict_action if model.action_head is None else model.predict_actions
        predict(inputs)
        between()
        return predict(inputs)

    return work
