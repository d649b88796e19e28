"""Six-number rotations, joints of two arms, packed strings, and cameras that change places."""

import zlib

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spatialvla_ft.data import DatasetError, load_cards, open_dataset, standardise
from spatialvla_ft.data.cards.fields import Swap
from spatialvla_ft.data.cards.ops import zlib_float32
from spatialvla_ft.data.view import swap, swapped_slots

HEAD = "schema_version: 1\ncards:\n  mine:\n    version: 1.0.0\n    language: {kind: none}\n"


def card_of(tmp_path, *lines):
    path = tmp_path / "card.yaml"
    path.write_text(HEAD + "".join(f"    {line}\n" for line in lines))
    return load_cards(path)["mine"]


SIX = (
    'action: {encoding: EEF_R6, translation: ["action[0:3]"], rotation: {raw: rot6d, terms: '
    '["action[3:9]"]}, gripper: ["action[9:10]"]}'
)


def test_six_number_rotations(tmp_path):
    rng = np.random.default_rng(0)
    six = Rotation.random(12, random_state=0).as_matrix()[:, :, :2].reshape(12, 6)
    parts = [rng.normal(size=(12, 3)), six, rng.integers(0, 2, (12, 1))]
    action = np.concatenate(parts, axis=1).astype(np.float32)
    card = card_of(tmp_path, SIX)
    np.testing.assert_array_equal(standardise(card, {"action": action}).action, action)
    space = card.action_space_of(10)
    assert space.dim == 10
    assert space.names[3:9] == ("r1", "r2", "r3", "r4", "r5", "r6")
    assert space.deltas.tolist() == [True] * 3 + [False] * 7
    with pytest.raises(DatasetError, match="make 10 columns, the terms give 9"):
        standardise(card, {"action": action[:, :9]})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("rot6d", "labelled_euler"), "EEF_R6 with a rotation of kind labelled_euler"),
        (("EEF_R6", "EEF_POS"), "EEF_POS with a rotation of kind rot6d"),
        (("EEF_R6", "JOINT_POS"), "JOINT_POS goes with joints"),
    ],
)
def test_encodings_that_contradict_their_terms(tmp_path, change, complaint):
    with pytest.raises(DatasetError, match=complaint):
        card_of(tmp_path, SIX.replace(*change))


def test_joints_of_two_arms(tmp_path):
    card = card_of(
        tmp_path,
        "action: {encoding: JOINT_POS_BIMANUAL, loadable: false, "
        'joints: ["action[0:6]", "action[7:13]"], '
        'gripper: ["action[6:7]", {src: "action[13:14]", ops: [invert]}]}',
    )
    action = np.random.default_rng(1).uniform(size=(9, 14)).astype(np.float32)
    got = standardise(card, {"action": action}).action
    np.testing.assert_array_equal(got[:, :12], np.delete(action, [6, 13], axis=1))
    np.testing.assert_array_equal(got[:, 12], action[:, 6])
    np.testing.assert_array_equal(got[:, 13], 1 - action[:, 13])
    space = card.action_space_of(14)
    joints = [f"joint_{i}" for i in range(1, 13)]
    assert space.names == (*joints, "left_gripper", "right_gripper")
    assert [group.role for group in space.groups] == ["joint", "gripper", "gripper"]


def test_packed_strings_that_end_with_zeros():
    """NumPy drops zeros at the end of a fixed-width string; the checksum may end with some."""
    rows = np.arange(6000, dtype=np.float32).reshape(3000, 2)
    packed = [zlib.compress(row.tobytes()) for row in rows]
    assert any(blob.endswith(b"\0") for blob in packed)
    for dtype in ("S40", object):
        np.testing.assert_array_equal(zlib_float32(np.array(packed, dtype), 2), rows)


def with_swap(card, p):
    rule = Swap(swap=("primary", "wrist"), p=p, scope="trajectory")
    return card.model_copy(update={"augment": [rule]})


def test_swapped_cameras_take_all_their_own_along(demo):
    plain = open_dataset(demo, card=None)
    swapped = open_dataset(demo, card=with_swap(plain.card, 1.0))
    for frame in (0, 5, 20):
        a, b = plain[frame], swapped[frame]
        for slot, other in (("primary", "wrist"), ("wrist", "primary")):
            np.testing.assert_array_equal(a.images[slot], b.images[other])
            np.testing.assert_array_equal(a.intrinsics[slot], b.intrinsics[other])
        np.testing.assert_array_equal(a.depth["primary"], b.depth["wrist"])
        np.testing.assert_array_equal(a.extrinsics["primary"], b.extrinsics["wrist"])
        assert set(b.depth) == {"wrist"}
        np.testing.assert_array_equal(a.actions, b.actions)
    never = open_dataset(demo, card=with_swap(plain.card, 0.0))
    np.testing.assert_array_equal(plain[3].images["wrist"], never[3].images["wrist"])


def test_a_swapped_camera_alone_is_the_other_one(demo):
    plain = open_dataset(demo, card=None)
    alone = open_dataset(demo, card=with_swap(plain.card, 1.0), cameras=("primary",))
    for frame in (0, 9):
        got = alone[frame]
        assert set(got.images) == set(got.intrinsics) == {"primary"}
        np.testing.assert_array_equal(got.images["primary"], plain[frame].images["wrist"])
        assert got.depth == got.extrinsics == {}


def test_an_episode_is_swapped_whole_and_always(demo):
    card = with_swap(open_dataset(demo, card=None).card, 0.5)
    dataset = open_dataset(demo, card=card, window=2)
    sides = {}
    for sample in (*dataset, *dataset):
        seen = [step.images["primary"].shape[1] for step in sample.observations]
        sides.setdefault(sample.episode, set()).update(seen)
    assert all(len(side) == 1 for side in sides.values())


def test_the_share_of_swapped_episodes(demo):
    card = with_swap(open_dataset(demo, card=None).card, 0.3)
    drawn = [bool(swapped_slots(card, "demo/1.0.0", episode)) for episode in range(4000)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.03)
    other = [bool(swapped_slots(card, "demo/2.0.0", episode)) for episode in range(4000)]
    both = np.mean(np.array(drawn) & np.array(other))
    assert both == pytest.approx(0.09, abs=0.03)


def test_two_swaps_in_a_row(demo):
    card = open_dataset(demo, card=None).card
    rules = [Swap(swap=pair, p=1, scope="trajectory") for pair in (("a", "b"), ("b", "c"))]
    places = swapped_slots(card.model_copy(update={"augment": rules}), "x", 0)
    by_hand = {"a": 1, "b": 2, "c": 3}
    by_hand["a"], by_hand["b"] = by_hand["b"], by_hand["a"]
    by_hand["b"], by_hand["c"] = by_hand["c"], by_hand["b"]
    assert swap({"a": 1, "b": 2, "c": 3}, places) == by_hand


def test_a_swap_of_an_unknown_camera(tmp_path):
    lines = (
        "cameras: {primary: image}",
        "augment: [{swap: [primary, wrist], p: 0.5, scope: trajectory}]",
        SIX,
    )
    with pytest.raises(DatasetError, match=r"swaps \['primary', 'wrist'\].*\['primary'\]"):
        card_of(tmp_path, *lines)
