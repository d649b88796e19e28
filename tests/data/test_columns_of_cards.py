"""Slices that leave their column, lines of the wrong width, and columns that nothing reads."""

import json
import logging
import re

import numpy as np
import plain_rlds as plain
import pytest
from array_store import ARM, array_dataset
from plain_rlds import Spec, sequence, tensor

from spatialvla_ft.converters.rlds_to_lerobot import to_lerobot
from spatialvla_ft.data import DatasetError, FrameIndex, build_index, open_dataset
from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.terms import parse_term
from spatialvla_ft.inspection import inspect_dataset

LENGTHS = (3, 2)


def made(tmp_path, *, columns=None, **card):
    content = {**plain.CARD, **card}
    columns = plain.robot(LENGTHS) | (columns or {})
    return plain.write(tmp_path, columns, episodes=len(LENGTHS), card=content)


def action(**lines):
    return {"action": {**plain.CARD["action"], **lines}}


TURN = {"raw": "labelled_euler", "terms": ["action[4:9]"]}
WIDE = [
    (action(rotation=TURN), r"rotation: action\[4:9\] leaves its column: 'action' is 7 wide"),
    (action(translation=["action[-9:3]"]), r"action\[-9:3\] leaves"),
    (action(gripper=["action[7:]"]), r"action.gripper: action\[7:\] leaves"),
    (action(gripper=["action[6:9]"]), r"action\[6:9\] leaves its column"),
    (action(gripper=["action[5:7]"]), r"gripper: action\[5:7\] make 2 columns, 1 are needed"),
    (action(translation=["action[0:2]"], rotation={"raw": "labelled_euler", "terms":
        ["action[2:6]"]}), r"action.translation: action\[0:2\] make 2 columns, 3 are needed"),
    ({"proprio": {"terms": ["observation.state[0:9]"]}},
     r"proprio: observation.state\[0:9\] leaves its column: 'observation.state' is 8 wide"),
    ({"relabel": {"dims": [0, 6], "from": "observation.state[0:9]", "rule": "next_minus_current"}},
     r"relabel.from: observation.state\[0:9\] leaves"),
    ({"relabel": {"dims": [0, 6], "from": "observation.state[0:5]", "rule": "next_minus_current"}},
     r"dims \[0, 6\] of 7 columns are replaced by 5"),
    ({"relabel": {"dims": [3, 9], "from": "observation.state[0:6]", "rule": "next_minus_current"}},
     r"dims \[3, 9\] of 7 columns"),
    ({"proprio": {"terms": ["language_instruction"]}}, "language_instruction reads words"),
    ({"intrinsics": {"primary": "action"}}, "'action' is read as K"),
    ({"extrinsics": {"primary": "action"}}, "'action' is read as a pose"),
    ({"cameras": {"primary": "action"}}, "'action' of made holds numbers, no picture per step"),
]  # fmt: skip


@pytest.mark.parametrize(("card", "complaint"), WIDE)
def test_a_card_that_leaves_its_columns_is_refused_at_opening(tmp_path, card, complaint):
    folder = made(tmp_path, **card)
    for look in (lambda: open_dataset(folder, card=None), lambda: inspect_dataset(folder)):
        with pytest.raises(DatasetError, match=complaint) as raised:
            look()
        assert "made" in str(raised.value)


def test_lerobot_datasets_are_held_to_the_same(tmp_path):
    folder = made(tmp_path)
    dataset = open_dataset(folder, card=None)
    to_lerobot(dataset.frame_index, dataset.card, folder / "card.yaml", tmp_path / "l")
    card = {**plain.CARD, **action(rotation=TURN)}
    content = {"schema_version": 1, "cards": {"l": card}}
    (tmp_path / "l" / "card.yaml").write_text(json.dumps(content))
    for look in (lambda: open_dataset(tmp_path / "l", card=None),
                 lambda: inspect_dataset(tmp_path / "l")):  # fmt: skip
        with pytest.raises(DatasetError, match=r"(?s)^l: .*action\[4:9\] leaves its column"):
            look()


