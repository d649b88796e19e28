"""Streams of tool poses in `data inspect`: one scene of each kind, and those that tell nothing."""

import json

import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.data import load_cards
from spatialvla_ft.data.store import Field
from spatialvla_ft.inspection import inspect_dataset
from spatialvla_ft.inspection.tcp_kind import tcp_kind

HZ, EPISODES, STEPS = 8.0, 6, 60
CARD = """\
schema_version: 1
cards:
  scene:
    version: 1.0.0
    robot: a robot
    control_hz: 8
    cameras: null
    language: {{kind: none, key: null}}
    action:
      encoding: EEF_POS
      translation: ["action[0:3]"]
      rotation: {{raw: labelled_euler, terms: ["action[3:6]"]}}
      gripper: ["action[-1:]"]
      {reference}
    proprio: {{encoding: POS_EULER, terms: ["observation.state"]}}
"""


class Scene:
    """A dataset in memory: a state, an action and a raw column of poses."""

    name, version, format, fps, robot = "scene", "1.0.0", "RLDS", None, None

    def __init__(self, state, action, extra=None):
        self.columns = {"observation.state": state, "action": action}
        if extra is not None:
            self.columns["observation.tcp_base"] = extra
        self.fields = tuple(
            Field(key, "numbers", "float32", values[0].shape[1:], "step")
            for key, values in self.columns.items()
        )
        self.episode_lengths = np.array([len(values) for values in state])
        self.splits = {"train": range(len(state))}

    def trajectory(self, episode, keys):
        return {key: self.columns[key][episode].astype(np.float32) for key in keys}


def poses(seed, *, speed=0.15, steps=STEPS):
    """(T, 6) x y z roll pitch yaw of a smooth path in front of a robot, one per step."""
    rng = np.random.default_rng(seed)
    knots = np.arange(0, steps / HZ + 3, 1.5)
    ways = CubicSpline(knots, rng.uniform(-1, 1, (len(knots), 3)) * speed * 0.75)
    turns = CubicSpline(knots, rng.uniform(-0.3, 0.3, (len(knots), 3)) * min(1, speed))
    times = np.arange(steps) / HZ
    return np.concatenate([np.array([0.45, -0.1, 0.3]) + ways(times), turns(times)], axis=1)


def changes(path):
    """(T, 6) to the next pose; the last stays."""
    return np.concatenate([np.diff(path, axis=0), np.zeros((1, 6))])


def with_hand(path, seed):
    hand = np.random.default_rng(seed).integers(0, 2, (len(path), 1))
    return np.concatenate([path, hand], axis=1)


def scene(state, action, *, extra=None, **how):
    paths = [poses(i, **how) for i in range(EPISODES)]
    return Scene(
        [with_hand(state(path), i) for i, path in enumerate(paths)],
        [with_hand(action(path), i + 50) for i, path in enumerate(paths)],
        None if extra is None else [extra(path) for path in paths],
    )


def same(path):
    return path


@pytest.fixture
def look(monkeypatch, tmp_path):
    """Inspect a scene by a card, with an optional line about the action's reference."""

    def inspect(made, reference=""):
        monkeypatch.setattr("spatialvla_ft.inspection.look.open_source", lambda _: made)
        (tmp_path / "card.yaml").write_text(CARD.format(reference=reference))
        return inspect_dataset("x", card=load_cards(tmp_path / "card.yaml")["scene"])

    return inspect


def about_poses(seen):
    return [f for f in seen.findings if f.rule in ("pose or difference", "absolute or delta")]


def test_a_state_of_poses_and_an_action_of_differences_are_fine(look):
    made = scene(same, changes)
    seen = look(made)
    state, action = seen.poses
    assert (state.name, state.kind, state.declared) == ("proprio", "absolute", "absolute")
    assert (action.kind, action.declared) == ("difference", "difference")
    assert action.name == "action x y z roll pitch yaw"
    assert state.votes == {"absolute": EPISODES, "difference": 0, "ambiguous": 0}
    assert about_poses(seen) == []
    numbers = [
        tcp_kind(values[:, :6].astype(np.float32), np.arange(STEPS) / HZ).numbers
        for values in made.columns["observation.state"]
    ]
    for name, value in state.numbers.items():
        assert value == pytest.approx(np.median([n[name] for n in numbers])), name
    assert state.numbers["interval s"] == pytest.approx(1 / HZ)


