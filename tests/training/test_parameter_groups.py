"""The numbers of a run's parts, against a count over the plain model."""

from __future__ import annotations

import torch
from tiny_world import tiny_model, tiny_processor

from spatialvla_ft.models.lora import attach_lora
from spatialvla_ft.training.trainable import parameter_groups


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_every_parameter_of_a_plain_model_is_in_its_part():
    model = tiny_model(tiny_processor())
    model.vision_tower.requires_grad_(False)
    groups = {group.name: group for group in parameter_groups(model)}
    language = model.language_model.model
    wanted = {
        "language model": size(language) - size(language.embed_tokens),
        "text embeddings": size(language.embed_tokens),
        "head": size(model.language_model.lm_head),
        "spatial table": size(model.spatial_embed_tokens),
        "Ego3D": size(model.position_embedding_3d),
        "projector": size(model.multi_modal_projector),
        "vision tower": size(model.vision_tower),
    }
    assert {name: group.total for name, group in groups.items()} == wanted
    assert sum(wanted.values()) == size(model)
    assert [name for name, group in groups.items() if not group.trained] == ["vision tower"]
    assert groups["spatial table"].trained == wanted["spatial table"]


def test_adapters_count_where_they_sit_and_nothing_counts_twice():
    plain = tiny_model(tiny_processor())
    wanted = {group.name: group.total for group in parameter_groups(plain)}
    linear = [m for m in plain.vision_tower.modules() if isinstance(m, torch.nn.Linear)]
    in_vision = sum(3 * (m.in_features + m.out_features) for m in linear)
    model = attach_lora(plain, rank=3, train_whole=("spatial_embed_tokens",))
    groups = {group.name: group for group in parameter_groups(model)}
    assert {name: group.total for name, group in groups.items()} == wanted
    assert groups["vision tower"].adapters == in_vision
    assert groups["vision tower"].trained == 0
    assert groups["spatial table"].trained == wanted["spatial table"]
    assert groups["spatial table"].adapters == groups["head"].trained == 0
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(group.trained + group.adapters for group in groups.values())