def test_files_that_are_not_utf_8(tmp_path):
    folder = made(tmp_path)
    (folder / "card.yaml").write_bytes(b"schema_version: 1 # caf\xe9")
    with pytest.raises(DatasetError, match=r"card.yaml is not UTF-8 text"):
        open_dataset(folder, card=None)


def test_slices_inside_are_read(tmp_path):
    folder = made(tmp_path, **action(translation=["action[-7:-4]"], gripper=["action[-1:]"]))
    found = open_dataset(folder, card=None).actions()
    np.testing.assert_array_equal(found[0], np.arange(7) / 8)


@pytest.mark.parametrize("text", ["action[3:3]", "action[4:2]", "action[-1:-3]", "action[0:0]"])
def test_a_slice_of_nothing(text):
    with pytest.raises(ValueError, match="takes no columns"):
        parse_term(text)


def test_a_store_that_does_not_say_how_wide_its_columns_are(tmp_path):
    rows = [{"action": np.zeros((3, 5), np.float32)}]
    dataset = array_dataset(rows, tmp_path, action=ARM)
    with pytest.raises(DatasetError, match=r"arrays/1.0.0, episode 0: .*action\[3:6\] leaves its"):
        dataset.actions()


def test_numbers_of_the_episode_stand_at_every_step(tmp_path):
    whole = Spec(tensor(2), [[1.0, 2.0], [3.0, 4.0]], per="episode")
    card = {"proprio": {"terms": ["weight[1:2]", "observation.state[0:1]"]}}
    dataset = open_dataset(made(tmp_path, columns={"weight": whole}, **card), card=None)
    assert dataset.proprio().tolist() == [[2, 0], [2, 1], [2, 2], [4, 3], [4, 4]]


def test_episodes_of_different_width(tmp_path):
    rows = [{"action": np.zeros((3, width), np.float32)} for width in (7, 8)]
    joints = {"encoding": "JOINT_POS", "joints": ["action"], "gripper": []}
    dataset = array_dataset(rows, tmp_path, action=joints)
    with pytest.raises(DatasetError, match=r"episode 1: .*action: 8 columns, 7 in episodes read"):
        dataset.actions()


def test_filters_inside_the_action(tmp_path):
    rule = {"kind": "drop_if_motion_is_zero", "stage": "after_normalisation", "tol": 0.1}
    rows = [{"action": np.ones((3, 7), np.float32)}]
    beyond = {"filters": [{**rule, "dims": [3, 9], "q01": [0] * 6, "q99": [1] * 6}]}
    with pytest.raises(DatasetError, match=r"dims \[3, 9\] leave the action, which has 7"):
        len(array_dataset(rows, tmp_path, card=beyond))
    with pytest.raises(ValueError, match=r"dims .* are 6 columns, q01 has 2 numbers"):
        Card.model_validate({**plain.CARD, "name": "a", "filters": [
            {**rule, "dims": [0, 6], "q01": [0, 0], "q99": [1] * 6}]})  # fmt: skip
    with pytest.raises(ValueError, match="0 <= a < b"):
        Card.model_validate({**plain.CARD, "name": "a", "filters": [
            {**rule, "dims": [6, 0], "q01": [], "q99": []}]})  # fmt: skip


SMELL = {"pythonClassName": "my.features.Smell", "jsonFeature": {}}
UNREAD = {
    "null": Spec(tensor(2), [[0.5] * 6, []]),
    "lacking": Spec(tensor(2), [[0.5] * 6, None]),
    "short": Spec(tensor(2), [[0.5] * 6, [0.5] * 3]),
    "typed": Spec(tensor(2), [[0.5] * 6, [b"x"] * 4]),
    "ragged": Spec(sequence(tensor()), [[0.5] * 3, [0.5] * 9], rows=[[1, 1, 1], [1, 1]]),
    "smell": Spec(SMELL, [[b"rose"] * 3, [b"pine"] * 2]),
    "odd": Spec(tensor(2, dtype="complex64x"), [[0.5] * 6, [0.5] * 4]),
}


