"""The model beyond the golden numbers: what it refuses, what stays put, and NumPy oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_world import row_of, tiny_inputs, tiny_model, tiny_processor

from spatialvla_ft import SpatialVLAForConditionalGeneration
from spatialvla_ft.geometry.frequency import frequency_encoding
from spatialvla_ft.models.ego3d import patch_points, pool_depth
from spatialvla_ft.models.lora import attach_lora


@pytest.fixture(scope="module")
def tiny():
    return tiny_processor()


@pytest.fixture(scope="module")
def small(tiny):
    return tiny_model(tiny)


def training(tiny, rows=2):
    inputs = tiny_inputs(tiny, rows, with_actions=True)
    inputs.pop("actions")
    return inputs


# -------------------------------------------------------------------- attention


@pytest.mark.parametrize("asked", ["sdpa", {"text_config": "sdpa"}])
def test_sdpa_is_refused_with_the_reason(golden_checkpoint, small, asked):
    for attempt in (
        lambda: SpatialVLAForConditionalGeneration.from_pretrained(
            golden_checkpoint, attn_implementation=asked
        ),
        lambda: small.set_attn_implementation(asked),
    ):
        with pytest.raises(
            ValueError, match=r"sdpa' is refused .* cannot apply Gemma 2's soft cap"
        ):
            attempt()


def test_the_text_tower_is_eager_and_its_soft_cap_acts(tiny):
    hot = {"initializer_range": 3.0}
    capped = tiny_model(tiny, text={**hot, "attn_logit_softcapping": 0.5})
    free = tiny_model(tiny, text={**hot, "attn_logit_softcapping": 50.0})
    assert capped.config.text_config._attn_implementation == "eager"
    inputs = tiny_inputs(tiny, 1)
    with torch.no_grad():
        one, other = capped(**inputs).logits, free(**inputs).logits
    assert (one - other).abs().max() > 1e-2


# -------------------------------------------------------------------- files


def test_saving_and_loading_changes_nothing(model, s0_inputs, s0_outputs, tmp_path):
    model.save_pretrained(tmp_path)
    again, info = SpatialVLAForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(again.eval()(**s0_inputs).logits, s0_outputs.logits)
    assert again.config.action_token_counts == [4096, 4096, 2]
    assert again.config.action_chunk_size == 4


def test_auto_classes_when_transformers_came_later(golden_checkpoint):
    """conftest.py imports spatialvla_ft first; tests/training tries the other order."""
    from transformers import AutoConfig, AutoModel, AutoProcessor

    names = [
        type(auto.from_pretrained(golden_checkpoint, trust_remote_code=False)).__name__
        for auto in (AutoConfig, AutoModel, AutoProcessor)
    ]
    wanted = ["SpatialVLAConfig", "SpatialVLAForConditionalGeneration", "SpatialVLAProcessor"]
    assert names == wanted


def test_a_patch_resolution_that_does_not_divide_is_refused(tiny, golden_checkpoint):
    with pytest.raises(ValueError, match=r"4 does not divide the patch size 14; use one of \[1, 2"):
        SpatialVLAForConditionalGeneration.from_pretrained(golden_checkpoint, ego3d_patch_reso=4)
    with pytest.raises(ValueError, match=r"3 does not divide the patch size 8; use one of \[1, 2"):
        tiny_model(tiny, ego3d_patch_reso=3)


# -------------------------------------------------------------------- loss


def test_loss_from_label_rows_full_logits_and_numpy(tiny, small):
    inputs = training(tiny)
    with torch.no_grad():
        full = small(**inputs)
        rows = small(**inputs, logits_to_keep="labels")
    labels = inputs["labels"].numpy()
    logits = full.logits.double().numpy()
    terms, kept = [], []
    for b in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            if labels[b, t] != -100:
                row = logits[b, t - 1]
                top = row.max()
                terms.append(math.log(np.exp(row - top).sum()) + top - row[labels[b, t]])
                kept.append(row)
    assert len(terms) == 2 * (3 * 2 + 1)
    assert float(full.loss) == pytest.approx(np.mean(terms), abs=1e-5)
    assert float(rows.loss) == pytest.approx(np.mean(terms), abs=1e-5)
    np.testing.assert_allclose(rows.logits, np.stack(kept), atol=1e-5)
    with torch.no_grad():
        last = small(**inputs, logits_to_keep=3).logits
    torch.testing.assert_close(last, full.logits[:, -3:], rtol=0, atol=1e-5)


def test_nothing_to_learn_is_an_error(tiny, small):
    inputs = training(tiny)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    with pytest.raises(ValueError, match="all labels are -100: there is nothing to learn"):
        small(**inputs)


def test_the_gradient_reaches_every_trainable_weight_that_acts(tiny):
    model = tiny_model(tiny, tie_action_head=True).train()
    model(**training(tiny), logits_to_keep="labels").loss.backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == set()
    # The tail of embed_tokens is shadowed by the spatial table, so it gets nothing.
    begin = model.config.action_token_begin_idx
    assert not model.language_model.model.embed_tokens.weight.grad[begin:].any()
    assert not model.language_model.lm_head.weight.grad[begin:].any()


# -------------------------------------------------------------------- decoding


@pytest.mark.parametrize("tied", [False, True])
def test_predicted_ids_keep_to_their_type_and_to_their_sample(tiny, tied):
    model = tiny_model(tiny, tie_action_head=tied)
    batch = tiny_inputs(tiny, 3)
    ids = model.predict_action(batch)
    assert ids.shape == (3, 6)
    translation, rotation = 4 * 6 * 3, 5 * 4 * 3
    relative = ids - tiny.action_tokenizer.begin_id
    bounds = [(0, translation), (translation, translation + rotation)]
    bounds.append((translation + rotation, translation + rotation + 2))
    for step, (low, high) in enumerate(bounds * 2):
        assert bool(((relative[:, step] >= low) & (relative[:, step] < high)).all()), step
    for i in range(3):
        assert torch.equal(model.predict_action(row_of(batch, i))[0], ids[i])


def test_predicted_ids_against_a_loop_without_cache(tiny, small):
    batch = row_of(tiny_inputs(tiny, 1), 0)
    ids = small.predict_action(batch)[0]
    begin = tiny.action_tokenizer.begin_id
    ends = np.cumsum([0, 72, 60, 2])
    for step, token in enumerate(ids.tolist()):
        with torch.no_grad():
            logits = small(**batch).logits[0, -1]
        low, high = begin + ends[step % 3], begin + ends[step % 3 + 1]
        assert int(logits[low:high].argmax()) + low == token
        grown = {"input_ids": token, "attention_mask": 1, "token_type_ids": 1}
        for name, value in grown.items():
            batch[name] = torch.cat((batch[name], torch.tensor([[value]])), dim=1)


def test_predict_action_refuses_actions_and_right_pads(tiny, small):
    with pytest.raises(ValueError, match="already holds actions"):
        small.predict_action(training(tiny))
    with pytest.raises(ValueError, match="padded on the left; this batch is not"):
        small.predict_action(tiny_inputs(tiny, 2, padding_side="right"))


# -------------------------------------------------------------------- depth


def test_zoedepth_stays_in_evaluation(golden_checkpoint, s0_inputs, s0_outputs):
    model = SpatialVLAForConditionalGeneration.from_pretrained(
        golden_checkpoint, dtype=torch.float32
    )
    adapted = attach_lora(model, rank=1)
    for training_model in (model.train(), adapted.train()):
        assert training_model.training
        assert model.vision_tower.training
        assert not [n for n, m in model.vision_zoe_model.named_modules() if m.training]
    depth = model.depth_of(s0_inputs["pixel_values"])
    assert torch.equal(depth, s0_outputs.debug["depth"])
    assert not [n for n, p in model.vision_zoe_model.named_parameters() if p.requires_grad]


def test_depth_of_a_picture_is_its_own(model, processor, pictures):
    pixels = processor(images=pictures, text="x", assume_intrinsics="default")["pixel_values"]
    noise = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    together = model.depth_of(torch.cat((pixels, noise)))
    for i, one in enumerate((*pixels, noise[0])):
        torch.testing.assert_close(together[i], model.depth_of(one[None])[0], rtol=0, atol=1e-5)


def test_depth_with_holes_takes_the_mean_of_what_is_known():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 2, (2, 12, 12)).astype(np.float32)
    depth[0, :3, :3] = 0  # a whole cell
    depth[0, 4, 7] = np.nan
    depth[1, 10, 2:5] = np.inf
    depth[1, 11, 11] = -1
    got = pool_depth(torch.from_numpy(depth), 4).numpy()
    for b in range(2):
        known = np.sort(depth[b][np.isfinite(depth[b]) & (depth[b] > 0)])
        median = known[(len(known) - 1) // 2]
        for i in range(4):
            for j in range(4):
                cell = depth[b, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
                valid = cell[np.isfinite(cell) & (cell > 0)]
                wanted = valid.mean() if valid.size else median
                assert got[b, i, j] == pytest.approx(wanted, abs=1e-5), (b, i, j)
    with pytest.raises(ValueError, match=r"image\(s\) \[1\] of the batch has no valid pixel"):
        pool_depth(torch.tensor([[[1.0, 1], [1, 1]], [[0, np.nan], [0, -1]]]), 1)


def test_a_model_without_estimator_asks_for_depth_and_every_model_for_k(tiny, small):
    inputs = tiny_inputs(tiny, 1)
    without_depth = {k: v for k, v in inputs.items() if k != "depth"}
    with pytest.raises(ValueError, match=r"no depth estimator .* pass depth \(B, 32, 32\)"):
        small(**without_depth)
    without_k = {k: v for k, v in inputs.items() if k != "intrinsics"}
    with pytest.raises(ValueError, match=r"needs the camera's intrinsics: pass intrinsics \(B, 3"):
        small(**without_k)
    twice = {
        name: tensor.repeat(2, *[1] * (tensor.ndim - 1))
        for name, tensor in inputs.items()
        if name in ("pixel_values", "intrinsics", "depth")
    }
    with pytest.raises(
        ValueError, match="holds 16 <image> tokens, the observations make 32 features"
    ):
        small(**{**inputs, **twice})


def test_a_released_checkpoint_can_take_the_sensor_s_depth(
    golden_checkpoint, s0_inputs, s0_outputs, tmp_path
):
    model = SpatialVLAForConditionalGeneration.from_pretrained(
        golden_checkpoint, dtype=torch.float32, depth_source="sensor"
    ).eval()
    assert not hasattr(model, "vision_zoe_model")
    with pytest.raises(ValueError, match="no depth estimator"):
        model(**s0_inputs)
    with torch.no_grad():
        given = model(**s0_inputs, depth=s0_outputs.debug["depth"])
        torch.testing.assert_close(given.logits, s0_outputs.logits, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.vision_zoe_config is None


# -------------------------------------------------------------------- geometry


def test_patch_points_against_a_loop():
    """An asymmetric K with skew, depth that is different in every pixel, 3 points a side."""
    size, patch, reso = 18, 6, 3
    rng = np.random.default_rng(1)
    depth = rng.uniform(0.4, 3, (2, size, size)).astype(np.float32)
    K = np.array([[[21, 0.7, 8.2], [0, 33, 11.4], [0, 0, 1]], [[40, 0, 3], [0, 17, 9], [0, 0, 1]]])
    got = patch_points(torch.from_numpy(depth), torch.tensor(K), size, patch, reso).numpy()
    cell = patch // reso
    assert got.shape == (2, 9, 27)
    for b in range(2):
        (fx, skew, cx), (_, fy, cy), _ = K[b]
        for row in range(3):
            for column in range(3):
                points = got[b, row * 3 + column].reshape(reso, reso, 3)
                for i in range(reso):
                    for j in range(reso):
                        top, left = row * patch + i * cell, column * patch + j * cell
                        z = depth[b, top : top + cell, left : left + cell].mean()
                        u, v = left + cell / 2, top + cell / 2
                        y = (v - cy) / fy
                        wanted = [(u - cx - skew * y) / fx * z, y * z, z]
                        np.testing.assert_allclose(points[i, j], wanted, rtol=2e-5, atol=1e-6)


def test_frequency_encoding_against_a_loop():
    x = np.random.default_rng(2).normal(size=(2, 3))
    got = frequency_encoding(torch.from_numpy(x), 4)
    assert got.dtype == torch.float32
    for b in range(2):
        wanted = []
        for value in x[b]:
            wanted += [value]
            wanted += [math.sin(2**k * value) for k in range(4)]
            wanted += [math.cos(2**k * value) for k in range(4)]
        np.testing.assert_allclose(got[b], wanted, atol=1e-5)


def test_geometry_stays_in_float32_under_bfloat16(tiny):
    """Points of a bfloat16 model are those of a float32 one, bit for bit."""
    inputs = tiny_inputs(tiny, 1)
    points = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model(tiny).to(dtype)
        with torch.no_grad():
            points.append(model(**inputs, debug_outputs=True).debug["xyz"])
        assert model.predict_action(inputs).shape == (1, 6)
    assert points[1].dtype == torch.float32
    assert torch.equal(*points)
