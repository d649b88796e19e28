"""Two arms, joints, and a hand that cannot turn: from a card to decoded actions."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from spatialvla_ft.actions.normalise import ActionStatistics, normalise
from spatialvla_ft.data.cards.files import load_cards
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.opening import open_dataset
from spatialvla_ft.evaluation.open_loop import run_open_loop
from spatialvla_ft.policy.load import load_policy_model
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train

TURNING = {
    "translation": ["action[0:3]"],
    "rotation": {"raw": "labelled_euler", "terms": ["action[3:6]"]},
    "gripper": ["action[-1:]"],
}
STATE = {
    "translation": ["observation.state[0:3]"],
    "gripper": [{"src": "observation.state[6:7]", "ops": [{"clip": [0, 1]}]}],
}
SPACES = {
    "two arms": {"arms": {"left": TURNING, "right": STATE}},
    "joints": {
        "encoding": "JOINT_POS",
        "joints": ["observation.state[0:6]"],
        "gripper": ["action[-1:]"],
    },
    "no rotation": {k: TURNING[k] for k in ("translation", "gripper")},
}
WIDTH = {"two arms": 11, "joints": 7, "no rotation": 4}
SLOTS = {"two arms": 5, "joints": 7, "no rotation": 2}


@pytest.fixture(params=SPACES)
def space(request):
    return request.param


@pytest.fixture
def card(demo_data, tmp_path, space):
    content = yaml.safe_load((demo_data / "card.yaml").read_text())
    content["cards"]["demo"]["action"] = SPACES[space]
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_trained_and_decoded(recipe_of, demo_data, card, space):
    overrides = ["grid.fit=uniform", f"data.datasets.0.card={card}", "model.new.bins=null"]
    recipe = recipe_of("full", overrides=[*overrides, "train.steps=2"])
    run = build(recipe)
    grid = run.processor.grid
    assert grid.action_space.dim == WIDTH[space]
    assert len(run.spatialvla.config.action_token_counts) == SLOTS[space]
    train(run)
    model, processor = load_policy_model(recipe.output / "final")
    data = open_dataset(demo_data, card=card, horizon=2)
    inputs = run.collate([data[i] for i in (0, 5, 9)])
    labels = inputs["labels"]
    ids = labels[labels != -100].reshape(3, -1)[:, :-1]
    assert ids.shape[1] == 2 * SLOTS[space]
    decoded = processor.decode_actions(ids)["normalised"]
    statistics = ActionStatistics.from_dict(processor.statistics[data.name])
    truth = np.stack([normalise(data[i].actions, statistics) for i in (0, 5, 9)])
    worst = np.abs(decoded - truth).max(axis=(0, 1))
    assert decoded.shape == (3, 2, WIDTH[space])
    lines = [i for i, g in enumerate(_roles(grid.action_space)) if g in ("rotation", "joint")]
    assert (worst[lines] <= 1 / 8).all(), worst  # bins of rotations and joints, at most 1/8 wide
    assert run_open_loop(model, processor, data, frames=3).names == grid.action_space.names


def _roles(space):
    return [group.role for group in space.groups for _ in group.names]


def test_units_and_names(demo_data, card, space):
    data = open_dataset(demo_data, card=card)
    names = data.action_space.names
    assert len(names) == WIDTH[space] == data.actions().shape[1]
    if space == "two arms":
        assert names[0] == "left_x"
        assert names[7:] == ("right_x", "right_y", "right_z", "right_gripper")
        np.testing.assert_array_equal(data[3].actions[0, 7:10], data.proprio()[3, :3])
        assert data[0].action_space.units[:7] == ("m",) * 3 + ("rad",) * 3 + (
            "1 = open, 0 = closed",
        )


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"arms": {"left": TURNING}, **TURNING}, r"one of translation, joints and arms, got"),
        ({"gripper": ["action[-1:]"]}, "got none"),
        ({"translation": ["action[0:3]"]}, "needs its gripper terms"),
        ({"arms": {"left": TURNING}, "gripper": ["action[-1:]"]}, "remove action.gripper"),
        ({"joints": ["action[0:6]"], "rotation": TURNING["rotation"]}, "rotation belongs to"),
        ({"arms": {"left": {"translation": ["a"]}}}, "gripper"),
    ],
)
def test_actions_that_cannot_be(demo_data, tmp_path, action, message):
    content = yaml.safe_load((demo_data / "card.yaml").read_text())
    content["cards"]["demo"]["action"] = action
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(DatasetError, match=message):
        load_cards(path)


def test_a_wrong_width_is_named(demo_data, tmp_path):
    content = yaml.safe_load((demo_data / "card.yaml").read_text())
    content["cards"]["demo"]["action"] = {**SPACES["no rotation"], "gripper": ["action[-2:]"]}
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(DatasetError, match="x, y, z, gripper make 4 columns, the terms give 5"):
        open_dataset(demo_data, card=path)[0]
