"""Frozen weights in bf16 or four bits under float32 adapters, and what is made of them later."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from spatialvla_ft import SpatialVLAForConditionalGeneration
from spatialvla_ft.models.lora import fingerprint, load_with_adapter, merge_adapter
from spatialvla_ft.models.memory import quantise
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import RecipeError

BF16 = ["train.steps=2", "train.warmup=0", "train.precision=bf16", "model.dtype=bf16"]
HEAD = "language_model.lm_head.weight"


@pytest.fixture(autouse=True)
def own_accelerator():
    """Accelerate keeps the precision of a process' first run; a second one needs a fresh start."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_adapters_are_float32_and_merge_into_the_unrounded_base(recipe_of, base):
    whole = "lora.train_whole=[spatial_embed_tokens, action_head_rows]"
    run = build(recipe_of("lora", overrides=[*BF16, whole, "grid={}"]))
    types = {(p.requires_grad, p.dtype) for p in run.model.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    exact = SpatialVLAForConditionalGeneration.from_pretrained(base)
    assert run.base_fingerprint == fingerprint(exact)
    table = run.spatialvla.spatial_embed_tokens.weight  # peft's copy, made before rounding
    assert torch.equal(table, exact.spatial_embed_tokens.weight)
    folder = train(run)

    adapter = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    adapted = load_with_adapter(folder)
    stored = load_file(base / "model.safetensors")
    merged = merge_adapter(adapted).state_dict()
    # Where nothing was trained the merged model is the base, bit for bit: nothing was rounded.
    name = "language_model.model.layers.0.input_layernorm.weight"
    assert torch.equal(merged[name], stored[name])
    begin = exact.config.action_token_begin_idx
    assert torch.equal(merged[HEAD][:begin], stored[HEAD][:begin])
    assert not torch.equal(stored[HEAD], stored[HEAD].bfloat16().float())
    # Where an adapter was, it is the base plus B A, worked out here from the adapter's file.
    layer = "language_model.model.layers.0.mlp.up_proj"
    low, high = (adapter[f"base_model.model.{layer}.lora_{x}.weight"] for x in "AB")
    wanted = stored[f"{layer}.weight"].double() + high.double() @ low.double()
    assert high.abs().max() > 0
    torch.testing.assert_close(merged[f"{layer}.weight"].double(), wanted, rtol=0, atol=1e-6)


def test_another_base_is_refused_in_bf16_too(recipe_of):
    folder = train(build(recipe_of("lora", overrides=BF16)))
    load_with_adapter(folder, dtype=torch.bfloat16)
    record = folder / "base.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "fingerprint": "0" * 16}))
    with pytest.raises(ValueError, match="it is another"):
        load_with_adapter(folder, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("kind", "overrides", "cure"),
    [
        ("full", ["model.dtype=bf16", "train.precision=bf16"], "Set lora, or model.dtype: float32"),
        ("lora", ["model.dtype=bf16"], "needs train.precision: bf16"),
        ("full", ["model.quantisation=nf4"], "set lora, or remove it"),
    ],
)
def test_frozen_types_need_frozen_weights(recipe_of, kind, overrides, cure):
    with pytest.raises(RecipeError, match=cure):
        recipe_of(kind, overrides=overrides)


def test_without_the_library_the_cure_is_named(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    model = SpatialVLAForConditionalGeneration.from_pretrained(base)
    with pytest.raises(ValueError, match=r"pip install 'spatialvla-ft\[quantisation\]'"):
        quantise(model, torch.float32)


def test_a_quantised_run_trains_adapters_alone_and_comes_back(recipe_of, base):
    library = pytest.importorskip("bitsandbytes")
    recipe = recipe_of("lora", overrides=[*BF16, "model.quantisation=nf4", "data.holdout=0"])
    run = build(recipe)
    quantised = [m for m in run.model.modules() if isinstance(m, library.nn.Linear4bit)]
    assert len(quantised) == 20
    assert all(m.weight.dtype == torch.uint8 for m in quantised)
    bytes_before = [m.weight.data.clone() for m in quantised]
    folder = train(run)
    assert all(torch.equal(m.weight.data, b) for m, b in zip(quantised, bytes_before, strict=True))
    merged = merge_adapter(load_with_adapter(folder))
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    name = "language_model.model.layers.0.input_layernorm.weight"
    assert torch.equal(merged.state_dict()[name], load_file(base / "model.safetensors")[name])
