"""A fresh base from a PaliGemma 2 and a ZoeDepth of published form, beside the library's."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny_paligemma
import torch
import transformers
from packaging.version import Version
from released_keys import check_released
from safetensors.torch import load_file, save_file
from tiny_world import BINS, picture
from transformers import (
    AutoTokenizer,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    ZoeDepthForDepthEstimation,
)

from spatialvla_ft import SpatialVLAForConditionalGeneration, SpatialVLAProcessor
from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.models.action_tables import text_like_table, token_features
from spatialvla_ft.models.init_base import TEXT_EMBEDDINGS, assemble_base

GRID = ActionGrid.uniform(bins=BINS)
K = [[60, 0, 33], [0, 50, 21], [0, 0, 1]]
# 5.17's PaliGemma forgets Gemma 2's soft cap on the logits; later ones apply it.
CAPS = Version(transformers.__version__) >= Version("5.23")


@pytest.fixture(scope="session")
def zoedepth(tmp_path_factory):
    return tiny_paligemma.write_zoedepth(tmp_path_factory.mktemp("zoedepth"))


@pytest.fixture(scope="session")
def paligemma(tmp_path_factory):
    return tiny_paligemma.write_paligemma(tmp_path_factory.mktemp("paligemma"))


@pytest.fixture(scope="session")
def base(paligemma, zoedepth):
    return assemble_base(paligemma, zoedepth, GRID, dtype=torch.float32)


def library(folder):
    model, info = PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def library_logits(model, ids, pixels):
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            pixel_values=None if pixels is None else (pixels - 0.5) / 0.5,
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids),
        ).logits
    return logits if CAPS else 30 * torch.tanh(logits / 30)


def compare(base, folder, seed=0):
    """Largest difference over the text vocabulary, after checking that it is a real comparison."""
    model, processor = base
    inputs = processor(images=picture(seed), text="pick up the red block", intrinsic=K)
    wanted = library_logits(library(folder), inputs["input_ids"], inputs["pixel_values"])
    with torch.no_grad():
        got = model(**inputs).logits
    begin = model.config.action_token_begin_idx
    assert wanted[..., :begin].std() > 0.3
    assert got.shape[-1] == begin + GRID.total
    return float((got[..., :begin] - wanted[..., :begin]).abs().max())


# -------------------------------------------------------------------- the written form


def test_the_tiny_checkpoints_have_the_published_names(paligemma, zoedepth, golden_dir):
    """The golden checkpoint has real key names of the same towers."""
    index = json.loads((paligemma / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    golden = json.loads((golden_dir / "checkpoint_keys.json").read_text())
    parts = ("vision_tower.", "multi_modal_projector.", "language_model.")
    zoe = {f"vision_zoe_model.{name}" for name in load_file(zoedepth / "model.safetensors")}
    assert zoe == {name for name in golden if name.startswith("vision_zoe_model.")}
    known = {name for name in golden if name.startswith(parts)} - {"language_model.lm_head.weight"}
    for deeper in ("language_model.model.layers.2.", "vision_model.encoder.layers.1."):
        known = {name for name in known if deeper not in name}
    assert set(index) == known
    config = json.loads((paligemma / "config.json").read_text())
    assert config["text_config"]["vocab_size"] == 1472  # 1461 tokens, padded
    assert all(
        tensor.dtype == torch.bfloat16
        for tensor in load_file(paligemma / index["language_model.model.norm.weight"]).values()
    )


# -------------------------------------------------------------------- the same model


@pytest.mark.parametrize("seed", [0, 3])
def test_step_zero_is_the_library_s_paligemma(base, paligemma, seed):
    assert compare(base, paligemma, seed) < 1e-4


def test_a_prompt_without_picture_is_the_library_s_too(base, paligemma):
    model, processor = base
    ids = torch.tensor([processor.tokenizer("pick it up\n").input_ids])
    with torch.no_grad():
        got = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    wanted = library_logits(library(paligemma), ids, None)
    torch.testing.assert_close(got[..., :1461], wanted[..., :1461], rtol=0, atol=1e-4)


def test_the_prompt_is_the_library_s_prompt(base, paligemma):
    _, processor = base
    ours = processor(images=picture(0), text="put it down ü", intrinsic=K)["input_ids"]
    theirs = PaliGemmaProcessor.from_pretrained(paligemma)(
        images=picture(0), text="<image>put it down ü", return_tensors="np"
    )["input_ids"]
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize(("side", "tokens", "window"), [(448, 1024, 4096), (224, 256, 40)])
def test_larger_pictures_and_a_prefix_beyond_the_window(zoedepth, tmp_path, side, tokens, window):
    """896 pixels make 4096 image tokens, more than the sliding window: 256 of 40 are the same."""
    folder = tiny_paligemma.write_paligemma(tmp_path / "p", side, sliding_window=window)
    made = assemble_base(folder, zoedepth, GRID, image_size=side, dtype=torch.float32)
    model, processor = made
    assert processor.image_seq_length == model.config.num_image_tokens == tokens
    assert processor.image_size == side
    assert compare(made, folder) < 1e-4


def test_decoding_beyond_the_window_is_the_same_without_a_cache(zoedepth, tmp_path):
    folder = tiny_paligemma.write_paligemma(tmp_path / "p", sliding_window=40)
    model, processor = assemble_base(folder, zoedepth, GRID, dtype=torch.float32)
    batch = dict(processor(images=picture(1), text="pick up", intrinsic=K))
    ids = model.predict_action(batch)[0, :4]
    begin, counts = processor.action_tokenizer.begin_id, model.config.action_token_counts
    ends = np.cumsum([0, *counts])
    for step, token in enumerate(ids.tolist()):
        with torch.no_grad():
            logits = model(**batch).logits[0, -1]
        low, high = begin + ends[step % 3], begin + ends[step % 3 + 1]
        assert int(logits[low:high].argmax()) + low == token
        grown = {"input_ids": token, "attention_mask": 1, "token_type_ids": 1}
        for name, value in grown.items():
            batch[name] = torch.cat((batch[name], torch.tensor([[value]])), dim=1)


def test_896_pixels(zoedepth, tmp_path):
    """Sizes, and Ego3D's grid of points; the forward pass is the slow test's."""
    folder = tiny_paligemma.write_paligemma(tmp_path / "p", 896)
    model, processor = assemble_base(folder, zoedepth, GRID, image_size=896)
    assert processor.image_seq_length == model.config.num_image_tokens == 4096
    assert model.vision_tower.embeddings.position_embedding.weight.shape == (4096, 24)
    pixels = torch.rand(1, 3, 896, 896)
    debug = {}
    depth = torch.ones(1, 896, 896)
    features = model.get_image_features(pixels, torch.eye(3)[None] * 800, depth, debug=debug)
    assert features.shape == (1, 4096, 32)
    assert debug["xyz"].shape == (1, 4096, 12)
    processor.save_pretrained(tmp_path / "saved")
    assert SpatialVLAProcessor.from_pretrained(tmp_path / "saved").image_seq_length == 4096


@pytest.mark.slow
def test_896_pixels_are_the_library_s(zoedepth, tmp_path):
    folder = tiny_paligemma.write_paligemma(tmp_path / "p", 896, num_hidden_layers=2)
    assert compare(assemble_base(folder, zoedepth, GRID, dtype=torch.float32), folder) < 1e-4


# -------------------------------------------------------------------- what is new


def test_the_vocabulary_loses_its_padding_and_gains_the_grid(base, paligemma):
    model, processor = base
    words = library(paligemma).get_input_embeddings().weight
    table = model.get_input_embeddings().weight
    head = model.language_model.lm_head.weight
    assert processor.action_tokenizer.begin_id == processor.image_token_id + 1 == 1461
    assert processor.tokenizer.convert_ids_to_tokens(1461) == "<ACTION00000>"
    assert table.shape == head.shape == (1461 + GRID.total, 32)
    assert torch.equal(table[:1461], words[:1461])
    assert torch.equal(head, table)
    assert head.data_ptr() != table.data_ptr()
    assert torch.equal(table[1461:], model.spatial_embed_tokens.weight)
    assert not bool((table == 7.0).any())
    assert model.config.tie_word_embeddings is False
    assert model.config.text_config.tie_word_embeddings is False
    assert not model.config.text_config.use_bidirectional_attention


def test_action_rows_resemble_text_rows_and_keep_their_order():
    """Against NumPy's mean and covariance of anisotropic text rows."""
    rng = np.random.default_rng(0)
    spread = np.geomspace(3, 0.03, 24)
    text = rng.normal(0.5, 1, (20000, 24)) * spread
    grid = ActionGrid.uniform(bins=(8, 8, 4, 6, 6, 6, 2))
    table = text_like_table(torch.from_numpy(text).float(), grid, seed=1).double().numpy()
    mean = text.mean(0)
    off = table - mean
    for start, stop in ((0, 256), (256, 472)):
        total = (off[start:stop] ** 2).sum(1).mean()
        assert total == pytest.approx(text.var(0).sum(), rel=1e-3)
        share = (off[start:stop] ** 2).mean(0) / total
        wanted = text.var(0) / text.var(0).sum()
        assert np.corrcoef(np.log(share), np.log(wanted))[0, 1] > 0.9
    centres = grid.decode(np.column_stack([np.arange(256), np.full(256, 256), np.full(256, 472)]))
    apart = np.linalg.norm(centres[:, None, :3] - centres[None, :, :3], axis=-1)
    rows = np.linalg.norm(table[:256, None] - table[None, :256], axis=-1)
    pairs = np.triu_indices(256, 1)
    near, far = apart[pairs] < 0.3, apart[pairs] > 1.2
    assert rows[pairs][near].mean() < 0.7 * rows[pairs][far].mean()
    assert len(np.unique(table.round(6), axis=0)) == grid.total
    other = text_like_table(torch.from_numpy(text).float(), grid, seed=2)
    assert not torch.equal(torch.from_numpy(table).float(), other)