def test_columns_that_nothing_reads_need_not_be_valid(tmp_path, caplog):
    folder = made(tmp_path, columns=dict(UNREAD))
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(folder, card=None)
    assert f"{len(UNREAD)} columns are left out" in caplog.text
    np.testing.assert_array_equal(dataset.actions(), np.arange(5)[:, None] + np.arange(7) / 8)
    index = dataset.frame_index
    assert set(index.unread) == set(UNREAD)
    assert not set(index.leaves) & set(UNREAD)
    assert json.loads((index.path / "meta.json").read_text())["format_version"] == 3
    again = FrameIndex(index.path)
    assert again.unread == index.unread
    for key in UNREAD:
        with pytest.raises(DatasetError, match=f"made has column '{key}', but it cannot be read"):
            again.column(key, 0)
    assert "episode 1: the record lacks it; so in 1 of 2 episodes" in again.unread["lacking"]
    seen = inspect_dataset(folder)
    assert {f.where for f in seen.findings if f.rule == "column cannot be read"} == set(UNREAD)


@pytest.mark.parametrize("key", sorted(UNREAD))
def test_a_card_that_names_one_is_refused(tmp_path, key):
    card = {"proprio": {"terms": [key]}}
    folder = made(tmp_path, columns={key: UNREAD[key]}, **card)
    for look in (lambda: open_dataset(folder, card=None), lambda: inspect_dataset(folder)):
        with pytest.raises(DatasetError, match=f"{key}.*cannot be read"):
            look()
    with pytest.raises(DatasetError, match=re.escape(key)):
        build_index(folder, rebuild=True)  # asked for alone, it takes all or nothing


def test_a_key_that_features_json_does_not_know(tmp_path, caplog):
    folder = made(tmp_path, columns={"extra": Spec(tensor(), [[0.5] * 3, [0.5] * 2])})
    path = folder / "features.json"
    features = json.loads(path.read_text())
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    del steps["featuresDict"]["features"]["extra"]
    path.write_text(json.dumps(features))
    with caplog.at_level(logging.WARNING):
        assert len(open_dataset(folder, card=None)) == 5
    assert "'steps/extra' is not in features.json" in caplog.text


def test_as_many_columns_say_one_length_as_another(tmp_path):
    robot = plain.robot(LENGTHS)
    for key in ("observation.state", "observation.image"):
        spec = robot[key]
        spec.values[1] = spec.values[1] * 2
    folder = plain.write(tmp_path, robot, episodes=2)
    with pytest.raises(DatasetError, match="as many columns say the one as the other"):
        open_dataset(folder, card=None)


def test_an_index_that_grows_keeps_what_it_left_out(tmp_path):
    folder = made(tmp_path, columns={"null": UNREAD["null"]})
    open_dataset(folder, card=None)
    old = f"{plain.NAME}-train.tfrecord-00000-of-00001"
    first, second = (f"{plain.NAME}-train.tfrecord-0000{i}-of-00002" for i in range(2))
    (folder / old).rename(folder / first)
    columns = plain.robot(LENGTHS) | {"null": Spec(tensor(2), [[0.5] * 6, [0.5] * 4])}
    more = plain.write(tmp_path / "more", columns, episodes=2)
    (more / old).rename(folder / second)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["2", "2"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    grown = open_dataset(folder, card=None)
    assert len(grown) == 10
    assert "so in 1 of 4 episodes" in grown.frame_index.unread["null"]


def test_a_damaged_packed_column_is_named(tmp_path):
    packed = Spec(tensor(2, encoding="zlib"), [[b"no zlib"] * 3, [b"no zlib"] * 2])
    folder = made(tmp_path, columns={"packed": packed}, proprio={"terms": ["packed"]})
    with pytest.raises(DatasetError, match=r"episode 0.*'packed' is damaged"):
        open_dataset(folder, card=None)[0]
