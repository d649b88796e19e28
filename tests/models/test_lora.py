"""Adapters: where they sit, what they train, and that they come back exactly."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from tiny_world import tiny_inputs, tiny_model, tiny_processor

from spatialvla_ft import SpatialVLAForConditionalGeneration
from spatialvla_ft.actions import ActionGrid, adapt_embeddings
from spatialvla_ft.models.lora import (
    TARGETS,
    adapt_to_grid,
    attach_lora,
    fingerprint,
    is_adapter,
    load_with_adapter,
    save_adapter,
    spatial_rows,
)
from spatialvla_ft.policy.load import load_policy_model


@pytest.fixture
def tiny():
    return tiny_processor()


@pytest.fixture
def base(tiny, tmp_path):
    folder = tmp_path / "base"
    tiny_model(tiny).save_pretrained(folder)
    return folder


def load(folder):
    return SpatialVLAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def shake(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def test_targets_of_the_released_recipe(model):
    hit = {n for n, _ in model.named_modules() if re.fullmatch(TARGETS, n)}
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith("vision_zoe_model")
    }
    assert hit == linear - {"language_model.lm_head"}
    assert len(hit) == 3 * 7 + 2 * 6 + 1 + 2


def test_attached_adapters_leave_depth_head_and_tables_alone(golden_checkpoint):
    adapted = attach_lora(load(golden_checkpoint), rank=2)
    trainable = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 36
    assert all("lora_" in name for name in trainable)
    assert not [n for n in trainable if re.search("zoe|lm_head|embed_tokens", n)]
    assert not [n for n, _ in adapted.named_modules() if "lora" in n and "zoe" in n]


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (24, 4.0)])
def test_alpha_is_rank_unless_given(tiny, alpha, scale):
    adapted = attach_lora(tiny_model(tiny), rank=6, alpha=alpha)
    scales = {
        module.scaling["default"] for module in adapted.modules() if isinstance(module, LoraLayer)
    }
    assert scales == {scale}


def test_modules_trained_whole_have_no_adapter(tiny):
    whole = ("spatial_embed_tokens", "position_embedding_3d")
    adapted = attach_lora(tiny_model(tiny), rank=2, train_whole=whole)
    trainable = [n for n, p in adapted.named_parameters() if p.requires_grad]
    for module in whole:
        own = [name for name in trainable if module in name]
        assert own
        assert not [name for name in own if "lora" in name]
    assert [n for n in trainable if "lora" in n]
    with pytest.raises(ValueError, match=r"no module \['spatial_embed'\]"):
        attach_lora(tiny_model(tiny), train_whole=("spatial_embed",))


@pytest.mark.parametrize("whole", [(), ("spatial_embed_tokens",)])
@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_comes_back_exactly(tiny, tmp_path, whole, tied):
    folder = tmp_path / "base"
    tiny_model(tiny, tie_action_head=tied).save_pretrained(folder)
    model = load(folder)
    print_of_base = fingerprint(model)
    old, new = tiny.grid, ActionGrid.from_gaussians(gaussians(), bins=tiny.grid.bins)
    adapt_to_grid(model, old, new)
    tiny.set_grid(new)
    rows = spatial_rows(model)
    adapted = shake(attach_lora(model, rank=3, train_whole=whole))
    inputs = tiny_inputs(tiny)
    with torch.no_grad():
        logits = adapted(**inputs).logits
    save_adapter(
        adapted, tiny, rows, tmp_path / "a", base=str(folder), base_fingerprint=print_of_base
    )
    assert is_adapter(tmp_path / "a")
    assert not is_adapter(folder)
    again, processor = load_policy_model(tmp_path / "a")
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, logits)
    np.testing.assert_array_equal(processor.grid.edges["theta"], new.edges["theta"])

    merged = load_with_adapter(tmp_path / "a").merge_and_unload().eval()
    with torch.no_grad():
        difference = (merged(**inputs).logits - logits).abs().max()
    assert 0 < difference < 1e-3


def gaussians():
    names = ("x", "y", "z", "theta", "phi", "r", "roll", "pitch", "yaw")
    return {name: {"mu": 0.1 + 0.1 * i, "sigma": 0.3 + 0.05 * i} for i, name in enumerate(names)}


def test_another_base_is_refused(tiny, base, tmp_path):
    model = load(base)
    rows = spatial_rows(model)
    adapted = attach_lora(model, rank=2)
    folder = tmp_path / "a"
    save_adapter(adapted, tiny, rows, folder, base=str(base), base_fingerprint="0" * 16)
    with pytest.raises(ValueError, match=r"fingerprint 0000000000000000, but .* it is another"):
        load_with_adapter(folder)


def test_a_base_that_is_no_longer_there_is_named_with_the_cure(tiny, base, tmp_path):
    model = load(base)
    rows, folder = spatial_rows(model), tmp_path / "a"
    adapted = attach_lora(model, rank=2)
    save_adapter(adapted, tiny, rows, folder, base="gone/for/good", base_fingerprint="0" * 16)
    with pytest.raises(ValueError, match=r"/a is an adapter of a base: gone/for/good .* --base"):
        load_with_adapter(folder)


def test_the_fingerprint_sees_a_change_of_one_weight(tiny):
    model = tiny_model(tiny)
    before = fingerprint(model)
    assert before == fingerprint(tiny_model(tiny))
    with torch.no_grad():
        model.multi_modal_projector.linear.bias[0] += 1e-6
    assert fingerprint(model) != before


@pytest.mark.parametrize("tied", [False, True])
def test_adapting_to_a_grid_touches_the_table_and_the_head(tiny, tied):
    model = tiny_model(tiny, tie_action_head=tied)
    new = ActionGrid.from_gaussians(gaussians(), bins=tiny.grid.bins)
    begin, count = model.config.action_token_begin_idx, model.config.spatial_token_num
    assert model.config.text_config.vocab_size == begin + count
    table = model.spatial_embed_tokens.weight.detach().clone()
    head = model.language_model.lm_head.weight.detach().clone()
    adapt_to_grid(model, tiny.grid, new)
    wanted = adapt_embeddings(table, tiny.grid, new)
    assert not torch.equal(wanted, table)
    assert torch.equal(model.spatial_embed_tokens.weight, wanted)
    after = model.language_model.lm_head.weight
    assert torch.equal(after[:begin], head[:begin])
    if tied:
        assert torch.equal(after, head)
        assert torch.equal(model.grid_tokens.rows(slice(0, count)), wanted)
    else:
        assert torch.equal(after[begin:], adapt_embeddings(head[begin:], tiny.grid, new))