def test_a_state_of_differences_is_an_error(look):
    seen = look(scene(changes, changes))
    assert seen.poses[0].kind == "difference"
    (finding,) = about_poses(seen)
    assert (finding.severity, finding.where) == ("error", "proprio")
    assert "looks difference" in finding.evidence
    assert "nearer to 0 than a tool is to its base" in finding.evidence
    assert f"({EPISODES} of {EPISODES})" in finding.evidence


def test_an_action_of_poses_is_told_once(look):
    seen = look(scene(same, same))
    assert seen.poses[1].kind == "absolute"
    found = about_poses(seen)
    assert {f.rule for f in found} == {"absolute or delta"}
    assert {f.severity for f in found} == {"error"}
    declared = look(scene(same, same), "reference: absolute")
    assert declared.poses[1].declared == "absolute"
    assert about_poses(declared) == []
    wrong = look(scene(same, changes), "reference: absolute")
    assert {f.severity for f in about_poses(wrong)} == {"error"}


def test_a_robot_that_stands_still_is_ambiguous_everywhere(look, tmp_path):
    """Neither reading is taken: terminal, page and JSON say so, with the reasons."""
    seen = look(scene(same, changes, speed=0.0))
    assert [stream.kind for stream in seen.poses] == ["ambiguous", "ambiguous"]
    for finding in about_poses(seen):
        assert finding.severity == "note"
        assert "AMBIGUOUS" in finding.evidence
        assert "nothing moves" in finding.evidence
    page = tmp_path / "page.html"
    command = ["data", "inspect", "x", "--card", str(tmp_path / "card.yaml")]
    shown = CliRunner().invoke(app, [*command, "--out", str(page)], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    for text in (shown.stdout, page.read_text()):
        assert text.count("AMBIGUOUS") == 4  # of each stream a finding and a cell
        assert "nothing moves" in text
        assert "lag-1 autocorrelation" in text
    answer = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [stream["kind"] for stream in answer["poses"]] == ["ambiguous"] * 2
    assert answer["poses"][0]["votes"]["ambiguous"] == EPISODES


def test_episodes_that_disagree_are_ambiguous(look):
    """Half of a dataset converted one way, half the other."""
    made = scene(same, changes)
    for episode in (0, 2, 4):
        state = made.columns["observation.state"][episode]
        state[:, :6] = changes(state[:, :6])
    stream = look(made).poses[0]
    assert stream.kind == "ambiguous"
    assert (stream.votes["absolute"], stream.votes["difference"]) == (3, 3)


def test_short_episodes_are_not_judged(look):
    seen = look(scene(same, changes, steps=12))
    for stream in seen.poses:
        assert (stream.kind, stream.judged, stream.too_short) == ("ambiguous", 0, EPISODES)
        assert "no episode has 20 steps" in stream.told()


@pytest.mark.parametrize(("made", "kind"), [(same, "absolute"), (changes, "difference")])
def test_a_column_that_the_card_does_not_read_is_told_too(look, made, kind):
    """With a quaternion, w first or last: the positions decide."""

    def with_quaternion(path):
        turned = Rotation.from_euler("xyz", path[:, 3:]) * Rotation.from_euler("x", 3.0)
        return np.concatenate([made(path)[:, :3], turned.as_quat()], axis=1)

    stream = look(scene(same, changes, extra=with_quaternion)).poses[2]
    assert (stream.name, stream.declared, stream.kind) == ("observation.tcp_base", None, kind)
    assert about_poses(look(scene(same, changes, extra=with_quaternion))) == []
