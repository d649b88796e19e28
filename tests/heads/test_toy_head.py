"""A head from outside the package, as `docs/extending.md` writes it: one class, one entry."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import CHUNK, NAME, actions, picture, tiny_inputs, tiny_model, tiny_processor

from spatialvla_ft import SpatialVLAForConditionalGeneration
from spatialvla_ft.actions.spaces import joint_space
from spatialvla_ft.data.sample import Observation
from spatialvla_ft.heads.registry import HEADS, build_head
from spatialvla_ft.models.lora import (
    adapt_to_grid,
    attach_lora,
    fingerprint,
    load_with_adapter,
    save_adapter,
    spatial_rows,
)
from spatialvla_ft.policy.policies import ModelPolicy, View

GUIDE = Path(__file__).parents[2] / "docs" / "extending.md"
ROWS = 3


@pytest.fixture(scope="module")
def tiny():
    return tiny_processor()


@pytest.fixture(autouse=True)
def guide(monkeypatch):
    """The guide's own code, run as it stands there."""
    for kind, head in list(HEADS.items()):
        monkeypatch.setitem(HEADS, kind, head)  # so that what is added goes again
    section = GUIDE.read_text(encoding="utf-8").partition("## A head")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict = {}
    monkeypatch.setitem(HEADS, "linear", None)
    exec(compile(code, str(GUIDE), "exec"), names)
    return names["LinearHead"]


@pytest.fixture
def model(tiny):
    return tiny_model(tiny, action_head={"kind": "linear"})


def wanted():
    return torch.as_tensor(np.stack([actions(i) for i in range(ROWS)]), dtype=torch.float32)


def learn(model, inputs, steps=40):
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        out = model(**inputs, actions=wanted())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(float(out.loss.detach()))
    model.eval()
    return losses


@torch.no_grad()
def test_the_loss_is_the_mean_absolute_error_of_what_it_predicts(tiny, model):
    inputs = tiny_inputs(tiny, ROWS)
    out = model(**inputs, actions=wanted())
    predicted = model.predict_actions(inputs).numpy()
    assert predicted.shape == (ROWS, CHUNK, 7)
    error = np.abs(predicted - wanted().numpy())
    np.testing.assert_allclose(float(out.loss), error.mean(), rtol=1e-5)
    assert out.metrics["mean_absolute_error"] == out.loss
    valid = torch.rand(wanted().shape, generator=torch.Generator().manual_seed(0)) < 0.3
    part = float(model(**inputs, actions=wanted(), valid=valid).loss)
    np.testing.assert_allclose(part, error[valid.numpy()].mean(), rtol=1e-5)


def test_neither_pads_nor_neighbours_nor_what_follows_the_prompt_matter(tiny, model):
    alone = torch.cat([model.predict_actions(tiny_inputs_row(tiny, i)) for i in range(ROWS)])
    torch.testing.assert_close(model.predict_actions(tiny_inputs(tiny, ROWS)), alone)
    longer = tiny_inputs(tiny, ROWS, with_actions=True)  # padded on the right, tokens behind
    together = dict(tiny_inputs(tiny, ROWS))
    own = longer.pop("actions")
    losses = [model(**one, actions=own).loss for one in (longer, together)]
    torch.testing.assert_close(*losses)


def tiny_inputs_row(tiny, i):
    inputs = tiny_inputs(tiny, ROWS)
    real = inputs["attention_mask"][i].bool()
    return {k: v[i : i + 1][:, real] if v.ndim == 2 else v[i : i + 1] for k, v in inputs.items()}


def test_it_learns_is_kept_and_acts(tiny, model, tmp_path):
    inputs = tiny_inputs(tiny, ROWS)
    losses = learn(model, inputs)
    assert losses[-1] < 0.3 * losses[0]
    told = model.predict_actions(inputs)
    assert float((told - wanted()).abs().mean()) < 0.3 * losses[0]

    model.save_pretrained(tmp_path)
    tiny.save_pretrained(tmp_path)
    again = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert again.config.action_head == {"kind": "linear"}
    assert torch.equal(again.predict_actions(inputs), told)

    seen = View(
        episodes=(1, 2),
        fresh=np.zeros(2, bool),
        observations=tuple(
            Observation(
                images={"primary": picture(e)},
                depth={"primary": np.ones((40, 64), np.float32)},
                intrinsics={"primary": np.diag([60.0, 60, 1])},
            )
            for e in (1, 2)
        ),
        gripper=np.ones(2, np.float32),
        instructions=("go left", "go right"),
    )
    policy = ModelPolicy(again, tiny)
    done = np.stack([policy.act(dataclasses.replace(seen)) for _ in range(CHUNK)], axis=1)
    prompt = tiny(
        [picture(1), picture(2)],
        list(seen.instructions),
        intrinsic=[np.diag([60.0, 60, 1])] * 2,
        depth=[np.ones((40, 64), np.float32)] * 2,
    )
    normalised = again.predict_actions(dict(prompt))
    known = tiny.statistics[NAME]["action"]
    low, high = np.array(known["q01"]), np.array(known["q99"])
    by_hand = (normalised.double().numpy() + 1) / 2 * (high - low) + low
    moved = np.array(known["mask"])
    np.testing.assert_allclose(done[..., moved], by_hand[..., moved], rtol=1e-5, atol=1e-6)


