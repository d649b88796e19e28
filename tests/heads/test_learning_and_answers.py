"""Every head of the registry by itself: what it learns from, and what its answers may be.

The language model's part is played by a mixture of what it reads, so that placeholders learn too.
"""

from __future__ import annotations

import pytest
import torch

from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.actions.grid_io import grid_to_dict
from spatialvla_ft.actions.spaces import (
    end_effector_delta,
    joint_space,
    translation_delta,
    two_arms_delta,
)
from spatialvla_ft.heads.grid_tokens import GridTokens
from spatialvla_ft.heads.parallel import PLACEHOLDER, ParallelHead
from spatialvla_ft.heads.registry import HEADS, build_head

HIDDEN, PROMPT, ROWS = 16, 30, 5
MAPS = {"bins": {"translation": (8, 7, 4), "rotation": (5, 6, 4), "joint": (16,)}}
SMALL = {
    "voxel_heatmap": MAPS,
    "linear_bins": {"bins": 16},
    "flow": {"layers": 1, "steps": 3},
}
"""Settings that keep tests fast; a head that is not named here is tested as it is by default."""
KINDS = [kind for kind, head in HEADS.items() if not issubclass(head, GridTokens)]
SPACES = {
    "one_arm": (end_effector_delta(), 1),
    "chunk_of_8": (end_effector_delta(), 8),
    "two_arms": (two_arms_delta(), 2),
    "joints": (joint_space(7), 2),
    "no_gripper": (joint_space(3, gripper=False), 2),
    "no_rotation": (translation_delta(), 3),
}
CASES = {kind: {"kind": kind, **SMALL.get(kind, {})} for kind in KINDS}
CASES |= {
    "low_rank": {"kind": "voxel_heatmap", "maps": "low_rank", "rank": 3, **MAPS},
    "one_hot": {"kind": "voxel_heatmap", "sigma": 0.0, **MAPS},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These tensors are too small to be shared out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture(params=list(SPACES))
def place(request):
    return SPACES[request.param]


def new_head(case, place, seed=0):
    space, chunk = place
    torch.manual_seed(seed)
    return build_head({**case, "space": space.to_dict()}, HIDDEN, chunk).eval()


def random(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def some_actions(head, rows=ROWS, seed=3):
    space, chunk = head.sizes.space, head.sizes.chunk
    values = torch.rand(rows, chunk, space.dim, generator=torch.Generator().manual_seed(seed))
    values = values * 2 - 1
    hands = hand_numbers(space)
    values[..., hands] = (values[..., hands] > 0).float()
    return values


def hand_numbers(space):
    return [i for i, name in enumerate(space.names) if name.endswith("gripper")]


def seen(head, prompt):
    """States that a head is shown of prompts (B, T, D): every token mixed with those before it."""
    asked, mask, types = head.lengthened(prompt, None, None)
    counted = torch.arange(1, asked.shape[1] + 1)[:, None]
    return head.states(asked + (asked.cumsum(1) / counted).roll(1, -1), mask, types)


def loss_of(head, prompt, actions, valid=None):
    torch.manual_seed(7)  # a head may draw times and noise
    return head.loss(seen(head, prompt), actions, valid)


def gradients(head, prompt, actions, valid=None):
    head.zero_grad()
    prompt = prompt.clone().requires_grad_(True)
    loss, _ = loss_of(head, prompt, actions, valid)
    loss.backward()
    found = {name: p.grad for name, p in head.named_parameters()}
    return loss.detach(), {**found, "prompt": prompt.grad}


def clone(found):
    return {name: None if grad is None else grad.clone() for name, grad in found.items()}


# ---------------------------------------------------------------- learning


def test_a_finite_loss_teaches_every_weight_and_what_it_reads(case, place):
    head = new_head(case, place)
    loss, found = gradients(head, random(ROWS, PROMPT, HIDDEN), some_actions(head))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert bool(torch.isfinite(loss))
    for name, gradient in found.items():
        assert gradient is not None, name
        assert bool(torch.isfinite(gradient).all()), name
        assert float(gradient.abs().sum()) > 0, name
    _, metrics = loss_of(head, random(ROWS, PROMPT, HIDDEN), some_actions(head))
    assert all(v.shape == () and not v.requires_grad for v in metrics.values())
    assert all(bool(torch.isfinite(v)) for v in metrics.values())


def test_what_is_not_valid_may_hold_anything(case, place):
    """Not a number included: it changes neither the loss nor any gradient."""
    head, prompt = new_head(case, place), random(ROWS, PROMPT, HIDDEN)
    actions = some_actions(head)
    valid = random(*actions.shape, seed=1) > -0.5
    valid[0] = False  # a whole chunk
    loss, found = gradients(head, prompt, actions, valid)
    found = clone(found)
    for junk in (1e6, -37.0, torch.inf, torch.nan):
        holed = torch.where(valid, actions, junk)
        again, others = gradients(head, prompt, holed, valid)
        assert torch.equal(loss, again), junk
        for name, gradient in found.items():
            assert torch.equal(gradient, others[name]), (junk, name)
    _, metrics = loss_of(head, prompt, holed, valid)
    assert all(bool(torch.isfinite(v)) for v in metrics.values())


def test_what_is_valid_counts(case, place):
    head, prompt = new_head(case, place), random(ROWS, PROMPT, HIDDEN)
    actions = some_actions(head)
    everything = torch.ones_like(actions, dtype=torch.bool)
    loss, metrics = loss_of(head, prompt, actions)
    same, told = loss_of(head, prompt, actions, everything)
    torch.testing.assert_close(loss, same)
    torch.testing.assert_close(metrics, told)
    far, hands = torch.where(actions > 0, -0.9, 0.9), hand_numbers(place[0])
    for number in range(actions.shape[-1]):
        moved = actions.clone()
        moved[1, -1, number] = 1 - moved[1, -1, number] if number in hands else far[1, -1, number]
        assert not torch.equal(loss_of(head, prompt, moved)[0], loss), number
    first = everything.clone()
    first[1:] = False  # the mean is over what counts
    if case["kind"] != "flow":  # which draws noise for every row
        alone, _ = loss_of(head, prompt[:1], actions[:1])
        torch.testing.assert_close(loss_of(head, prompt, actions, first)[0], alone)


def test_where_nothing_counts_nothing_is_learnt(case, place):
    head, prompt = new_head(case, place), random(ROWS, PROMPT, HIDDEN)
    actions = some_actions(head)
    nothing = torch.zeros_like(actions, dtype=torch.bool)
    loss, found = gradients(head, prompt, torch.full_like(actions, torch.nan), nothing)
    assert float(loss) == 0
    assert all(float(gradient.abs().sum()) == 0 for gradient in found.values())


def test_a_step_downhill_lowers_the_loss(case, place):
    """The loss's own gradient points where its numbers do: no detached or misplaced part."""
    head, prompt = new_head(case, place), random(ROWS, PROMPT, HIDDEN)
    actions = some_actions(head)
    before, found = gradients(head, prompt, actions)
    del found["prompt"]
    steepness = sum(float(gradient.square().sum()) for gradient in found.values())
    size = 1e-3 * float(before) / steepness
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter -= size * found[name]
    after = loss_of(head, prompt, actions)[0].detach()
    assert float((before - after) / before) == pytest.approx(1e-3, rel=0.3)


# ---------------------------------------------------------------- predicting


@torch.no_grad()
def test_actions_are_normalised_and_grippers_closed_or_open(case, place):
    """Also of a head that has run wild."""
    head = new_head(case, place)
    space, chunk = place
    hands = hand_numbers(space)
    for mode in head.modes or (None,):
        told = []
        for scale in (1.0, 20.0):
            torch.manual_seed(1)
            guess = head.predict(seen(head, random(16, PROMPT, HIDDEN, scale=scale)), mode)
            assert guess.actions.shape == (16, chunk, space.dim)
            assert guess.actions.dtype == torch.float32
            assert float(guess.actions.abs().max()) <= 1, mode
            assert set(guess.actions[..., hands].unique().tolist()) <= {0.0, 1.0}
            if guess.spread is not None:
                assert guess.spread.shape == guess.actions.shape
                assert guess.spread.dtype == torch.float32
                assert bool(torch.isfinite(guess.spread).all())
                assert float(guess.spread.min()) >= 0
            told.append(guess.actions)
            for parameter in head.parameters():
                parameter *= 3
        assert not torch.equal(*told)
        head = new_head(case, place)


@torch.no_grad()
def test_a_gripper_opens_where_open_was_learnt(case):
    """Grippers that were always open, or always closed, are predicted so after a few steps."""
    place = SPACES["two_arms"]
    for wanted in (0.0, 1.0):
        head, prompt = new_head(case, place), random(ROWS, PROMPT, HIDDEN)
        actions = some_actions(head)
        hands = hand_numbers(place[0])
        actions[..., hands] = torch.tensor([wanted, 1 - wanted])
        optimizer = torch.optim.Adam(head.parameters(), lr=2e-2)
        for _ in range(15):
            with torch.enable_grad():
                optimizer.zero_grad()
                loss_of(head, prompt, actions)[0].backward()
            optimizer.step()
        found = head.predict(seen(head, prompt)).actions[..., hands]
        assert torch.equal(found, actions[..., hands])


@torch.no_grad()
def test_the_default_answer_is_the_first_modes_and_always_the_same(case, place):
    head, hidden = new_head(case, place), None
    hidden = seen(head, random(ROWS, PROMPT, HIDDEN))
    told = head.predict(hidden)
    torch.manual_seed(123)
    again = head.predict(hidden, head.modes[0] if head.modes else None)
    assert torch.equal(told.actions, again.actions)
    head.check_mode(None)
    with pytest.raises(ValueError, match=f"mode 'no such' is unknown to head '{head.kind}'"):
        head.check_mode("no such")


@torch.no_grad()
def test_raw_numbers_move_with_the_input_and_say_what_is_predicted(case, place):
    head, prompt = new_head(case, place), random(ROWS, PROMPT, HIDDEN)
    before = head.raw(seen(head, prompt))
    prompt[2] += random(PROMPT, HIDDEN, seed=8, scale=1e-2)
    after = head.raw(seen(head, prompt))
    moved = (after - before).abs().amax(-1)
    assert float(moved[2]) > 0
    assert torch.equal(moved > 0, torch.arange(ROWS) == 2)


# ---------------------------------------------------------------- numbers of few bits


def head_types(head, hidden):
    found = {head.raw(hidden).dtype}
    for mode in head.modes or (None,):
        guess = head.predict(hidden, mode)
        found |= {t.dtype for t in (guess.actions, guess.spread) if t is not None}
    return found


def test_under_autocast_it_is_what_it_is_without(case):
    head, prompt = new_head(case, SPACES["one_arm"]), random(ROWS, PROMPT, HIDDEN)
    actions = some_actions(head)
    wanted, _ = loss_of(head, prompt, actions)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = loss_of(head, prompt, actions)
        with torch.no_grad():
            assert head_types(head, seen(head, prompt)) == {torch.float32}
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted, rtol=0.05, atol=0)


# ---------------------------------------------------------------- placeholders


def parallel(case):
    if not issubclass(HEADS[case["kind"]], ParallelHead):
        pytest.skip("it reads the prompt")
    return new_head(case, SPACES["two_arms"])


def test_placeholders_stand_behind_the_prompt(case):
    head, embeds = parallel(case), random(2, 6, HIDDEN)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    asked, wide, types = head.lengthened(embeds, mask, torch.zeros_like(mask))
    assert torch.equal(asked[:, :6], embeds)
    assert torch.equal(wide[:, :6], mask)
    assert torch.equal(asked[0, 6:], asked[1, 6:])
    assert asked.shape[1] == wide.shape[1] == types.shape[1] == 6 + head.reads
    assert bool(wide[:, 6:].all())
    assert (types[:, 6:] == PLACEHOLDER).all()
    assert not types[:, :6].any()
    assert len(asked[0, 6:].unique(dim=0)) == head.reads  # each of its own
    assert torch.equal(head.states(asked, wide, types), asked[:, 6:])


def test_sequences_that_are_no_prompts_are_refused(case):
    head, embeds = parallel(case), random(2, 6, HIDDEN)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    with pytest.raises(ValueError, match=f"head '{head.kind}' needs prompts padded on the left"):
        head.lengthened(embeds, mask, None)
    types = torch.tensor([[0, 0, 0, 0, 1, 1]] * 2)
    with pytest.raises(ValueError, match=r"hold action tokens: call .* without suffix_actions"):
        head.lengthened(embeds, torch.ones_like(mask), types)


# ---------------------------------------------------------------- maps


def test_cells_of_an_action_grid_take_the_place_of_even_ones():
    space = end_effector_delta()
    grid = ActionGrid.uniform(bins=(3, 4, 2, 3, 2, 4, 2))
    place = (space, 2)
    head = new_head({"kind": "voxel_heatmap", "cells": grid_to_dict(grid), "sigma": 0.3}, place)
    assert [cells.size for cells in head.cells] == list(grid.counts[:2])
    loss, found = gradients(head, random(ROWS, PROMPT, HIDDEN), some_actions(head))
    assert bool(torch.isfinite(loss))
    assert all(float(gradient.abs().sum()) > 0 for gradient in found.values())
    hidden = seen(head, random(ROWS, PROMPT, HIDDEN))
    with torch.no_grad():
        best = head.predict(hidden, "argmax").actions
        chances = head.predict(hidden, "argmax", maps=True).chances
    assert chances["translation"].shape == (ROWS, 2, 24)
    torch.testing.assert_close(chances["rotation"].sum(-1), torch.ones(ROWS, 2))
    again = grid.decode(grid.encode(best.flatten(0, 1).double().numpy()))
    torch.testing.assert_close(
        best.flatten(0, 1).double(), torch.as_tensor(again), atol=1e-6, rtol=0
    )


@torch.no_grad()
def test_maps_are_given_where_they_are_asked_for():
    head = new_head(CASES["voxel_heatmap"], SPACES["one_arm"])
    hidden = seen(head, random(ROWS, PROMPT, HIDDEN))
    assert head.predict(hidden).chances is None
    told = head.predict(hidden, maps=True)
    assert told.chances["translation"].shape == (ROWS, 1, 8, 7, 4)
    assert told.chances["rotation"].shape == (ROWS, 1, 5, 6, 4)
    raw = head.raw(hidden)
    logs = torch.cat([m.flatten(1).log() for m in told.chances.values()], -1)
    torch.testing.assert_close(raw[:, : logs.shape[1]], logs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_low_rank_map_is_a_sum_of_products():
    head = new_head(CASES["low_rank"], SPACES["one_arm"])
    out, x = head.outs["translation"], random(3, head.width)
    curves = [c(x).view(3, 3, -1) for c in out.curves]
    by_hand = sum(
        curves[0][:, r, :, None, None]
        * curves[1][:, r, None, :, None]
        * curves[2][:, r, None, None]
        for r in range(3)
    )
    torch.testing.assert_close(out(x), by_hand.flatten(1))
