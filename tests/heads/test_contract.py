"""What every head must hold to, whoever wrote it: the tests run over `HEADS`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_world import CHUNK, actions, tiny_inputs, tiny_model, tiny_processor

import spatialvla_ft.models.modeling_spatialvla as modeling
from spatialvla_ft import SpatialVLAForConditionalGeneration
from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.actions.grid_io import grid_to_dict
from spatialvla_ft.actions.layout import slots_of
from spatialvla_ft.actions.spaces import (
    end_effector_delta,
    joint_space,
    translation_delta,
    two_arms_delta,
)
from spatialvla_ft.heads.registry import DEFAULT, HEADS, build_head
from spatialvla_ft.models.lora import (
    attach_lora,
    fingerprint,
    load_with_adapter,
    save_adapter,
    spatial_rows,
)

KINDS = sorted(kind for kind in HEADS if kind != DEFAULT)
SETTINGS = {
    "voxel_heatmap": {"bins": {"translation": [6, 6, 4], "rotation": [4, 4, 4], "joint": [16]}},
    "linear_bins": {"bins": 16},
    "flow": {"expert": 16, "layers": 1},
}
SPACES = {
    "one arm": end_effector_delta(),
    "two arms": two_arms_delta(),
    "joints": joint_space(5),
    "joints alone": joint_space(3, gripper=False),
    "no rotation": translation_delta(),
}
HIDDEN, BATCH = 24, 3
GRID = grid_to_dict(ActionGrid.uniform(bins=(4, 4, 3, 3, 3, 3, 2)))

each_kind = pytest.mark.parametrize("kind", KINDS)
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def made(kind, space, chunk=2, hidden=HIDDEN, **more):
    torch.manual_seed(0)
    settings = {"kind": kind, "space": space.to_dict(), **SETTINGS.get(kind, {}), **more}
    return build_head(settings, hidden, chunk)


def states(head, batch=BATCH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, head.reads, head.sizes.hidden, generator=generator)


def targets(space, chunk=2, batch=BATCH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(batch, chunk, space.dim, generator=generator) * 2 - 1
    for slot in slots_of(space):
        if slot.shape == "switch":
            found[..., slot.start] = (found[..., slot.start] > 0).float()
    return found


def loss_of(head, hidden, wanted, valid=None):
    torch.manual_seed(3)  # of what a head draws
    return head.loss(hidden, wanted, valid)


# ---------------------------------------------------------------- the head alone


@each_kind
@each_space
@pytest.mark.parametrize("chunk", [1, 8])
def test_losses_reach_everything_and_predictions_have_their_shape(kind, space, chunk):
    head = made(kind, space, chunk)
    hidden = states(head).requires_grad_()
    loss, metrics = loss_of(head, hidden, targets(space, chunk))
    assert loss.shape == ()
    assert all(torch.isfinite(value) and not value.requires_grad for value in metrics.values())
    loss.backward()
    own = {n for n, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert own <= {"placeholders.weight"}  # which the model embeds, not the head
    assert hidden.grad.abs().sum(-1).min() > 0  # every placeholder is read
    found = head.predict(states(head))
    assert found.actions.shape == (BATCH, chunk, space.dim)
    assert found.actions.dtype == torch.float32
    grippers = [i for s in slots_of(space) if s.shape == "switch" for i in range(s.start, s.stop)]
    assert set(found.actions[..., grippers].unique().tolist()) <= {0.0, 1.0}
    if found.spread is not None:
        assert found.spread.shape == found.actions.shape
        assert (found.spread >= 0).all()
        assert (found.spread[..., grippers] <= 0.5).all()


@each_kind
@each_space
def test_what_is_not_valid_counts_for_nothing(kind, space):
    head = made(kind, space)
    hidden, wanted = states(head), targets(space)
    valid = torch.ones_like(wanted, dtype=torch.bool)
    valid[0, 1] = False
    valid[2] = False
    garbage = torch.where(valid, wanted, 77.0)
    loss, _ = loss_of(head, hidden, wanted, valid)
    assert torch.equal(loss, loss_of(head, hidden, garbage, valid)[0])
    everything = torch.ones_like(valid)
    torch.testing.assert_close(
        loss_of(head, hidden, wanted, everything)[0], loss_of(head, hidden, wanted)[0]
    )
    nothing, _ = loss_of(head, hidden, garbage, torch.zeros_like(valid))
    assert float(nothing.detach()) == 0


@each_kind
@each_space
def test_rows_do_not_depend_on_their_batch(kind, space):
    head = made(kind, space)
    hidden = states(head)
    for mode in (None, *(m for m in head.modes if m != "sample")):
        whole = head.predict(hidden, mode).actions
        alone = torch.cat([head.predict(hidden[i : i + 1], mode).actions for i in range(BATCH)])
        torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)
        assert torch.equal(whole, head.predict(hidden, mode).actions)
    raw = head.raw(hidden)
    assert raw.shape[0] == BATCH
    assert raw.dtype == torch.float32
    assert (raw[0] - head.raw(states(head, seed=9))[0]).abs().max() > 1e-3


def test_a_heatmap_over_the_cells_of_a_grid():
    """Those of polar translations are points: targets, answers and sizes follow them."""
    head = made("voxel_heatmap", SPACES["one arm"], bins=None, cells=GRID)
    assert [cells.size for cells in head.cells] == [4 * 4 * 3, 3 * 3 * 3]
    found = head.predict(states(head), maps=True)
    assert found.chances["translation"].shape == (BATCH, 2, 48)
    best = found.chances["translation"].argmax(-1)
    points = torch.as_tensor(head.cells[0].points(), dtype=torch.float32)
    chosen = head.predict(states(head), "argmax").actions[..., :3]
    torch.testing.assert_close(chosen, points[best].clamp(-1, 1))
    loss_of(head, states(head), targets(SPACES["one arm"]))[0].backward()


@each_kind
def test_maths_is_float32_in_bfloat16(kind):
    """Weights and states of few bits cost their own rounding, and sums over cells add none."""
    space = SPACES["one arm"]
    exact, hidden, wanted = made(kind, space), None, targets(space)
    hidden = states(exact).bfloat16()
    short = made(kind, space).bfloat16()
    exact.load_state_dict({n: t.float() for n, t in short.state_dict().items()})
    wide, _ = loss_of(exact, hidden.float(), wanted)
    narrow, _ = loss_of(short, hidden, wanted)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide, rtol=0.05, atol=0.05)
    assert short.predict(hidden).actions.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = loss_of(exact, hidden.float(), wanted)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, wide, rtol=0.05, atol=0.05)


@each_kind
def test_two_good_actions_are_told_apart_or_not(kind):
    """Half of the labels left, half right: only heads that are said to can keep them apart."""
    space = translation_delta()
    finer = {"bins": {"translation": [16, 4, 4]}} if kind == "voxel_heatmap" else {}
    head = made(kind, space, chunk=1, **finer)
    optimiser = torch.optim.Adam(head.parameters(), lr=3e-3)
    hidden = states(head, 1).expand(64, -1, -1)
    wanted = torch.zeros(64, 1, space.dim)
    wanted[:32, 0, 0], wanted[32:, 0, 0] = -0.5, 0.5
    for step in range(250):
        torch.manual_seed(step)
        loss, _ = head.loss(hidden, wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    head.requires_grad_(False)
    x = float(head.predict(hidden[:1]).actions[0, 0, 0])
    if kind == "l1":
        assert abs(x) <= 0.55  # the median is anywhere between
    elif kind in ("voxel_heatmap", "linear_bins"):
        assert abs(abs(x) - 0.5) < 0.1
        between = float(head.predict(hidden[:1], "expectation").actions[0, 0, 0])
        assert abs(between) < 0.15
    spread = head.predict(hidden[:1]).spread
    if spread is not None:
        assert float(spread[0, 0, 0]) > 0.4


# ---------------------------------------------------------------- in the model


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def with_head(processor, kind, **more):
    torch.manual_seed(0)
    return tiny_model(processor, action_head={"kind": kind, **SETTINGS.get(kind, {})}, **more)


def wanted_of(rows=BATCH):
    return torch.as_tensor(np.stack([actions(i) for i in range(rows)]), dtype=torch.float32)


@each_kind
def test_it_learns_and_is_kept(processor, kind, tmp_path):
    model, inputs = with_head(processor, kind), tiny_inputs(processor, BATCH)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    before = None
    for step in range(60):
        torch.manual_seed(step)
        out = model(**inputs, actions=wanted_of())
        before = before or float(out.loss.detach())
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
    model.eval()
    assert float(out.loss.detach()) < (0.95 if kind == "flow" else 0.75) * before
    told = model.predict_actions(inputs)
    if kind != "flow":  # which needs more steps
        assert float((told - wanted_of()).abs().mean()) < 0.3
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(again.predict_actions(inputs), told)


@each_kind
def test_the_prompt_does_not_see_placeholders_nor_they_the_pads(processor, kind):
    model, inputs = with_head(processor, kind), tiny_inputs(processor, BATCH)
    mask = inputs["attention_mask"]
    assert not bool(mask.all())  # prompts of different lengths
    embeds = model.embed_inputs(**{n: t for n, t in inputs.items() if n not in SEQUENCE})[0]
    types = torch.zeros_like(inputs["input_ids"])
    longer = model.action_head.lengthened(embeds, mask, types)
    with torch.no_grad():
        alone = model.read(embeds, mask, types).last_hidden_state
        both = model.read(*longer).last_hidden_state[:, : embeds.shape[1]]
    torch.testing.assert_close(both[mask.bool()], alone[mask.bool()], rtol=1e-4, atol=1e-4)
    rows = []
    for i in range(BATCH):
        real = mask[i].bool()
        one = {n: t[i : i + 1][:, real] if t.ndim == 2 else t[i : i + 1] for n, t in inputs.items()}
        rows.append(model.action_head.raw(model.head_states(one)))
    whole = model.action_head.raw(model.head_states(inputs))
    torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-3, atol=1e-3)


SEQUENCE = ("attention_mask", "token_type_ids")


@each_kind
@pytest.mark.parametrize("mask", ["bidirectional", "causal"])
@pytest.mark.parametrize("window", [4096, 5])
def test_the_direct_pass_is_the_librarys(processor, kind, mask, window, monkeypatch):
    text = {"sliding_window": window, "num_key_value_heads": 1}
    model = with_head(processor, kind, text=text, prefix_mask=mask)
    inputs = tiny_inputs(processor, BATCH)
    direct = model.head_states(inputs)
    monkeypatch.setattr(modeling, "why_not_direct", lambda text: "asked for")
    torch.testing.assert_close(direct, model.head_states(inputs), rtol=1e-4, atol=1e-4)


@each_kind
def test_sequences_that_it_cannot_read_are_refused(processor, kind):
    model = with_head(processor, kind)
    longer = tiny_inputs(processor, BATCH, with_actions=True)
    longer["actions"] = wanted_of()
    with pytest.raises(ValueError, match="needs prompts padded on the left"):
        model(**longer)
    equal = {n: t[:1] for n, t in longer.items()}
    keep = equal["attention_mask"][0].bool()
    equal = {n: t[:, keep] if t.ndim == 2 else t for n, t in equal.items()}
    with pytest.raises(ValueError, match="reads prompts, and these sequences hold action tokens"):
        model(**equal)
    with pytest.raises(ValueError, match=f"head '{kind}' has no tokens: use predict_actions"):
        model.predict_action(tiny_inputs(processor, BATCH))


@each_kind
def test_an_adapter_carries_it(processor, kind, tmp_path):
    tiny_model(processor).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    load = SpatialVLAForConditionalGeneration.from_pretrained
    head = {"kind": kind, **SETTINGS.get(kind, {})}
    base = load(tmp_path / "base")
    torch.manual_seed(5)
    model, rows = load(tmp_path / "base", action_head=head), spatial_rows(base)
    torch.manual_seed(5)
    again = load(tmp_path / "base", action_head=head)
    named = dict(again.named_parameters())
    assert all(torch.equal(p, named[n]) for n, p in model.named_parameters())
    own = dict(base.named_parameters())
    assert all(torch.equal(p, own[n]) for n, p in model.named_parameters() if n in own)
    adapted = attach_lora(model, rank=2, train_whole=("action_head",)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    inputs = tiny_inputs(processor, BATCH)
    said = model.predict_actions(inputs)
    where = {"base": str(tmp_path / "base"), "base_fingerprint": fingerprint(base)}
    overrides = {"action_head": head}
    save_adapter(adapted, processor, rows, tmp_path / "adapter", **where, overrides=overrides)
    loaded = load_with_adapter(tmp_path / "adapter").get_base_model().eval()
    torch.testing.assert_close(loaded.predict_actions(inputs), said, rtol=1e-4, atol=1e-5)


@each_kind
def test_heads_are_swapped(processor, kind, tmp_path):
    """Another kind starts anew; the same stays where it fits; tokens come back as they were."""
    first = with_head(processor, kind)
    first.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    load = SpatialVLAForConditionalGeneration.from_pretrained
    inputs = tiny_inputs(processor, BATCH)
    other = next(k for k in KINDS if k != kind)
    fresh = load(tmp_path, action_head={"kind": other, **SETTINGS.get(other, {})}).eval()
    assert fresh.action_head.kind == other
    assert torch.isfinite(fresh.predict_actions(inputs)).all()
    tokens = load(tmp_path, action_head=None).eval()
    assert tokens.action_head is None
    assert tokens.predict_action(inputs).shape == (BATCH, 3 * CHUNK)
    kept = {n: p for n, p in first.named_parameters() if not n.startswith("action_head.")}
    for model in (fresh, tokens):
        assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in kept.items())
    same = load(
        tmp_path, action_head={**first.config.action_head, "space": SPACES["one arm"].to_dict()}
    )
    mine = dict(first.action_head.named_parameters())
    assert all(torch.equal(p, mine[n]) for n, p in same.action_head.named_parameters())


@each_kind
def test_a_checkpoint_that_lacks_some_of_it_is_refused(processor, kind, tmp_path):
    from safetensors.torch import load_file, save_file

    with_head(processor, kind).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in sorted(tensors) if name.startswith("action_head."))
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=gone.replace(".", r"\.")):
        SpatialVLAForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "voxel_heatmap", "sigma": -1}, "sigma must be 0 or more, got -1"),
        ({"kind": "voxel_heatmap", "maps": "thin"}, "maps is 'thin'; it must be 'full' or 'low"),
        ({"kind": "voxel_heatmap", "periodic": ["yawn"]}, r"periodic names \['yawn'\]; an action"),
        ({"kind": "voxel_heatmap", "bins": {"turn": [4]}}, r"bins names \['turn'\]; it knows"),
        ({"kind": "voxel_heatmap", "bins": {"rotation": [4]}}, "bins of rotation must be 3"),
        (
            {"kind": "voxel_heatmap", "cells": GRID, "maps": "low_rank"},
            "cells say themselves where they lie: leave out maps",
        ),
        ({"kind": "linear_bins", "bins": 1}, "bins must be 2 or more, got 1"),
        ({"kind": "flow", "expert": 12}, "expert must be a multiple of 8"),
        ({"kind": "l1", "widht": 3}, "action_head.widht 3 is no setting of head 'l1'"),
        ({"kind": "l1", "width": 0}, "width must be 1 or more"),
    ],
)
def test_settings_that_make_no_head(settings, said):
    with pytest.raises(ValueError, match=said):
        build_head(settings, HIDDEN, 2)