def test_a_base_gets_it_from_the_config_and_keeps_all_else(tiny, tmp_path):
    base = tiny_model(tiny)
    base.save_pretrained(tmp_path)
    tiny.save_pretrained(tmp_path)
    fresh = SpatialVLAForConditionalGeneration.from_pretrained(
        tmp_path, action_head={"kind": "linear", "bias": False}
    )
    own = dict(fresh.named_parameters())
    assert set(own) - set(dict(base.named_parameters())) == {"action_head.out.weight"}
    assert all(torch.equal(own[name], value) for name, value in base.named_parameters())


def test_it_trains_whole_beside_adapters(tiny, model):
    adapted = attach_lora(model, rank=2, train_whole=("action_head",))
    inputs = tiny_inputs(tiny, ROWS)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert any("action_head" in name for name in trained)
    adapted(**inputs, actions=wanted()).loss.backward()
    (gradient,) = [
        p.grad for n, p in adapted.named_parameters() if "modules_to_save" in n and "weight" in n
    ]
    assert float(gradient.abs().sum()) > 0


def test_grid_tokens_predict_what_their_ids_say(tiny):
    plain = tiny_model(tiny)
    inputs = tiny_inputs(tiny, ROWS)
    said = tiny.decode_actions(plain.predict_action(inputs), NAME)
    np.testing.assert_array_equal(plain.predict_actions(inputs), said["normalised"])
    units = tiny.to_robot_units(plain.predict_actions(inputs), NAME)
    np.testing.assert_array_equal(units, said["actions"])
    plain.action_grid = None
    with pytest.raises(ValueError, match=r"does not know the grid .* pass grid=processor.grid"):
        plain.predict_actions(inputs)
    assert torch.equal(
        plain.predict_actions(inputs, grid=tiny.grid), torch.tensor(said["normalised"])
    )


def test_grid_tokens_know_the_grid_that_their_model_came_with(tiny, tmp_path):
    """That of the folder, and after adaptation the new one; never that of the base."""
    inputs = tiny_inputs(tiny, ROWS)
    base = tiny_model(tiny)
    base.save_pretrained(tmp_path / "base")
    tiny.save_pretrained(tmp_path / "base")
    load = SpatialVLAForConditionalGeneration.from_pretrained
    assert load(tmp_path / "base").action_grid.same_edges(tiny.grid)

    other = tiny_processor()
    actions_seen = np.concatenate([actions(i) for i in range(ROWS)]) * 0.5
    other.set_grid(tiny.grid.with_means(actions_seen))
    model = load(tmp_path / "base").eval()
    adapt_to_grid(model, tiny.grid, other.grid)
    said = other.decode_actions(model.predict_action(inputs), NAME)["normalised"]
    assert not np.array_equal(said, tiny.decode_actions(model.predict_action(inputs))["normalised"])
    np.testing.assert_array_equal(model.predict_actions(inputs), said)

    adapted = attach_lora(model, rank=2)
    folder = tmp_path / "adapter"
    whole, rows = load(tmp_path / "base"), spatial_rows(model)
    named = {"base": str(tmp_path / "base"), "base_fingerprint": fingerprint(whole)}
    save_adapter(adapted, other, rows, folder, **named)
    again = load_with_adapter(folder).get_base_model().eval()
    np.testing.assert_array_equal(again.predict_actions(inputs), said)


def test_a_model_loads_without_its_processor(tiny, tmp_path):
    tiny_model(tiny).save_pretrained(tmp_path)
    for content in (None, "{}", '{"bin_policy": {"translation": {}}}'):
        if content is not None:
            (tmp_path / "processor_config.json").write_text(content)
        model = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path).eval()
        assert model.action_grid is None
        with pytest.raises(ValueError, match="does not know the grid"):
            model.predict_actions(tiny_inputs(tiny, ROWS))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "lnear"}, r"action_head.kind 'lnear' is unknown; use one of .*grid_tokens"),
        ({"kind": "linear", "bais": 1}, r"action_head.bais 1 is no setting of head 'linear'.*bias"),
        ({"bins": 3}, r"action_head of kind 'grid_tokens' takes no settings, got \['bins'\]"),
    ],
)
def test_configs_that_fit_no_head(settings, said):
    with pytest.raises(ValueError, match=said):
        build_head(settings, 16, 4)


def test_targets_and_modes_that_fit_no_head(tiny, model):
    inputs = tiny_inputs(tiny, ROWS)
    with pytest.raises(ValueError, match=r"head of this model is 'linear', which learns from act"):
        model(**{**tiny_inputs(tiny, ROWS, with_actions=True), "actions": None})
    with pytest.raises(ValueError, match=r"actions must be \(B, 2, 7\).*got \(3, 2, 6\)"):
        model(**inputs, actions=wanted()[..., :6])
    holed = wanted()
    holed[1, 0, 2] = torch.nan
    with pytest.raises(ValueError, match=r"actions hold nan at sample 1, step 0, 'z'"):
        model(**inputs, actions=holed)
    with pytest.raises(ValueError, match=r"mode 'argmax' is unknown to head 'linear'"):
        model.predict_actions(inputs, mode="argmax")
    with pytest.raises(ValueError, match=r"mode 'argmax' is unknown to head 'grid_tokens'"):
        tiny_model(tiny).predict_actions(inputs, mode="argmax")


def test_the_space_decides_on_the_numbers():
    space = joint_space(7)
    head = build_head({"kind": "linear", "space": space.to_dict()}, 16, 3)
    assert head.predict(torch.zeros(5, 1, 16)).actions.shape == (5, 3, 8)