def test_features_are_of_what_tokens_decode_to():
    translation, rotation, gripper = token_features(GRID, num_freqs=1)
    ids = np.array([[37, GRID.offsets[1] + 23, GRID.offsets[2] + 1]])
    decoded = GRID.decode(ids)[0] * np.pi
    np.testing.assert_allclose(translation[37, :3:3], decoded[:1], rtol=1e-5)
    for features, values in ((translation[37], decoded[:3]), (rotation[23], decoded[3:6])):
        triples = np.stack([values, np.sin(values), np.cos(values)], axis=1).ravel()
        np.testing.assert_allclose(features, triples, rtol=1e-4, atol=1e-6)
    assert gripper.shape == (2, 3)


def test_ego3d_adds_nothing_and_learns_at_once(base):
    model, processor = base
    inputs = processor(
        images=picture(0), text="pick", intrinsic=K, suffix_actions=np.full((2, 7), 0.3)
    )
    inputs.pop("actions")
    out = model(**inputs, debug_outputs=True)
    assert not out.debug["ego3d"].any()
    first, norm, _, last = model.position_embedding_3d.position_embedding_head
    assert bool(torch.isfinite(first.weight).all())
    assert first.weight.std() > 0.01
    assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    out.loss.backward()
    assert bool(last.weight.grad.any())
    assert bool(last.bias.grad.any())
    model.zero_grad(set_to_none=True)


