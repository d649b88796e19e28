"""Every public card against the released numbers of tests/golden/oxe_all_cards.md."""

import numpy as np
import pytest
from recorded_cards import CARDS, CONFIGS, recorded

from spatialvla_ft.data import standardise

ULPS = 5e-7
"""Angles of quaternions go through another arctangent than TensorFlow's."""


def test_there_are_numbers_for_every_card():
    assert set(CONFIGS) == set(CARDS)
    assert len(CARDS) == 74
    assert len({config["numbers"] for config in CONFIGS.values()}) == 60


@pytest.mark.parametrize("dataset", sorted(CARDS))
def test_released_numbers(dataset):
    card = CARDS[dataset]
    turned = any(op.name == "quat_to_euler" for t in card.action.rotation_terms for op in t.ops)
    lengths = []
    for raw, expected in recorded(dataset):
        before = {key: value.copy() for key, value in raw.items()}
        ours = standardise(card, raw)
        np.testing.assert_allclose(
            ours.action, expected["action"], rtol=0, atol=ULPS if turned else 0
        )
        np.testing.assert_array_equal(ours.proprio, expected["proprio"])
        assert ours.action.dtype == ours.proprio.dtype == np.float32
        assert ours.language == [text.decode() for text in expected["language"]]
        assert len(ours.steps) == len(ours.action)
        for key, value in before.items():
            np.testing.assert_array_equal(raw[key], value, err_msg=key)
        lengths.append(len(next(iter(raw.values()))))
    assert len(lengths) >= 9
    assert max(lengths) == 9


@pytest.mark.parametrize("dataset", sorted(CARDS))
def test_released_configuration(dataset):
    card, config = CARDS[dataset], CONFIGS[dataset]
    assert {slot: term.path for slot, term in (card.cameras or {}).items()} == config["cameras"]
    assert {slot: term.path for slot, term in card.depth.items()} == config["depth"]
    assert card.proprio.encoding == config["proprio"]
    assert card.action.encoding == config["action"]
    if config["action"] == "EEF_POS":
        assert card.action_space.deltas.tolist() == [True] * 6 + [False]


@pytest.mark.parametrize("dataset", ["bridge_orig", "bridge_oxe", "bridge_dataset"])
def test_an_episode_of_one_step_leaves_none(dataset):
    raw, _ = next(recorded(dataset))
    ours = standardise(CARDS[dataset], {key: value[:1] for key, value in raw.items()})
    assert ours.action.shape == (0, 7)
    assert ours.proprio.shape == (0, 8)
    assert ours.language == []


def test_code_points_that_are_none():
    codes = np.array([[0xD800, 97, 0, 98], [0x110000, 97, 0, 0], [-5, 97, 98, 0]], np.int32)
    raw = {
        "action": np.zeros((3, 2), np.float32),
        "observation.instruction": codes,
        "observation.effector_translation": np.zeros((3, 2), np.float32),
    }
    assert standardise(CARDS["language_table"], raw).language == ["�a", "�a", "�ab"]
