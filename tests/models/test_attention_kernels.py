"""Kernels of the text tower: sdpa nowhere, flex where it runs, and one mask for both."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from tiny_world import row_of, tiny_inputs, tiny_model, tiny_processor
from torch.nn.attention.flex_attention import create_mask

from spatialvla_ft import SpatialVLAConfig, SpatialVLAForConditionalGeneration
from spatialvla_ft.models.attention import attention_masks, text_kernel

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "_compile flag on create_block_mask",
        "flex_attention called without",
        "`torch.jit.script",
    )
]
PREFIXES = pytest.mark.parametrize("prefix", ["bidirectional", "causal"])
SDPA = r"sdpa' is refused .* cannot apply Gemma 2's soft cap"
WAYS_TO_ASK = [
    "sdpa",
    {"text_config": "sdpa"},
    {"": "sdpa"},
    {"text_config": {"": "sdpa"}},
    {"text_config": "sdpa", "": "eager"},
]


@pytest.fixture(scope="module")
def tiny():
    return tiny_processor()


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model(tiny).save_pretrained(folder)
    return folder


# -------------------------------------------------------------------- sdpa


@pytest.mark.parametrize("asked", WAYS_TO_ASK)
def test_sdpa_is_refused_when_loading_and_when_switching(tiny, checkpoint, asked):
    with pytest.raises(ValueError, match=SDPA):
        SpatialVLAForConditionalGeneration.from_pretrained(checkpoint, attn_implementation=asked)
    with pytest.raises(ValueError, match=SDPA):
        tiny_model(tiny).set_attn_implementation(asked)


def test_sdpa_is_refused_in_a_config_object(tiny, checkpoint):
    config = SpatialVLAConfig.from_pretrained(checkpoint)
    config.text_config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=SDPA):
        SpatialVLAForConditionalGeneration(config)
    with pytest.raises(ValueError, match=SDPA):
        SpatialVLAForConditionalGeneration.from_pretrained(checkpoint, config=config)
    config = SpatialVLAConfig.from_pretrained(checkpoint, attn_implementation="sdpa")
    with pytest.raises(ValueError, match=SDPA):
        SpatialVLAForConditionalGeneration(config)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_file_cannot_bring_sdpa_in(checkpoint, tmp_path, tiny, key):
    folder = shutil.copytree(checkpoint, tmp_path / "asks")
    saved = json.loads((folder / "config.json").read_text())
    saved["text_config"][key] = "sdpa"
    (folder / "config.json").write_text(json.dumps(saved))
    try:
        model = SpatialVLAForConditionalGeneration.from_pretrained(folder)
    except ValueError as error:
        assert "sdpa' is refused" in str(error)  # noqa: PT017 - either refused or ignored
    else:
        assert model.language_model.config._attn_implementation == "eager"


def test_sdpa_set_behind_the_back_is_refused_at_the_next_pass(tiny):
    model = tiny_model(tiny)
    model.language_model.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=SDPA):
        model(**tiny_inputs(tiny, 1))
    with pytest.raises(ValueError, match=SDPA):
        model.predict_action(tiny_inputs(tiny, 1))
    with pytest.raises(ValueError, match=SDPA):
        model.generate(**tiny_inputs(tiny, 1), max_new_tokens=2)


def test_other_kernels_are_refused_by_name(tiny):
    with pytest.raises(ValueError, match=r"'flash_attention_2' is not known .* \['eager', 'flex"):
        tiny_model(tiny).set_attn_implementation("flash_attention_2")


def test_what_an_attn_implementation_says_of_the_text_tower():
    assert text_kernel(None) is None
    assert text_kernel({"vision_config": "sdpa"}) is None
    assert text_kernel({"vision_config": "sdpa", "text_config": "eager"}) == "eager"
    assert text_kernel({"": "sdpa", "text_config": {"": "flex_attention"}}) == "flex_attention"


def test_the_vision_tower_may_run_sdpa(checkpoint, tiny):
    inputs = tiny_inputs(tiny, 1)
    logits = []
    for kernel in ("eager", "sdpa"):
        model = SpatialVLAForConditionalGeneration.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            attn_implementation={"text_config": "eager", "vision_config": kernel},
        )
        assert model.vision_tower.config._attn_implementation == kernel
        with torch.no_grad():
            logits.append(model.eval()(**inputs).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)


# -------------------------------------------------------------------- flex


@pytest.fixture
def uncompiled():
    """Run flex attention without its compiler, which takes most of a minute on a CPU."""
    with torch.compiler.set_stance("force_eager"):
        yield


def pair(tiny, prefix, device="cpu", **config):
    """The same weights behind eager and behind flex attention; scores so large that caps act."""
    hot = {"initializer_range": 1.0, "attn_logit_softcapping": 2.0}
    models = [tiny_model(tiny, prefix_mask=prefix, text=hot, **config) for _ in range(2)]
    models[1].set_attn_implementation("flex_attention")
    assert models[1].language_model.config._attn_implementation == "flex_attention"
    return [model.to(device) for model in models]


def difference(models, inputs):
    with torch.no_grad():
        one, other = (
            model(**{k: v for k, v in inputs.items() if k != "actions"}).logits for model in models
        )
    real = inputs["attention_mask"].bool()
    return float((one - other)[real].abs().max())


@PREFIXES
@pytest.mark.parametrize("with_actions", [True, False])
def test_flex_equals_eager_with_pads(tiny, uncompiled, prefix, with_actions):
    inputs = tiny_inputs(tiny, 3, with_actions=with_actions)
    assert not bool(inputs["attention_mask"].all())
    assert difference(pair(tiny, prefix), inputs) < 1e-4


@PREFIXES
def test_flex_decodes_as_eager_does(tiny, uncompiled, prefix):
    eager, flex = pair(tiny, prefix)
    inputs = tiny_inputs(tiny, 3)
    assert torch.equal(eager.predict_action(inputs), flex.predict_action(inputs))


def test_the_released_mask_reaches_flex_too(tiny, uncompiled):
    inputs = tiny_inputs(tiny, 2, with_actions=True)
    assert difference(pair(tiny, "bidirectional", compatibility="released"), inputs) < 1e-4


@PREFIXES
@pytest.mark.parametrize("with_actions", [True, False])
@pytest.mark.parametrize("compatibility", ["ours", "released"])
def test_block_masks_are_the_eager_masks(tiny, uncompiled, prefix, with_actions, compatibility):
    """Every (query, key) of a padded batch; the sliding window of 5 is reached."""
    inputs = tiny_inputs(tiny, 2, with_actions=with_actions)
    window = {"sliding_window": 5}
    model = tiny_model(tiny, prefix_mask=prefix, text=window, compatibility=compatibility)
    ids, types, real = (inputs[n] for n in ("input_ids", "token_type_ids", "attention_mask"))
    embeds = torch.zeros(*ids.shape, 32)
    masks = {}
    for kernel in ("eager", "flex_attention"):
        model.language_model.config._attn_implementation = kernel
        masks[kernel] = attention_masks(model.config, embeds, real, types, None)
    for layer in ("full_attention", "sliding_attention"):
        allowed = masks["eager"][layer][:, 0] == 0
        block = masks["flex_attention"][layer]
        count = ids.shape[1]
        dense = create_mask(block.mask_mod, 2, 1, count, count, device="cpu")[:, 0]
        # What a pad looks at is nobody's business where nobody looks at pads.
        rows = real.bool() if compatibility == "ours" else torch.ones_like(real, dtype=torch.bool)
        assert torch.equal(dense[rows], allowed[rows]), layer
        assert not bool(allowed[rows].all())


def test_training_with_flex_on_the_cpu_is_refused_with_the_cure(tiny):
    model = pair(tiny, "bidirectional")[1].train()
    inputs = tiny_inputs(tiny, 1, with_actions=True)
    inputs.pop("actions")
    with pytest.raises(ValueError, match=r"no backward on the CPU: train with .*'eager'"):
        model(**inputs)


@pytest.mark.slow
@PREFIXES
def test_compiled_flex_equals_eager(tiny, prefix):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert difference(pair(tiny, prefix), tiny_inputs(tiny, 2, with_actions=True)) < 1e-4


@pytest.mark.gpu
@PREFIXES
def test_flex_trains_as_eager_does_on_a_gpu(tiny, prefix):
    """Not proven anywhere yet: loss and gradients of a padded batch, through the compiled kernel.

    Heads are 16 wide, the smallest that the kernel takes on a GPU.
    """
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: flex attention has no backward on the CPU")
    inputs = tiny_inputs(tiny, 3, with_actions=True)
    inputs.pop("actions")
    inputs = {name: tensor.cuda() for name, tensor in inputs.items()}
    models = [
        tiny_model(tiny, prefix_mask=prefix, text={"head_dim": 16}).cuda().train() for _ in range(2)
    ]
    models[1].set_attn_implementation("flex_attention")
    losses = [model(**inputs, logits_to_keep="labels").loss for model in models]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-4)
    for loss in losses:
        loss.backward()
    for (name, one), (_, other) in zip(
        *(model.named_parameters() for model in models), strict=True
    ):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)


# -------------------------------------------------------------------- batches


def mixed_batch(tiny, **call):
    """Three prompts of three lengths, from two cameras."""
    import numpy as np
    from tiny_world import actions, depth_map, picture

    cameras = [np.array([[60.0, 0, 33], [0, 50, 21], [0, 0, 1]]), np.diag([90.0, 75, 1])]
    cameras[1][:2, 2] = 20, 15
    sizes = [(40, 64), (30, 50), (30, 50)]
    texts = ["go", "pick up the red block", "püt it down, slowly and carefully"]
    with_actions = call.pop("with_actions")
    return dict(
        tiny(
            images=[picture(i, *size) for i, size in enumerate(sizes)],
            text=texts,
            intrinsic=[cameras[0], cameras[1], cameras[1]],
            depth=[depth_map(i, *size) for i, size in enumerate(sizes)],
            suffix_actions=np.stack([actions(i) for i in range(3)]) if with_actions else None,
            **call,
        )
    )


@PREFIXES
def test_a_padded_batch_of_two_robots_trains_as_its_samples(tiny, prefix):
    """Logits, the loss as a mean over labels, and every gradient."""
    batch = mixed_batch(tiny, with_actions=True)
    assert len(set(batch["attention_mask"].sum(-1).tolist())) == 3
    batch.pop("actions")
    together, alone = (tiny_model(tiny, prefix_mask=prefix) for _ in range(2))
    loss = together(**batch, logits_to_keep="labels").loss
    loss.backward()
    parts = []
    for i in range(3):
        one = row_of(batch, i)
        assert bool(one["attention_mask"].all())
        part = alone(**one).loss
        (part / 3).backward()  # every sample has as many labels
        parts.append(float(part.detach()))
    assert float(loss.detach()) == pytest.approx(sum(parts) / 3, abs=1e-5)
    for (name, p), (_, q) in zip(
        together.named_parameters(), alone.named_parameters(), strict=True
    ):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            scale = max(float(q.grad.abs().max()), 1e-3)
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-4 * scale, msg=name)


@PREFIXES
def test_a_left_padded_batch_of_two_robots_decodes_as_its_samples(tiny, prefix):
    """`predict_action`, `generate`, and actions in each robot's own units."""
    from tiny_world import NAME, statistics

    robots = tiny_processor()
    other = statistics()
    other["action"]["q99"] = [3 * value for value in other["action"]["q99"]]
    robots.statistics["other/1.0.0"] = other
    keys = [NAME, "other/1.0.0", "other/1.0.0"]
    model = tiny_model(robots, prefix_mask=prefix)
    batch = mixed_batch(robots, with_actions=False)
    assert bool(batch["attention_mask"][:, -1].all())
    ids = model.predict_action(batch)
    free = model.generate(**batch, max_new_tokens=6, do_sample=False)
    free = free[:, batch["input_ids"].shape[1] :]
    decoded = robots.decode_actions(ids, unnorm_key=keys)["actions"]
    for i in range(3):
        one = row_of(batch, i)
        assert torch.equal(model.predict_action(one)[0], ids[i])
        alone = model.generate(**one, max_new_tokens=6, do_sample=False)
        alone = alone[0, one["input_ids"].shape[1] :]
        assert torch.equal(free[i, : len(alone)], alone)
        again = robots.decode_actions(ids[i], unnorm_key=keys[i])["actions"][0]
        assert (decoded[i] == again).all()
