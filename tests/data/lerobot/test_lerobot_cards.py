"""What the features mean: by a card, by their names where these are certain, or refused."""

import json
import re
import types

import numpy as np
import pytest
import yaml
from lerobot_write import LENGTHS, action_of, write
from scipy.spatial.transform import Rotation

from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.actions.normalise import normalise
from spatialvla_ft.data import DatasetError, load_cards, open_dataset
from spatialvla_ft.data.lerobot.draft import draft
from spatialvla_ft.data.lerobot.info import Feature, Info, read_info
from spatialvla_ft.data.stats.statistics import dataset_statistics

POSE = ["ee.x", "ee.y", "ee.z", "ee.wx", "ee.wy", "ee.wz", "ee.gripper_pos"]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "arm", "v3.0", depth=False)


def edit_info(folder, change):
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def rename(folder, names):
    edit_info(folder, lambda info: info["features"]["action"].update(names=names))


def information(names, cameras=("observation.images.front",), shape=None, extra=()):
    features = {"action": Feature("action", "float32", shape or (len(names or ()),), names, {})}
    for camera in cameras:
        features[camera] = Feature(camera, "video", (64, 96, 3), None, {})
    for feature in extra:
        features[feature.key] = feature
    return Info("v3.0", 30.0, 1000, "", None, {}, "so101", features)


def stats(tmp_path, low, high):
    (tmp_path / "meta").mkdir(exist_ok=True)
    content = {"action": {"min": low, "max": high}}
    (tmp_path / "meta/stats.json").write_text(json.dumps(content))
    return tmp_path


def test_joints_make_a_grid_of_joint_space(folder):
    dataset = open_dataset(folder, card=None)
    statistics = dataset_statistics(dataset)
    actions = normalise(dataset.actions(), statistics).astype(np.float64)
    grid = ActionGrid.uniform(space=dataset.action_space)
    ids = grid.encode(actions)
    assert ids.shape == (sum(LENGTHS), 4)
    assert np.abs(grid.decode(ids)[:, :3] - np.clip(actions[:, :3], -1, 1)).max() < 0.01


def test_what_is_not_certain_is_refused_with_a_draft(folder):
    rename(folder, ["main_shoulder_pan", "main_shoulder_lift", "main_elbow_flex", "main_gripper"])
    with pytest.raises(DatasetError) as error:
        open_dataset(folder, card=None)
    said = str(error.value)
    assert "arm needs a card" in said
    assert "action: float32 (4,) ['main_shoulder_pan'" in said
    assert "save it as" in said
    text = said[said.index("schema_version") :]
    text = yaml.safe_dump(yaml.safe_load(text))
    (folder / "card.yaml").write_text(text)
    dataset = open_dataset(folder, card=None)
    assert dataset.action_space.names[0] == "main_shoulder_pan"
    np.testing.assert_array_equal(dataset[8].actions[0, :3], action_of(1, 1)[:3])


@pytest.mark.parametrize(
    ("names", "cameras", "doubt"),
    [
        (None, ("observation.images.front",), "have no names"),
        (("a.pos", "b.pos"), ("observation.images.front",), "end with gripper.pos"),
        (("x", "y"), ("observation.images.front",), "end with gripper.pos"),
        (("left_gripper.pos", "gripper.pos"), ("observation.images.front",), "several grippers"),
        (("a.pos", "gripper.pos"), ("observation.images.a", "observation.images.b"), "several cam"),
        (("a.pos", "gripper.pos"), (), "no camera"),
    ],
)
def test_doubts(tmp_path, names, cameras, doubt):
    info = information(names, cameras, shape=(2,))
    _, doubts = draft(info, stats(tmp_path, [0, 0], [1, 1]))
    assert len(doubts) == 1
    assert doubt in doubts[0]


def test_no_action_at_all(tmp_path):
    info = information(("a.pos",))
    del info.features["action"]
    _, doubts = draft(info, tmp_path)
    assert any("no feature called action" in doubt for doubt in doubts)


@pytest.mark.parametrize(
    ("low", "high", "scale"), [(0, 1, 1.0), (0.3, 99.0, 0.01), (-1, 1, None), (0, 2.5, None)]
)
def test_the_grippers_range(tmp_path, low, high, scale):
    raw, doubts = draft(
        information(("a.pos", "gripper.pos")), stats(tmp_path, [-9, low], [9, high])
    )
    assert bool(doubts) == (scale is None)
    if scale is not None:
        ops = raw["action"]["gripper"][0]["ops"]
        assert ops == ([{"scale": scale}] if scale != 1 else []) + [{"clip": [0, 1]}]


