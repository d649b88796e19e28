"""Which parameters a run trains: adapters, everything, all but some, or only some."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..models.action_head import ACTION_HEAD, separate_action_head
from ..models.checkpointing import checkpoint_activations
from ..models.dtypes import cast_frozen
from ..models.lora import attach_lora
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.quantise import quantise
from .recipe import Recipe, RecipeError


def trainable_part(recipe: Recipe, model: SpatialVLAForConditionalGeneration) -> nn.Module:
    """The model as it is trained: with adapters, or with `train.only` or `train.freeze` applied."""
    if recipe.train.activation_checkpointing:
        checkpoint_activations(model)
    if recipe.lora is None:
        if recipe.train.only is not None:
            if ACTION_HEAD in recipe.train.only:
                separate_action_head(model)
            _keep_only(model, recipe.train.only)
            return model
        freeze = recipe.train.freeze
        _freeze(model, model.config.frozen_parameters if freeze is None else freeze)
        return model
    if recipe.model.quantisation is not None:
        compute = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
        quantise(model, compute)
    torch.manual_seed(recipe.seed)  # the adapters' first values
    adapted = attach_lora(
        model,
        rank=recipe.lora.rank,
        alpha=recipe.lora.alpha,
        dropout=recipe.lora.dropout,
        targets=recipe.lora.targets,
        train_whole=(
            *recipe.lora.train_whole,
            *(("observation_tokens",) if model.config.observes_more else ()),
        ),
    )
    if recipe.model.dtype == "bf16":
        cast_frozen(adapted, torch.bfloat16)
    return adapted


def _freeze(model: SpatialVLAForConditionalGeneration, prefixes: Sequence[str]) -> None:
    for parameter in _named_by(model, prefixes, "train.freeze").values():
        parameter.requires_grad_(False)


def _keep_only(model: SpatialVLAForConditionalGeneration, prefixes: Sequence[str]) -> None:
    kept = _named_by(model, prefixes, "train.only")
    fixed = sorted(name for name, parameter in kept.items() if not parameter.requires_grad)
    if fixed:
        raise RecipeError(
            f"train.only names {fixed[0]}, which is never trained (the depth estimator stays as it "
            "is); leave it out"
        )
    for name, parameter in model.named_parameters():
        if name not in kept:
            parameter.requires_grad_(False)


def _named_by(model: nn.Module, prefixes: Sequence[str], field: str) -> dict[str, nn.Parameter]:
    """Parameters whose names begin with one of the prefixes; each prefix must name some."""
    named = dict(model.named_parameters())
    unused = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in named)]
    if unused:
        top = sorted({name.split(".")[0] for name in named})
        raise RecipeError(f"{field} names no parameter: {unused}; parameters begin with {top}")
    return {name: p for name, p in named.items() if name.startswith(tuple(prefixes))}
