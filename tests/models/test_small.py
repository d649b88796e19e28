"""The small model: builds, reloads, and starts with neighbours as neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_world import BINS, tiny_inputs, tiny_model, tiny_processor

from spatialvla_ft import SpatialVLAForConditionalGeneration, SpatialVLAProcessor
from spatialvla_ft.actions import ActionGrid
from spatialvla_ft.models.small import ordered_table, small_tokenizer


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"vision_stem": "conv", "ego3d_rms_norm": True, "tie_action_head": True},
        {"use_vision_zoe": False},
    ],
)
def test_a_small_model_comes_back(tmp_path, config):
    processor = tiny_processor()
    model = tiny_model(processor, **config)
    inputs = tiny_inputs(processor, with_actions=True)
    inputs.pop("actions")
    with torch.no_grad():
        before = model(**inputs)
    assert before.logits.shape[-1] == processor.action_tokenizer.end_id
    assert bool(torch.isfinite(before.loss))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, before.logits)
    for name, value in config.items():
        assert getattr(again.config, name) == value
    loaded = SpatialVLAProcessor.from_pretrained(tmp_path)
    assert loaded.prompt_ids("püt it") == processor.prompt_ids("püt it")


def test_the_same_seed_makes_the_same_model():
    processor = tiny_processor()
    one, other = (tiny_model(processor).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_tokenizer_spells_what_it_never_saw():
    tokenizer = small_tokenizer(["pick up"])
    text = "Ω, 漢字 & naïve"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_neighbouring_bins_start_as_neighbours():
    grid = ActionGrid.uniform(bins=(8, 10, 4, 6, 5, 4, 2))
    table = ordered_table(grid, 64).reshape(-1, 64)
    assert len(table) == grid.total
    assert abs(float(table[: grid.counts[0]].std()) - 2 / 64**0.5) < 1e-5
    rotations = table[grid.counts[0] : -2].reshape(6, 5, 4, 64)
    for axis in range(3):
        n = rotations.shape[axis]
        middle = rotations.select(axis, n // 2)
        near = (rotations.select(axis, n // 2 - 1) - middle).norm(dim=-1).mean()
        far = (rotations.select(axis, 0) - middle).norm(dim=-1).mean()
        assert near < far
    translations = table[: grid.counts[0]].reshape(8, 10, 4, 64)
    near = (translations[3] - translations[4]).norm(dim=-1).mean()
    far = (translations[0] - translations[7]).norm(dim=-1).mean()
    assert near < 0.7 * far
    # phi is an angle: its first and last bin are neighbours.
    ends = (translations[:, 0] - translations[:, -1]).norm(dim=-1).mean()
    opposite = (translations[:, 0] - translations[:, 5]).norm(dim=-1).mean()
    assert ends < 0.7 * opposite


def test_the_model_starts_with_the_ordered_table():
    processor = tiny_processor()
    table = tiny_model(processor).spatial_embed_tokens.weight.detach()
    wanted = ordered_table(ActionGrid.uniform(bins=BINS), 32)
    np.testing.assert_array_equal(table, wanted)