def test_zoedepth_is_the_given_one(base, zoedepth):
    model, _ = base
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    wanted = model.depth_of(pixels)
    own = ZoeDepthForDepthEstimation.from_pretrained(zoedepth).eval()
    for name, tensor in own.state_dict().items():
        assert torch.equal(model.vision_zoe_model.state_dict()[name], tensor), name
    assert wanted.shape == (2, 224, 224)
    assert wanted.std() > 0
    assert not any(p.requires_grad for p in model.vision_zoe_model.parameters())


def test_a_base_is_saved_and_loaded_and_is_the_same_twice(base, paligemma, zoedepth, tmp_path):
    model, processor = base
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    check_released(tmp_path)
    again = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    twin, _ = assemble_base(paligemma, zoedepth, GRID, dtype=torch.float32)
    other, _ = assemble_base(paligemma, zoedepth, GRID, seed=1, dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
        assert torch.equal(twin.state_dict()[name], tensor), name
    differ = {n for n, t in model.state_dict().items() if not torch.equal(other.state_dict()[n], t)}
    assert {name.split(".")[0] for name in differ} == {
        "language_model",
        "position_embedding_3d",
        "spatial_embed_tokens",
    }
    assert again.config.frozen_parameters == [TEXT_EMBEDDINGS]
    inputs = SpatialVLAProcessor.from_pretrained(tmp_path)(
        images=picture(0), text="pick", intrinsic=K
    )
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, model(**inputs).logits)


