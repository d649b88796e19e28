"""What weights are called on disk: released names wherever a model came from, both forms read.

transformers 5.17 to 5.23 keeps SigLIP without the `vision_model.` of released files, and a model
that was not loaded from such a file used to be saved without it too: released code then took a
vision tower of random numbers and merely warned. Names of such older files have no `vision_model.`.
"""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_paligemma
import torch
from released_keys import KEYS, check_released, keys_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_world import tiny_inputs, tiny_model, tiny_processor

from spatialvla_ft import SpatialVLAConfig, SpatialVLAForConditionalGeneration
from spatialvla_ft.models.lora import (
    attach_lora,
    fingerprint,
    load_with_adapter,
    merge_adapter,
    save_adapter,
    spatial_rows,
)
from spatialvla_ft.policy.load import load_policy_model

VISION = "vision_tower.vision_model."


def load(folder, **options):
    return SpatialVLAForConditionalGeneration.from_pretrained(
        folder, **{"dtype": torch.float32, **options}
    ).eval()


def rename(folder, old, new):
    """Rename what begins with `old` in a folder's weight files and their index."""

    def renamed(name):
        return new + name.removeprefix(old) if name.startswith(old) else name

    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), "pt") as opened:
            metadata = opened.metadata()
        save_file({renamed(k): v for k, v in load_file(file).items()}, file, metadata)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {renamed(k): v for k, v in content["weight_map"].items()}
        index.write_text(json.dumps(content))


def older(folder):
    """Give a folder the names that files of a fresh model had."""
    rename(folder, VISION, "vision_tower.")
    assert not [name for name in keys_of(folder) if "vision_model" in name]
    return folder


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="session")
def fresh(golden_checkpoint):
    """Never loaded from anywhere, with every kind of module that released checkpoints have."""
    torch.manual_seed(5)
    config = SpatialVLAConfig.from_pretrained(golden_checkpoint, action_chunk_size=4)
    return SpatialVLAForConditionalGeneration(config).eval()


@pytest.mark.parametrize("shard", ["1GB", "300KB"])
def test_a_fresh_model_is_saved_under_released_names_and_comes_back(fresh, tmp_path, shard):
    fresh.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "300KB")
    assert keys_of(tmp_path) == json.loads(KEYS.read_text()).keys()
    assert equal(load(tmp_path), fresh)


def test_weights_that_are_handed_over_get_the_names_too(fresh, tmp_path):
    fresh.save_pretrained(tmp_path / "a", state_dict=fresh.state_dict())
    fresh.save_pretrained(tmp_path / "b", True, load_golden_names(fresh))
    for folder in ("a", "b"):
        assert keys_of(tmp_path / folder) == json.loads(KEYS.read_text()).keys()


def load_golden_names(model):
    """Weights that are called as in released files already."""
    return {
        VISION + name.removeprefix("vision_tower.") if name.startswith("vision_tower.") else name: t
        for name, t in model.state_dict().items()
    }


@pytest.mark.parametrize("shard", ["1GB", "300KB"])
def test_an_older_file_loads_to_the_bit_and_is_saved_under_released_names(fresh, tmp_path, shard):
    fresh.save_pretrained(tmp_path / "new", max_shard_size=shard)
    loaded = load(older(shutil.copytree(tmp_path / "new", tmp_path / "old")))
    assert equal(loaded, fresh)
    loaded.save_pretrained(tmp_path / "again", max_shard_size=shard)
    assert keys_of(tmp_path / "again") == json.loads(KEYS.read_text()).keys()
    assert equal(load(tmp_path / "again"), fresh)


SMALL = {
    "sensor": {},
    "conv": {"vision_stem": "conv", "ego3d_rms_norm": True, "tie_action_head": True},
    "zoe": {"depth_source": "zoe", "vision_zoe_config": tiny_paligemma.zoedepth_config().to_dict()},
    "views": {"num_cameras": 2, "proprio_dim": 3},
}
BEYOND = (f"{VISION}embeddings.patch_embedding.stages.", "observation_tokens.")


@pytest.mark.parametrize("kind", SMALL)
def test_small_models_have_released_names_and_names_of_their_own_only_for_what_is_new(
    tmp_path, kind
):
    torch.manual_seed(0)
    model = tiny_model(tiny_processor(), **SMALL[kind])
    model.save_pretrained(tmp_path / "new")
    check_released(tmp_path / "new", beyond=BEYOND)
    assert equal(load(tmp_path / "new"), model)
    assert equal(load(older(tmp_path / "new")), model)


def test_offloaded_weights_are_saved_too(fresh, tmp_path):
    """They are found by the names of their modules, so these names must not change before."""
    fresh.save_pretrained(tmp_path / "new")
    places = {name: "cpu" for name, _ in fresh.named_children()} | {"vision_tower": "disk"}
    offloaded = load(tmp_path / "new", device_map=places, offload_folder=tmp_path / "disk")
    assert offloaded.vision_tower.post_layernorm.weight.is_meta
    with pytest.warns(UserWarning, match="offloaded modules"):
        offloaded.save_pretrained(tmp_path / "again")
    assert keys_of(tmp_path / "again") == json.loads(KEYS.read_text()).keys()
    assert equal(load(tmp_path / "again"), fresh)


@pytest.mark.parametrize("whole", [(), ("vision_tower", "spatial_embed_tokens")])
def test_an_adapter_fits_its_base_under_either_names(tmp_path, whole):
    """Of a base before and after; the adapter's own names are those of modules, as ever."""
    processor = tiny_processor()
    base = tmp_path / "base"
    tiny_model(processor).save_pretrained(base)
    older(base)
    model = load(base)
    mark, rows = fingerprint(model), spatial_rows(model)
    adapted = attach_lora(model, rank=2, train_whole=whole)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    inputs = tiny_inputs(processor)
    with torch.no_grad():
        logits = adapted.eval()(**inputs).logits
    place = tmp_path / "adapter"
    save_adapter(adapted, processor, rows, place, base=str(base), base_fingerprint=mark)
    names = load_file(place / "adapter_model.safetensors").keys()
    in_vision = {name for name in names if "vision_tower." in name}
    assert in_vision
    assert {"vision_model" in name for name in in_vision} == {False}
    for form in ("older", "released"):
        if form == "released":
            rename(base, "vision_tower.", VISION)
        again, _ = load_policy_model(place)
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits, logits), form
    merged = merge_adapter(load_with_adapter(place))
    merged.save_pretrained(tmp_path / "merged")
    check_released(tmp_path / "merged")
    assert equal(load(tmp_path / "merged"), merged)
