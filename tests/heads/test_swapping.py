"""Heads in a whole model: which one a checkpoint gets, and what its placeholders see."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_world import CHUNK, actions, tiny_inputs, tiny_model, tiny_processor

import spatialvla_ft.models.modeling_spatialvla as modeling
from spatialvla_ft import SpatialVLAForConditionalGeneration
from spatialvla_ft.actions.spaces import end_effector_delta
from spatialvla_ft.heads.registry import DEFAULT, HEADS
from spatialvla_ft.models.lora import (
    attach_lora,
    fingerprint,
    load_with_adapter,
    save_adapter,
    spatial_rows,
)

ROWS = 3
KINDS = [kind for kind in HEADS if kind != DEFAULT]
PARALLEL = [kind for kind in KINDS if HEADS[kind].parallel]
SMALL = {
    "voxel_heatmap": {"bins": {"translation": [6, 6, 4], "rotation": [4, 4, 4]}},
    "linear_bins": {"bins": 16},
    "flow": {"layers": 1, "steps": 3},
}
FITS = {"voxel_heatmap": {"sigma": 0.2}, "flow": {"steps": 5}}
"""Settings of a head that do not change its weights."""
FITS_NOT = {
    "voxel_heatmap": {"bins": {"translation": [5, 6, 4]}},
    "l1": {"blocks": 3},
    "linear_bins": {"bins": 8},
    "flow": {"layers": 2},
}
load = SpatialVLAForConditionalGeneration.from_pretrained

each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These tensors are too small to be shared out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny():
    return tiny_processor()


def settings(kind, **more):
    return {"kind": kind, **SMALL.get(kind, {}), **more}


def with_head(tiny, kind, **more):
    return tiny_model(tiny, action_head=settings(kind), **more)


def stored(tiny, folder, kind=None, **more):
    model = tiny_model(tiny, **more) if kind is None else with_head(tiny, kind, **more)
    model.save_pretrained(folder)
    tiny.save_pretrained(folder)
    return model


def weights(model, *, of_head):
    return {n: p for n, p in model.state_dict().items() if n.startswith("action_head.") is of_head}


def assert_same(have, want):
    assert have.keys() == want.keys()
    assert all(torch.equal(have[name], want[name]) for name in want)


def assert_close(have, want):
    """To float rounding: kernels may differ by where a weight lies in memory."""
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)


def wanted():
    return torch.as_tensor(np.stack([actions(i) for i in range(ROWS)]))


# ---------------------------------------------------------------- which head a checkpoint gets


@each_kind
def test_a_new_head_is_seeded_and_all_else_is_the_bases(tiny, kind, tmp_path):
    other = next(k for k in KINDS if k != kind)
    base = stored(tiny, tmp_path, other)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(load(tmp_path, action_head=settings(kind)))
    first, same, another = found
    assert_same(weights(first, of_head=False), weights(base, of_head=False))
    assert_same(weights(first, of_head=True), weights(same, of_head=True))
    unlike = weights(another, of_head=True)
    assert any(not torch.equal(p, unlike[n]) for n, p in weights(first, of_head=True).items())
    assert all(bool(torch.isfinite(p).all()) for p in first.parameters())
    assert all(p.requires_grad for p in first.action_head.parameters())
    assert first.action_head.training is first.training is False
    short = load(tmp_path, action_head=settings(kind), dtype=torch.bfloat16)
    assert {p.dtype for p in short.action_head.parameters()} == {torch.bfloat16}
    inputs = tiny_inputs(tiny, ROWS)
    again = tmp_path / "again"
    first.save_pretrained(again)
    assert_same(load(again).state_dict(), first.state_dict())
    assert_close(load(again).predict_actions(inputs), first.predict_actions(inputs))


@each_kind
def test_of_the_same_kind_weights_are_kept_where_they_fit(tiny, kind, tmp_path):
    base = stored(tiny, tmp_path, kind)
    own = weights(base, of_head=True)
    for more in ({}, {"space": end_effector_delta().to_dict()}, FITS.get(kind, {})):
        kept = load(tmp_path, action_head=settings(kind, **more))
        assert_same(weights(kept, of_head=True), own)
    more = FITS_NOT.get(kind)
    if more is None:
        pytest.skip("no settings are known that change its weights")
    torch.manual_seed(1)
    fresh = load(tmp_path, action_head={**settings(kind), **more})
    assert_same(weights(fresh, of_head=False), weights(base, of_head=False))
    head = weights(fresh, of_head=True)
    assert {n: p.shape for n, p in head.items()} != {n: p.shape for n, p in own.items()}
    same = "action_head.placeholders.weight"  # it would fit, but the head is all new
    assert kind not in PARALLEL or not torch.equal(head[same], own[same])
    assert bool(torch.isfinite(fresh.eval().predict_actions(tiny_inputs(tiny, ROWS))).all())


@pytest.mark.parametrize("asked", [None, {"kind": DEFAULT}])
def test_back_to_grid_tokens(tiny, asked, tmp_path):
    """Their tables have been there all along."""
    base = stored(tiny, tmp_path, "l1")
    model = load(tmp_path, action_head=asked).eval()
    assert model.action_head is None
    assert_same(model.state_dict(), weights(base, of_head=False))
    inputs = tiny_inputs(tiny, ROWS)
    assert torch.equal(model.predict_action(inputs), tiny_model(tiny).predict_action(inputs))
    model.save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").action_head is None


@each_kind
def test_weights_that_are_missing_are_told_however_the_head_is_asked_for(tiny, kind, tmp_path):
    """Spelt as in the file or in another way, or with what does not matter to them changed."""
    stored(tiny, tmp_path, kind)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    rest = {n: t for n, t in tensors.items() if not n.startswith("action_head.")}
    space = end_effector_delta().to_dict()  # tuples, which are lists in the file
    for left in (rest, {**tensors, "action_head.surplus": torch.zeros(1)}):
        save_file(left, file, metadata={"format": "pt"})
        for more in ({}, settings(kind), settings(kind, space=space), FITS.get(kind)):
            if more is None:
                continue
            asked = {} if not more else {"action_head": {**settings(kind), **more}}
            with pytest.raises(ValueError, match=r"weights are (missing|not part).*action_head\."):
                load(tmp_path, **asked)
    assert load(tmp_path, allow_incomplete=True).action_head.kind == kind


def test_another_chunk_does_not_pass_for_another_head(tiny, tmp_path):
    stored(tiny, tmp_path, "l1")
    with pytest.raises(ValueError, match=r"action_head.placeholders.weight \(6, 32\)"):
        load(tmp_path, action_chunk_size=CHUNK + 1)


# ---------------------------------------------------------------- adapters


@each_kind
def test_beside_adapters_a_head_learns_whole_and_is_carried(tiny, kind, tmp_path):
    """On a base that has it already, too: the adapter's own is what predicts."""
    base = stored(tiny, tmp_path / "base", kind)
    model = load(tmp_path / "base")
    adapted = attach_lora(model, rank=2, train_whole=("action_head",))
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    heads = [n for n in trained if "action_head" in n]
    assert len(heads) == len(weights(base, of_head=True))
    assert all("modules_to_save" in n for n in heads)
    assert any("lora_A" in n for n in trained)
    assert not any("lora" in n for n in heads)
    inputs = tiny_inputs(tiny, ROWS)
    optimizer = torch.optim.Adam((p for p in adapted.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(**inputs, actions=wanted()).loss.backward()
        assert all(dict(adapted.named_parameters())[n].grad is not None for n in heads)
        optimizer.step()
    adapted.eval()
    told = model.predict_actions(inputs)
    assert not torch.equal(told, base.predict_actions(inputs))
    where = {"base": str(tmp_path / "base"), "base_fingerprint": fingerprint(base)}
    save_adapter(adapted, tiny, spatial_rows(base), tmp_path / "adapter", **where)
    again = load_with_adapter(tmp_path / "adapter").get_base_model().eval()
    assert_same(again.state_dict(), model.state_dict())
    assert_close(again.predict_actions(inputs), told)


# ---------------------------------------------------------------- what placeholders see

each_parallel = pytest.mark.parametrize("kind", PARALLEL[:1])  # they share what is tested here
each_mask = pytest.mark.parametrize("prefix_mask", ["bidirectional", "causal"])


@each_mask
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", [3, 20, 4096])
@each_parallel
@torch.no_grad()
def test_the_direct_pass_is_the_librarys(tiny, kind, prefix_mask, groups, window, monkeypatch):
    """With keys shared by several heads or none, and windows shorter than what is read."""
    text = {"num_key_value_heads": groups, "sliding_window": window}
    model = with_head(tiny, kind, text=text, prefix_mask=prefix_mask)
    for rows in (1, ROWS):
        inputs = tiny_inputs(tiny, rows)
        direct = model.head_states(inputs)
        library = model(**inputs, actions=wanted()[:rows]).states
        assert_close(direct, library)
        with monkeypatch.context() as patch:
            patch.setattr(modeling, "why_not_direct", lambda text: "asked for")
            patch.setattr(modeling, "placeholder_states", None)
            assert torch.equal(model.head_states(inputs), library)


@each_mask
@pytest.mark.parametrize("window", [3, 4096])
@each_parallel
@torch.no_grad()
def test_placeholders_see_one_another_and_the_prompt_sees_none(tiny, kind, prefix_mask, window):
    model = with_head(tiny, kind, text={"sliding_window": window}, prefix_mask=prefix_mask)
    inputs, head = tiny_inputs(tiny, ROWS), model.action_head
    mask = inputs["attention_mask"]
    seen = {n: t for n, t in inputs.items() if n not in ("attention_mask", "token_type_ids")}
    embeds, _ = model.embed_inputs(**seen)

    def all_states():
        asked = head.lengthened(embeds, mask, None)
        return model.read(*asked).last_hidden_state.split((mask.shape[1], head.reads), 1)

    prompt, before = all_states()
    alone = model.read(embeds, mask, torch.zeros_like(mask)).last_hidden_state
    real = mask.bool()
    assert_close(prompt[real], alone[real])
    for place in (0, head.reads - 1):
        kept = head.placeholders.weight[place].clone()
        head.placeholders.weight[place] += 0.5
        same, after = all_states()
        direct = model.head_states(inputs)
        head.placeholders.weight[place] = kept
        assert_close(same[real], prompt[real])
        moved = (after - before).abs().amax(-1)
        assert float(moved.min()) > 1e-4  # those before and those behind it
        assert_close(direct, after)


@each_kind
@torch.no_grad()
def test_what_stands_at_pads_does_not_matter(tiny, kind):
    model, inputs = with_head(tiny, kind), tiny_inputs(tiny, ROWS)
    pads = ~inputs["attention_mask"].bool()
    assert bool(pads.any())
    raw = model.action_head.raw(model.head_states(inputs))
    loss = seeded_loss(model, inputs)
    inputs["input_ids"] = torch.where(pads, 7, inputs["input_ids"])
    assert_close(model.action_head.raw(model.head_states(inputs)), raw)
    assert_close(seeded_loss(model, inputs), loss)


def seeded_loss(model, inputs, **more):
    torch.manual_seed(3)
    return model(**inputs, actions=wanted(), **more).loss


# ---------------------------------------------------------------- numbers


@each_kind
def test_what_is_not_valid_reaches_no_weight_of_the_model(tiny, kind):
    """NaN included, for a loader may leave it where an episode has ended."""
    model, inputs = with_head(tiny, kind), tiny_inputs(tiny, ROWS)
    valid = torch.ones(ROWS, CHUNK, 7, dtype=torch.bool)
    valid[1, 1], valid[2] = False, False
    found = []
    for junk in (0.0, torch.nan):
        model.zero_grad()
        torch.manual_seed(3)
        loss = model(**inputs, actions=torch.where(valid, wanted(), junk), valid=valid).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        found[-1] = [value.clone() for value in found[-1]]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(bool(torch.isfinite(value).all()) for value in found[0])


@each_kind
@torch.no_grad()
def test_a_model_in_bfloat16_keeps_the_heads_numbers_in_float32(tiny, kind):
    short = with_head(tiny, kind).bfloat16()
    exact = with_head(tiny, kind)
    exact.load_state_dict({n: t.float() for n, t in short.state_dict().items()})
    inputs = tiny_inputs(tiny, ROWS)
    loss = seeded_loss(short, inputs)
    assert loss.dtype == torch.float32
    assert float(loss.bfloat16()) != float(loss)  # it has more than 8 bits
    torch.testing.assert_close(loss, seeded_loss(exact, inputs), rtol=0.1, atol=0)
    guess = short.predict(inputs)
    told = [t for t in dataclasses.astuple(guess) if isinstance(t, torch.Tensor)]
    assert {t.dtype for t in told} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        cast = exact.predict(inputs)
    assert cast.actions.dtype == torch.float32