# -------------------------------------------------------------------- refusals


@pytest.fixture
def copied(paligemma, tmp_path):
    return shutil.copytree(paligemma, tmp_path / "copy")


def edit(file, **fields):
    content = json.loads(file.read_text())
    for key, value in fields.items():
        inner = content
        *path, last = key.split("__")
        for name in path:
            inner = inner[name]
        inner[last] = value
    file.write_text(json.dumps(content))


def assemble(paligemma, zoedepth, **options):
    return assemble_base(paligemma, zoedepth, GRID, **options)


def test_a_mask_that_the_tokenizer_class_appends_takes_no_row(zoedepth, copied):
    """Without <mask> in its files, GemmaTokenizer puts one after <image>."""
    tokens = tiny_paligemma.write_tokenizer(copied, mask_in_vocabulary=False)
    assert AutoTokenizer.from_pretrained(copied).convert_tokens_to_ids("<mask>") == tokens
    edit(copied / "config.json", image_token_index=tokens - 1)
    _, processor = assemble(copied, zoedepth)
    assert processor.action_tokenizer.begin_id == tokens


def test_odd_vocabularies_are_refused_with_what_is_odd(zoedepth, copied):
    edit(copied / "config.json", image_token_index=1459)
    with pytest.raises(ValueError, match="has id 1460 in the tokenizer and 1459 in config"):
        assemble(copied, zoedepth)
    edit(copied / "config.json", image_token_index=1460, text_config__vocab_size=1456)
    with pytest.raises(ValueError, match="tokenizer has 1461 tokens, the weights 1456 rows"):
        assemble(copied, zoedepth)
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    added = tokenizer["added_tokens"]
    tokenizer["added_tokens"] = [*added, {**added[-1], "id": 1461, "content": "<robot>"}]
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        ValueError, match=r"must be the tokenizer's last token, .* <robot> \(1461\)"
    ):
        assemble(copied, zoedepth)
    newline = tokenizer["model"]["vocab"]["\n"]
    tokenizer["model"]["vocab"]["\n"] = 5000
    tokenizer["added_tokens"] = added
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=f"but 1 of them have no token: {newline};"):
        assemble(copied, zoedepth)
    tiny_paligemma.write_tokenizer(copied, image_token=False)
    with pytest.raises(ValueError, match="the tokenizer has no <image>"):
        assemble(copied, zoedepth)


def test_other_checkpoints_are_refused_by_name(paligemma, zoedepth, copied, tmp_path):
    with pytest.raises(ValueError, match="type zoedepth, not a PaliGemma 2"):
        assemble(zoedepth, zoedepth)
    with pytest.raises(ValueError, match="type paligemma, not a ZoeDepth"):
        assemble(paligemma, paligemma)
    with pytest.raises(ValueError, match="takes pictures of 224 pixels, not of 448"):
        assemble(paligemma, zoedepth, image_size=448)
    with pytest.raises(ValueError, match=r"is no folder; give .* as --paligemma"):
        assemble(tmp_path / "nowhere", zoedepth)
    edit(copied / "config.json", text_config__model_type="gemma")
    with pytest.raises(ValueError, match="type paligemma with gemma, not a PaliGemma 2"):
        assemble(copied, zoedepth)


def test_missing_weights_are_refused_by_name(zoedepth, copied):
    index = json.loads((copied / "model.safetensors.index.json").read_text())
    name = "vision_tower.vision_model.post_layernorm.weight"
    shard = copied / index["weight_map"].pop(name)
    weights = load_file(shard)
    del weights[name]
    save_file(weights, shard, {"format": "pt"})
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"1 weights are missing: .*post_layernorm.weight"):
        assemble(copied, zoedepth)
