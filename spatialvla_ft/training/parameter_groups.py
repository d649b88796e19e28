"""What a run trains, part by part, as it is printed before it starts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

PARTS = (
    ("language model", "language_model.model."),
    ("text embeddings", "language_model.model.embed_tokens."),
    ("head", "language_model.lm_head."),
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
