"""The canary: healthy models pass, and each way to blind one is found and named."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_world import MadeUp, tiny_model, tiny_processor
from transformers.models.gemma2 import modeling_gemma2

from spatialvla_ft import SpatialVLAForConditionalGeneration, SpatialVLAProcessor
from spatialvla_ft.export import export_checkpoint
from spatialvla_ft.export.inputs import recorded_inputs
from spatialvla_ft.heads.grid_tokens import GridTokens
from spatialvla_ft.models import attention, ego3d, modeling_spatialvla
from spatialvla_ft.policy.canary import LEAST_CHANGE, BlindModelError, check_sight
from spatialvla_ft.policy.load import load_policy_model
from spatialvla_ft.policy.stored import STORED_FILE, read_stored

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(scope="module")
def tiny():
    return tiny_processor()


@pytest.fixture
def healthy(tiny):
    return tiny_model(tiny)


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """A checkpoint with its stored answers."""
    folder = tmp_path_factory.mktemp("source")
    tiny_model(tiny).save_pretrained(folder)
    tiny.save_pretrained(folder)
    out = tmp_path_factory.mktemp("exports") / "out"
    export_checkpoint(
        folder, out, lambda processor, config: recorded_inputs(MadeUp(), processor, config, count=3)
    )
    return out


# -------------------------------------------------------------------- healthy


@DTYPES
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"prefix_mask": "causal"},
        {"text": {"initializer_range": 0.02}},
        {"vision_stem": "conv", "ego3d_rms_norm": True, "tie_action_head": True},
        {"compatibility": "released"},
    ],
)
def test_healthy_models_pass(tiny, config, dtype):
    report = check_sight(tiny_model(tiny, **config).to(dtype), tiny)
    assert set(report.changes) == {
        "another picture",
        "a grey picture",
        "another text",
        "another K",
        "another depth",
    }
    # The least is 12 times it, in bfloat16, whose rounding is the processor's.
    assert min(report.changes.values()) > 5 * LEAST_CHANGE[dtype]
    assert all(0 < value <= 1 for value in report.total_variation.values())
    assert report.forwards == 1
    assert report.depth_change is None
    assert not report.warnings


def test_a_model_without_ego3d_need_not_heed_k(tiny):
    report = check_sight(tiny_model(tiny, use_vision_zoe=False), tiny)
    assert set(report.changes) == {"another picture", "a grey picture", "another text"}


def test_the_released_layout_passes_and_its_depth_is_checked(model, processor):
    report = check_sight(model, processor)
    assert report.depth_change > 0.1
    assert report.changes["another K"] > 1


@DTYPES
def test_a_checkpoint_with_stored_answers_passes(exported, dtype):
    model, processor = load_policy_model(exported, dtype=dtype)
    report = check_sight(model, processor, stored=read_stored(exported))
    assert report.stored.inputs == 2
    assert report.forwards == 3
    assert report.stored.deviation < report.stored.tolerance / 3
    assert report.stored.correlation > 0.99


# -------------------------------------------------------------------- sabotage


def skip_the_merge(model, monkeypatch):
    monkeypatch.setattr(modeling_spatialvla, "merged", lambda embeds, *rest: embeds)


def hide_the_picture(model, monkeypatch):
    whole = attention.attention_masks

    def hiding(config, embeds, mask, *rest):
        masks = whole(config, embeds, mask, *rest)
        for allowed in masks.values():
            allowed[:, :, 16 + 8 :, : 16 + 8] = torch.finfo(allowed.dtype).min
        return masks

    monkeypatch.setattr(attention, "attention_masks", hiding)


def blind_siglip(model, monkeypatch):
    model.vision_tower.embeddings.patch_embedding.weight.data.zero_()


def cut_the_projector(model, monkeypatch):
    model.multi_modal_projector.linear.weight.data.zero_()


def ignore_k(model, monkeypatch):
    whole = ego3d.patch_points
    monkeypatch.setattr(
        ego3d,
        "patch_points",
        lambda depth, K, *rest: whole(depth, K[:1].expand_as(K), *rest),
    )


def ignore_depth(model, monkeypatch):
    whole = ego3d.patch_points
    monkeypatch.setattr(
        ego3d, "patch_points", lambda depth, *rest: whole(torch.ones_like(depth), *rest)
    )


def cut_ego3d(model, monkeypatch):
    model.position_embedding_3d.position_embedding_head[3].weight.data.zero_()


def damage_a_weight(model, monkeypatch):
    model.language_model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan


def uncap_a_layer(model, monkeypatch):
    model.language_model.model.layers[1].self_attn.attn_logit_softcapping = None


def uncap_the_kernel(model, monkeypatch):
    whole = modeling_gemma2.eager_attention_forward

    def uncapped(*args, softcap=None, **kwargs):
        return whole(*args, **kwargs)

    monkeypatch.setattr(modeling_gemma2, "eager_attention_forward", uncapped)


def uncap_the_logits(model, monkeypatch):
    monkeypatch.setattr(GridTokens, "soft_cap", lambda self, logits: logits)


@DTYPES
@pytest.mark.parametrize(
    ("sabotage", "said"),
    [
        (skip_the_merge, "another picture .*not merged at the <image> tokens"),
        (hide_the_picture, "another picture .*no word attends to the picture. The attention mask"),
        (blind_siglip, r"another picture .*SigLIP gives the same features .*vision_tower\.\*"),
        (cut_the_projector, "another picture .*lost before the projector's output"),
        (ignore_k, "another K changes no action .*intrinsics are ignored"),
        (ignore_depth, "another depth changes no action .*depth does not reach them"),
        (cut_ego3d, "another K .*weights of position_embedding_3d are missing or zero"),
        (damage_a_weight, "not finite: weights are damaged"),
        (uncap_a_layer, r"soft cap: layers \[1\] .* by None, the config says 50"),
        (uncap_the_kernel, "soft cap: the attention kernel 'eager' .* does not apply"),
        (uncap_the_logits, "soft cap: logits are not bounded by .* 30"),
    ],
)
def test_a_blinded_model_is_found_and_the_cause_named(
    tiny, healthy, monkeypatch, sabotage, said, dtype
):
    model = healthy.to(dtype)
    sabotage(model, monkeypatch)
    with pytest.raises(BlindModelError, match=f"(?s){said}"):
        check_sight(model, tiny)


def test_what_still_works_is_not_blamed(tiny, healthy, monkeypatch):
    ignore_k(healthy, monkeypatch)
    with pytest.raises(BlindModelError) as caught:
        check_sight(healthy, tiny)
    assert str(caught.value).count("\n- ") == 1
    assert "transformers" in str(caught.value)


def test_everything_broken_is_said_at_once(tiny, healthy, monkeypatch):
    ignore_k(healthy, monkeypatch)
    uncap_the_logits(healthy, monkeypatch)
    ignore_depth(healthy, monkeypatch)
    with pytest.raises(BlindModelError, match=r"(?s)soft cap.*another K.*another depth"):
        check_sight(healthy, tiny)


@pytest.mark.parametrize("constant", [1.0, "one map for all"])
def test_depth_that_does_not_see_is_found(model, processor, monkeypatch, constant):
    def stuck(zoe, pixels, *rest):
        ramp = torch.linspace(0.5, 2, 224).expand(len(pixels), 224, 224)
        return torch.ones_like(ramp) if constant == 1.0 else ramp

    monkeypatch.setattr(modeling_spatialvla, "estimate_depth", stuck)
    with pytest.raises(BlindModelError, match=r"depth does not change .*vision_zoe_model\.\*"):
        check_sight(model, processor)


def test_a_model_that_does_not_read_is_warned_about(tiny, healthy, caplog):
    texts = healthy.language_model.model.embed_tokens.weight.data
    texts[:] = texts[5]
    with caplog.at_level(logging.WARNING):
        # Words are all one, so only their number could tell; make that the same too.
        tiny_same = tiny_processor()
        prompt_ids = tiny_same.prompt_ids
        tiny_same.prompt_ids = lambda text: prompt_ids("go")
        report = check_sight(healthy, tiny_same)
    assert "does not read" in report.warnings[0]
    assert "does not read" in caplog.text


# -------------------------------------------------------------------- stored answers, loading


def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


@DTYPES
def test_other_weights_are_found_by_the_stored_answers(exported, tmp_path, dtype):
    folder = copied(exported, tmp_path)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(9)
    for name, tensor in weights.items():
        if "language_model.model.layers" in name and tensor.ndim == 2:
            weights[name] = torch.randn(tensor.shape, generator=generator) * tensor.std()
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(BlindModelError, match=r"stored at export .* these are other weights"):
        load_policy_model(folder, dtype=dtype)
    model, _ = load_policy_model(folder, dtype=dtype, canary=False)
    assert isinstance(model, SpatialVLAForConditionalGeneration)
    (folder / STORED_FILE).unlink()
    load_policy_model(folder, dtype=dtype)  # it sees, and nothing says that it should not act so


@pytest.mark.parametrize(
    ("field", "value"), [("query_pre_attn_scalar", 10), ("attn_logit_softcapping", 2.0)]
)
def test_other_arithmetic_is_found_by_the_stored_answers(exported, tmp_path, field, value):
    folder = copied(exported, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BlindModelError, match="the right weights, computed differently"):
        load_policy_model(folder)


def test_other_statistics_are_found_by_the_stored_answers(exported, tmp_path):
    folder = copied(exported, tmp_path)
    processor = SpatialVLAProcessor.from_pretrained(folder)
    entry = next(iter(processor.statistics.values()))
    entry["action"]["q99"][0] += 0.01
    processor.save_pretrained(folder)
    with pytest.raises(BlindModelError, match="decode to other actions, off by up to"):
        load_policy_model(folder)


def test_missing_weights_are_not_made_up(exported, tmp_path):
    folder = copied(exported, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights.pop("position_embedding_3d.position_embedding_head.0.weight")
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(BlindModelError, match=r"lacks 1 weights \(position_embedding_3d"):
        load_policy_model(folder)
