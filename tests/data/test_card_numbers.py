"""Every public card against the released numbers of tests/golden/oxe_all_cards.md."""

import json
from pathlib import Path

import numpy as np
import pytest

from spatialvla_ft.data import load_cards, standardise

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
CARDS = load_cards(ROOT / "data_mixtures/oxe_cards.yaml")
CONFIGS = json.loads((GOLDEN / "oxe_all_cards.json").read_text())
NUMBERS = np.load(GOLDEN / "oxe_all_cards.npz")
ULPS = 5e-7
"""Angles of quaternions go through another arctangent than TensorFlow's."""


def byte_strings(packed):
    data, rows = packed.tobytes(), []
    while data:
        size = 4 + int.from_bytes(data[:4], "little")
        rows.append(data[4:size])
        data = data[size:]
    return np.array([*rows, None], object)[:-1]


def recorded(dataset):
    """(raw columns, {action, proprio, language}) of each trajectory of a dataset."""
    prefix = CONFIGS[dataset]["numbers"] + "/"
    found = {k[len(prefix) :]: NUMBERS[k] for k in NUMBERS.files if k.startswith(prefix)}
    found = {
        key.removesuffix("|bytes"): byte_strings(value) if key.endswith("|bytes") else value
        for key, value in found.items()
    }
    ends, kept_ends = np.cumsum(found.pop("steps")), np.cumsum(found.pop("kept"))
    raw = {key[4:]: value for key, value in found.items() if key.startswith("raw/")}
    out = {key: value for key, value in found.items() if not key.startswith("raw/")}
    for i in range(len(ends)):
        at = slice(ends[i - 1] if i else 0, ends[i])
        left = slice(kept_ends[i - 1] if i else 0, kept_ends[i])
        yield {k: v[at] for k, v in raw.items()}, {k: v[left] for k, v in out.items()}


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
