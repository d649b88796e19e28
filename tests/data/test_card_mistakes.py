"""A mistake in a user's card names file, line, dataset, field, what was written and the cure."""

import numpy as np
import pytest

from spatialvla_ft.data import DatasetError, load_cards, standardise

GOOD = """schema_version: 1
cards:
  mine:
    version: 1.0.0
    control_hz: 10
    action:
      translation: ["action[0:3]"]
      rotation: {raw: labelled_euler, terms: ["action[3:6]"]}
      gripper: [{src: "action[-1:]", ops: [{clip: [0, 1]}, invert]}]
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("invert]", "flip]", r":9: cards\.mine\.action\.gripper\.0: unknown op 'flip'; there are"),
        ("[{clip: [0, 1]}, invert]", "invert", r":9: .*ops is a list, got 'invert'; write it in"),
        ("[0, 1]", "[0, high]", r":9: .*clip must be a number, got 'high'"),
        ("[0, 1]", "[1, 0]", r":9: .*low < high, got \[1, 0\]"),
        ("invert]", "{zlib_float32: 0.5}]", r":9: .*number of columns, 1 or more, got 0\.5"),
        ("control_hz", "control_hertz", r":5: .*unknown key, did you mean 'control_hz'\?"),
        ("hz: 10", "hz: fast", r":5: cards\.mine\.control_hz: .* valid number.*got 'fast'"),
        ('["action[0:3]"]', '"action[0:3]"', r":7: .*list, got 'action\[0:3\]'; write it in \[ \]"),
        ("1.0.0", "1.0", r":4: cards\.mine\.version: .*got 1\.0; write it in quotes"),
        ("labelled_euler", "euler", r":8: .*'labelled_euler', .*got 'euler'"),
        ("action[-1:]", "action[-1]", r":9: .*'action\[-1\]' is no term; write path, path\[a:b\]"),
    ],
)
def test_mistakes(tmp_path, old, new, told):
    path = tmp_path / "card.yaml"
    path.write_text(GOOD)
    assert set(load_cards(path)) == {"mine"}
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(DatasetError, match=r"card\.yaml" + told):
        load_cards(path)


def test_all_mistakes_at_once(tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text(GOOD.replace("invert]", "flip]").replace("hz: 10", "hz: 0"))
    with pytest.raises(DatasetError) as told:
        load_cards(path)
    assert str(told.value).count(f"{path}:") == 2


OWN = """schema_version: 1
defaults: {language: {key: task}}
cards:
  quaternion_and_gripper_width:
    version: 1.0.0
    action:
      translation: ["command[0:3]"]
      rotation: {raw: quat_xyzw, terms: [{src: "command[3:7]", ops: [{quat_to_euler: xyzw}]}]}
      gripper: [{src: width, ops: [{scale: 12.5}, {clip: [0, 1]}]}]
  joints_only:
    version: 1.0.0
    action: {encoding: JOINT_POS, joints: [command], reference: absolute}
    language: {kind: none, key: null}
  two_arms_without_wrists:
    version: 1.0.0
    action:
      arms:
        left: {translation: ["command[0:3]"], gripper: ["command[3:4]"]}
        right: {translation: ["command[4:7]"], gripper: [zeros(1)]}
"""


def test_datasets_of_ones_own_need_no_code(tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text(OWN)
    cards = load_cards(path)
    rng = np.random.default_rng(0)
    command = rng.normal(size=(5, 7))
    command[:, 3:7] = [0, 0, np.sin(0.2), np.cos(0.2)]
    width = np.linspace(0, 0.1, 5, dtype=np.float32)
    raw = {"command": command, "width": width, "task": np.array(["stack"] * 5, object)}

    one = standardise(cards["quaternion_and_gripper_width"], raw)
    np.testing.assert_allclose(one.action[:, :3], command[:, :3], rtol=1e-6)
    np.testing.assert_allclose(one.action[:, 3:6], [[0, 0, 0.4]] * 5, atol=1e-6)
    np.testing.assert_allclose(one.action[:, 6], [0, 0.3125, 0.625, 0.9375, 1], rtol=1e-6)
    assert one.language == ["stack"] * 5
    assert one.proprio is None
    assert one.images == {}

    joints = standardise(cards["joints_only"], raw)
    np.testing.assert_array_equal(joints.action, command.astype(np.float32))
    assert joints.language is None

    arms = standardise(cards["two_arms_without_wrists"], raw)
    np.testing.assert_array_equal(arms.action[:, :7], command.astype(np.float32))
    np.testing.assert_array_equal(arms.action[:, 7], 0)