def test_without_statistics_the_gripper_is_not_certain(tmp_path):
    _, doubts = draft(information(("a.pos", "gripper.pos")), tmp_path)
    assert doubts == ["meta holds no statistics of action, so the gripper's range is unknown"]


def test_depth_that_is_not_lossless_is_left_out_and_said(tmp_path):
    lossy = {"video.is_depth_map": True, "video.pix_fmt": "gray12le"}
    depth = Feature("depth.front", "video", (64, 96, 1), None, lossy)
    raw, _ = draft(information(("a.pos", "gripper.pos"), extra=[depth]), tmp_path)
    assert "depth_scale" not in raw
    assert any("depth.front is left out: gray12le" in note for note in raw["notes"])


def poses(count, seed):
    """(x, y, z, rotation vector), gripper 0 to 100."""
    rng = np.random.default_rng(seed)
    turn = Rotation.random(count, random_state=seed).as_rotvec() * 0.4
    return np.column_stack([rng.normal(size=(count, 3)), turn, rng.uniform(0, 100, count)])


def with_poses(folder):
    """The dataset, its arm recorded as poses."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    at = 0
    for path in sorted(folder.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        for seed, key in enumerate(("action", "observation.state")):
            values = poses(sum(LENGTHS), seed)[at : at + len(table)].astype(np.float32)
            column = pa.array(list(values), pa.list_(pa.float32(), 7))
            table = table.set_column(table.schema.get_field_index(key), key, column)
        at += len(table)
        pq.write_table(table, path)
    for key in ("action", "observation.state"):
        edit_info(folder, lambda i, key=key: i["features"][key].update(names=POSE, shape=[7]))
    stats(folder, [0] * 7, [1] * 6 + [100])


def test_poses_stay_absolute_and_say_so(folder):
    with_poses(folder)
    dataset = open_dataset(folder, card=None)
    assert not dataset.action_space.deltas.any()
    assert [g.role for g in dataset.action_space.groups] == ["translation", "rotation", "gripper"]
    target = poses(sum(LENGTHS), 0)
    actions = dataset.actions()
    np.testing.assert_allclose(actions[:, :3], target[:, :3], rtol=1e-6)
    back = Rotation.from_euler("xyz", actions[:, 3:6]).as_rotvec()
    np.testing.assert_allclose(back, target[:, 3:6], atol=1e-5)
    np.testing.assert_allclose(actions[:, 6], target[:, 6] / 100, rtol=1e-5)


def test_deltas_are_made_where_the_card_asks_for_them(folder):
    with_poses(folder)
    raw, doubts = draft(read_info(folder), folder)
    assert not doubts
    raw["relabel"] = {"dims": [0, 6], "rule": "target_minus_current", "from": "pose"}
    text = yaml.safe_dump({"schema_version": 1, "cards": {"arm": raw}})
    (folder / "card.yaml").write_text(text)
    with pytest.raises(DatasetError, match="has no feature 'pose'"):
        open_dataset(folder, card=None)
    # The state as x, y, z, roll, pitch, yaw is a column of its own in such a dataset.
    import pyarrow as pa
    import pyarrow.parquet as pq

    current = poses(sum(LENGTHS), 1)
    euler = Rotation.from_rotvec(current[:, 3:6]).as_euler("xyz")
    pose = np.column_stack([current[:, :3], euler]).astype(np.float32)
    at = 0
    for path in sorted(folder.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        part = pose[at : at + len(table)]
        column = pa.array(list(part), pa.list_(pa.float32(), 6))
        pq.write_table(table.append_column("pose", column), path)
        at += len(table)
    edit_info(
        folder,
        lambda i: i["features"].update(pose={"dtype": "float32", "shape": [6], "names": None}),
    )
    dataset = open_dataset(folder, card=None)
    assert dataset.action_space.deltas.tolist() == [True] * 6 + [False]
    assert dataset.lengths.tolist() == list(LENGTHS)
    target, actions = poses(sum(LENGTHS), 0), dataset.actions()
    for i in range(sum(LENGTHS)):
        np.testing.assert_allclose(current[i, :3] + actions[i, :3], target[i, :3], atol=1e-5)
        reached = (
            Rotation.from_euler("xyz", actions[i, 3:6]).as_matrix()
            @ Rotation.from_rotvec(current[i, 3:6]).as_matrix()
        )
        wanted = Rotation.from_rotvec(target[i, 3:6]).as_matrix()
        np.testing.assert_allclose(reached, wanted, atol=1e-5)


def test_such_a_relabel_needs_an_absolute_pose(tmp_path):
    raw = {
        "version": "v3.0",
        "action": {
            "translation": ["action[0:3]"],
            "rotation": {"raw": "labelled_euler", "terms": ["action[3:6]"]},
            "gripper": ["action[6:7]"],
        },
        "relabel": {"dims": [0, 6], "rule": "target_minus_current", "from": "pose"},
    }
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump({"schema_version": 1, "cards": {"arm": raw}}))
    with pytest.raises(DatasetError, match="needs an end-effector action with reference: absolute"):
        load_cards(path)


LINKS = (0.12, 0.11, 0.09)


def planar(angles):
    """Poses of a flat arm of three links, joints in degrees."""
    bend = np.cumsum(np.deg2rad(angles.astype(np.float64)), axis=1)
    found = np.tile(np.eye(4), (len(angles), 1, 1))
    found[:, :3, :3] = Rotation.from_euler("z", bend[:, -1:]).as_matrix()
    found[:, 0, 3] = (np.cos(bend) * LINKS).sum(axis=1)
    found[:, 1, 3] = (np.sin(bend) * LINKS).sum(axis=1)
    return found


def test_forward_kinematics_that_the_user_brings(folder):
    dataset = open_dataset(folder, card=None, forward_kinematics=planar)
    assert dataset.action_space.names == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    assert dataset.action_space.deltas.tolist() == [True] * 6 + [False]
    sample = dataset[17]
    angles = action_of(1, 10)[:3].astype(np.float64)
    assert (sample.episode, sample.step) == (1, 10)
    # The state is the action less one everywhere: three degrees of turn in all.
    where = [np.cumsum(np.deg2rad(a)) for a in (angles, angles - 1)]
    reach = [np.array([np.sin(w) @ LINKS, np.cos(w) @ LINKS]) for w in where]
    np.testing.assert_allclose(sample.actions[0, 1], (reach[0] - reach[1])[0], atol=1e-6)
    np.testing.assert_allclose(sample.actions[0, 0], (reach[0] - reach[1])[1], atol=1e-6)
    np.testing.assert_allclose(sample.actions[0, 3:6], [0, 0, np.deg2rad(3)], atol=1e-6)
    np.testing.assert_allclose(sample.actions[0, 6], action_of(1, 10)[3] / 100, rtol=1e-6)
    assert not (folder / ".spatialvla_ft").exists()
    dataset_statistics(dataset)
    assert not (folder / ".spatialvla_ft").exists()


def test_forward_kinematics_are_refused_where_they_make_no_sense(folder):
    wrong = open_dataset(folder, card=None, forward_kinematics=lambda angles: angles)
    with pytest.raises(DatasetError, match=r"must return \(7, 4, 4\) poses for \(7, 3\) joints"):
        wrong.actions()
    card = open_dataset(folder, card=None).card
    blind = open_dataset(
        folder, card=card.model_copy(update={"proprio": None}), forward_kinematics=planar
    )
    with pytest.raises(DatasetError, match="give the card a proprio"):
        blind.actions()
    with_poses(folder)
    poses_already = open_dataset(folder, card=None, forward_kinematics=planar)
    with pytest.raises(DatasetError, match="this card's action is EEF_POS, absolute"):
        poses_already.actions()


def test_joint_deltas_are_deltas(folder):
    raw, _ = draft(read_info(folder), folder)
    raw["action"] |= {"reference": "delta", "joint_unit": "deg"}
    text = yaml.safe_dump({"schema_version": 1, "cards": {"arm": raw}})
    (folder / "card.yaml").write_text(text)
    space = open_dataset(folder, card=None).action_space
    assert space.deltas.tolist() == [True] * 3 + [False]
    assert space.units[:3] == ("deg",) * 3
    (folder / "card.yaml").write_text(re.sub(r" *- elbow_flex\n", "", text))
    with pytest.raises(DatasetError, match="joint_names has 2 names, the action 3 joints"):
        open_dataset(folder, card=None).action_space.names  # noqa: B018


def test_a_card_that_confuses_pictures_and_columns(folder):
    card = open_dataset(folder, card=None).card
    for cameras, said in (
        ({"primary": "observation.state"}, "is a column"),
        ({"primary": "observation.images.top"}, "has no feature"),
    ):
        term = types.SimpleNamespace(path=cameras["primary"])
        with pytest.raises(DatasetError, match=said):
            open_dataset(folder, card=card.model_copy(update={"cameras": {"primary": term}}))
