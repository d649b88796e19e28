"""Checkpoints whole and broken: shards, missing and odd weights, what the Hub may answer."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from tiny_world import picture

from spatialvla_ft import SpatialVLAForConditionalGeneration, SpatialVLAProcessor
from spatialvla_ft.models.checkpoint_files import read_processor_config

TABLE = "spatial_embed_tokens.weight"


@pytest.fixture
def shards(golden_checkpoint, tmp_path):
    """The golden checkpoint, cut in three, in the names and the dtype of the original."""
    folder = tmp_path / "shards"
    shutil.copytree(golden_checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(golden_checkpoint / "model.safetensors")
    weight_map = {}
    for i in range(3):
        part = sorted(weights)[i::3]
        name = f"model-{i + 1:05d}-of-00003.safetensors"
        save_file({key: weights[key] for key in part}, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder


def change(folder, key, tensor):
    """Replace a tensor of a sharded checkpoint, or drop it (None)."""
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = content["weight_map"].get(key, "model-00001-of-00003.safetensors")
    weights = load_file(folder / name)
    weights.pop(key, None)
    content["weight_map"].pop(key, None)
    if tensor is not None:
        weights[key] = tensor
        content["weight_map"][key] = name
    save_file(weights, folder / name, {"format": "pt"})
    index.write_text(json.dumps(content))


def load(folder, **options):
    return SpatialVLAForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, **options
    )


# -------------------------------------------------------------------- whole


def test_shards_load_through_every_auto_class_without_asking(shards, model, monkeypatch):
    """`auto_map` names code files that are not there; nobody is asked, nothing is fetched."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    def refuse(*_, **__):
        raise AssertionError("a question or a connection")

    monkeypatch.setattr("builtins.input", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert "auto_map" in json.loads((shards / "config.json").read_text())
    assert AutoConfig.from_pretrained(shards).model_type == "spatialvla"
    assert isinstance(AutoProcessor.from_pretrained(shards), SpatialVLAProcessor)
    for auto in (AutoModel, AutoModelForImageTextToText):
        loaded = auto.from_pretrained(shards, dtype=torch.float32)
        assert isinstance(loaded, SpatialVLAForConditionalGeneration)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name


def test_saved_shards_have_the_released_keys(model, golden_dir, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="2MB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    released = json.loads((golden_dir / "checkpoint_keys.json").read_text())
    assert index["weight_map"].keys() == released.keys()
    again = load(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("module", ["get_input_embeddings", "get_output_embeddings"])
def test_a_table_that_is_a_view_is_saved(golden_checkpoint, golden_dir, tmp_path, module):
    aliased = load(golden_checkpoint)
    begin = aliased.config.action_token_begin_idx
    rows = getattr(aliased, module)().weight.data[begin : begin + 8194]
    aliased.spatial_embed_tokens.weight = torch.nn.Parameter(rows)
    aliased.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    released = json.loads((golden_dir / "checkpoint_keys.json").read_text())
    assert saved.keys() == released.keys()
    assert torch.equal(saved[TABLE], rows)
    assert torch.equal(load(tmp_path).spatial_embed_tokens.weight, rows)


# -------------------------------------------------------------------- broken


def test_missing_and_unknown_weights_are_named(shards):
    change(shards, TABLE, None)
    change(shards, "language_model.model.norm.weight", None)
    with pytest.raises(
        ValueError,
        match=r"2 weights are missing: language_model.model.norm.weight, spatial_embed_tokens.wei",
    ):
        load(shards)
    loaded, info = load(shards, allow_incomplete=True, output_loading_info=True)
    assert TABLE in info["missing_keys"]
    assert bool(torch.isfinite(loaded.spatial_embed_tokens.weight).all())
    change(shards, TABLE, torch.zeros(8194, 64))
    change(shards, "language_model.model.norm.weight", torch.zeros(64))
    change(shards, "value_head.weight", torch.zeros(3))
    with pytest.raises(
        ValueError, match=r"1 weights are not part of the model: value_head.weight. The download"
    ):
        load(shards)


def test_another_shape_is_named_with_both(shards):
    change(shards, TABLE, torch.zeros(134, 64))
    for options in ({}, {"allow_incomplete": True}):
        with pytest.raises(
            ValueError, match=r"spatial_embed_tokens.weight \(134, 64\) \(needed \(8194, 64\)\)"
        ):
            load(shards, **options)
    assert load(shards, ignore_mismatched_sizes=True).spatial_embed_tokens.weight.shape[0] == 8194


def test_a_shard_that_is_cut_short_or_gone_is_named(shards):
    second = shards / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for content in (whole[: len(whole) // 2], b"", pointer):
        second.write_bytes(content)
        with pytest.raises(
            ValueError,
            match=rf"model-00002-of-00003.safetensors \({len(content):,} bytes\) cannot be read",
        ):
            load(shards)
    second.unlink()
    with pytest.raises(
        ValueError, match=r"1 weight files that are not there: model-00002-of-00003.safetensors"
    ):
        load(shards)


# -------------------------------------------------------------------- processors


def test_tokens_per_picture_come_from_the_checkpoint(golden_checkpoint, tmp_path):
    folder = shutil.copytree(golden_checkpoint, tmp_path / "copy")
    file = folder / "preprocessor_config.json"
    content = json.loads(file.read_text())
    del content["image_seq_length"]
    file.write_text(json.dumps(content))
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= {"patch_size": 28}
    (folder / "config.json").write_text(json.dumps(config))
    processor = SpatialVLAProcessor.from_pretrained(folder)
    assert processor.image_seq_length == 64
    ids = processor(images=picture(0), text="x", intrinsic=torch.eye(3))["input_ids"]
    assert int((ids == processor.image_token_id).sum()) == 64
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no image_seq_length and there is no config.json"):
        SpatialVLAProcessor.from_pretrained(folder)
    processor.image_processor.image_seq_length = None
    with pytest.raises(ValueError, match="image processor has no image_seq_length"):
        SpatialVLAProcessor(processor.image_processor, processor.tokenizer, grid=processor.grid)


# -------------------------------------------------------------------- the Hub


class Answer:
    """What an HTTP error needs to know of its response."""

    headers = {}  # noqa: RUF012
    status_code = 401
    request = None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError, "neither a folder nor a Hub repository of this name"),
        (errors.GatedRepoError, "is gated: accept its terms .* `hf auth login`"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.HfHubHTTPError, "the Hub refused or failed"),
        (errors.LocalEntryNotFoundError, "the Hub was not reached .*`hf download"),
    ],
)
def test_what_the_hub_says_is_passed_on(monkeypatch, tmp_path, error, message):
    def answer(*_, **__):
        if error is errors.LocalEntryNotFoundError:
            raise error("no")
        raise error("no", response=Answer())

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", answer)
    with pytest.raises(ValueError, match=f"^owner/name: .*{message}"):
        SpatialVLAProcessor.from_pretrained("owner/name", cache_dir=tmp_path)


def test_a_repository_without_the_file_is_no_error(monkeypatch, tmp_path):
    def answer(*_, **__):
        raise errors.EntryNotFoundError("no")

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", answer)
    assert read_processor_config("owner/name", cache_dir=tmp_path) is None
    assert read_processor_config(tmp_path) is None


def test_offline_and_not_in_the_cache(tmp_path):
    """No stand-in here: the library itself, offline."""
    with pytest.raises(ValueError, match="not in the cache and the Hub was not reached"):
        read_processor_config("owner/name", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize("place", ["./nowhere", "/no/where/at/all", "runs/a/b"])
def test_no_folder_is_said_so(place):
    for kind in (SpatialVLAForConditionalGeneration, SpatialVLAProcessor):
        with pytest.raises(ValueError, match=f"^{place} is no folder"):
            kind.from_pretrained(place)
