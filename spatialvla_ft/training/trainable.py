"""Which parameters a run trains: adapters, everything, all but some, or only some.

The optimiser and its schedule, as a recipe says.

What a run trains, part by part, as it is printed before it starts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from ..models.action_tables import ACTION_HEAD, separate_action_head
from ..models.lora import attach_lora
from ..models.memory import cast_frozen, checkpoint_activations, quantise
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from .recipe import Recipe, RecipeError, Train

logger = logging.getLogger(__name__)

TOKEN_TABLES = ("spatial_embed_tokens", "action_head_rows")
"""Modules that only grid tokens read."""


def trainable_part(recipe: Recipe, model: SpatialVLAForConditionalGeneration) -> nn.Module:
    """The model as it is trained: with adapters, or with `train.only` or `train.freeze` applied."""
    if recipe.train.activation_checkpointing:
        checkpoint_activations(model)
    if recipe.lora is None:
        if model.action_head is not None:  # nothing reads them, so nothing would move them
            _set_aside(model)
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
        train_whole=_whole(recipe.lora.train_whole, model),
    )
    if recipe.model.dtype == "bf16":
        cast_frozen(adapted, torch.bfloat16)
    return adapted


def _whole(asked: Sequence[str], model: SpatialVLAForConditionalGeneration) -> tuple[str, ...]:
    """What is trained whole under adapters: as asked, and what the base does not know yet."""
    more = ["observation_tokens"] if model.config.observes_more else []
    if model.action_head is not None:
        unread = [name for name in asked if name in TOKEN_TABLES]
        if unread:
            logger.info(
                "%s stay as they are: head %r does not read them",
                " and ".join(unread),
                model.action_head.kind,
            )
        asked = [name for name in asked if name not in unread]
        more.append("action_head")
    return tuple(dict.fromkeys([*asked, *more]))


def _set_aside(model: SpatialVLAForConditionalGeneration) -> None:
    """Tables of the action tokens stay as they are under another head."""
    for name, parameter in model.named_parameters():
        if name.startswith(("language_model.lm_head.", *(f"{table}." for table in TOKEN_TABLES))):
            parameter.requires_grad_(False)


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


def make_optimizer(parameters: Iterable[nn.Parameter], train: Train) -> torch.optim.Optimizer:
    """AdamW, fused into one kernel."""
    return torch.optim.AdamW(
        parameters,
        lr=train.learning_rate,
        betas=train.betas,
        weight_decay=train.weight_decay,
        fused=True,
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer, train: Train
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then the recipe's course to the last step; or its tail, see `Train`."""
    total = train.schedule_start + train.steps
    whole = get_scheduler(
        "constant_with_warmup" if train.schedule == "constant" else train.schedule,
        optimizer,
        num_warmup_steps=round(train.warmup * total),
        num_training_steps=total,
    )
    if train.schedule_start == 0:
        return whole
    (course,) = whole.lr_lambdas
    return LambdaLR(optimizer, lambda step: course(train.schedule_start + step))


PARTS = (
    ("language model", "language_model.model."),
    ("text embeddings", "language_model.model.embed_tokens."),
    ("head", "language_model.lm_head."),
    ("action head", "action_head."),
    ("head's action rows", "action_head_rows."),
    ("spatial table", "spatial_embed_tokens."),
    ("Ego3D", "position_embedding_3d."),
    ("projector", "multi_modal_projector."),
    ("vision tower", "vision_tower."),
    ("depth estimator", "vision_zoe_model."),
    ("observation tokens", "observation_tokens."),
)
"""Names of parts, and how names of their parameters begin; the longest beginning decides."""

_WRAPPERS = re.compile(r"^base_model\.model\.|\bmodules_to_save\.[^.]+\.|\bbase_layer\.")


@dataclass(frozen=True)
class ParameterGroup:
    """A part of a model in numbers (of parameters, not bytes).

    Attributes:
        name: of the part, one of `PARTS`.
        total: its own parameters, adapters not counted.
        trained: how many of them are trained.
        adapters: trained parameters of the adapters on it.
    """

    name: str
    total: int
    trained: int
    adapters: int


def parameter_groups(model: nn.Module) -> list[ParameterGroup]:
    """The parts that a model has, with or without adapters, in the order of `PARTS`.

    A module that peft trains whole is kept twice, the frozen original beside it; it counts once.
    """
    counts: dict[str, list[int]] = {}
    for full, parameter in model.named_parameters():
        if ".original_module." in full:
            continue
        name = _WRAPPERS.sub("", full)
        fitting = [(len(start), part) for part, start in PARTS if name.startswith(start)]
        part = max(fitting)[1] if fitting else name.split(".")[0]
        total, trained, adapters = counts.setdefault(part, [0, 0, 0])
        count = _numbers(parameter)
        if "lora_" in full:
            adapters += count
        else:
            total += count
            trained += count if parameter.requires_grad else 0
        counts[part] = [total, trained, adapters]
    order = [part for part, _ in PARTS]
    order += sorted(set(counts) - set(order))
    return [ParameterGroup(part, *counts[part]) for part in order if part in counts]


def _numbers(parameter: nn.Parameter) -> int:
    """How many numbers a parameter stands for; quantised ones share bytes."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
