import json
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from spatialvla_ft.actions import ActionGrid, fit_gaussians
from spatialvla_ft.actions.grid_io import load_grid
from spatialvla_ft.actions.spaces import ActionGroup, ActionSpace, end_effector_delta
from spatialvla_ft.cli.main import app

RNG = np.random.default_rng(0)
ACTIONS = np.column_stack([RNG.normal(0, 0.3, (300, 6)).clip(-1, 1), RNG.integers(0, 2, 300)])


def call(*arguments):
    return CliRunner().invoke(app, ["grids", *map(str, arguments)])


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "actions.npy", ACTIONS)
    return tmp_path / "actions.npy"


class StandIn:
    """A dataset in the robot's units: centimetres of motion, tenths of a radian."""

    name = "robot/1.0.0"
    action_space = end_effector_delta()
    episodes = np.arange(3)
    episode_lengths = np.array([120, 100, 80])
    card = SimpleNamespace(source_hash="")
    store = SimpleNamespace(statistics_dir=None)
    forward_kinematics = None

    def standardised(self, episode):
        parts = np.split(self.actions(), np.cumsum(self.episode_lengths)[:-1])
        return SimpleNamespace(action=parts[episode])

    def actions(self):
        return (ACTIONS * [0.02, 0.03, 0.01, 0.1, 0.2, 0.3, 1] + [*[0.001] * 6, 0]).astype("f4")


@pytest.fixture
def dataset(monkeypatch, tmp_path):
    from spatialvla_ft.data.stats import statistics

    stand_in = StandIn()
    monkeypatch.setattr("spatialvla_ft.data.open_dataset", lambda *_, **__: stand_in)
    monkeypatch.setattr(
        "spatialvla_ft.data.stats.statistics.dataset_statistics",
        lambda found: statistics.compute_statistics(found.actions(), np.arange(7) < 6),
    )
    return stand_in


def test_fit_a_file(file, tmp_path):
    out, picture = tmp_path / "grid.json", tmp_path / "grid.png"
    result = call("fit", file, "--out", out, "--plot", picture, "--min-sigma", 0.4)
    assert result.exit_code == 0, result.output
    gaussian = ActionGrid.from_gaussians(fit_gaussians(ACTIONS), min_sigma=0.4)
    assert load_grid(out) == gaussian.with_means(ACTIONS)
    assert picture.stat().st_size > 10_000
    assert "8194 tokens" in result.output
    assert "robot" not in result.output  # no statistics, so no robot units


@pytest.mark.parametrize("kind", ["gaussian", "quantile", "uniform"])
def test_json_report(file, tmp_path, kind):
    out = tmp_path / "grid.json"
    result = call("fit", file, "--kind", kind, "--bins", "5,7,3,4,6,2,2", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    grid = load_grid(out)
    assert (report["kind"], report["bins"]) == (kind, [5, 7, 3, 4, 6, 2, 2])
    assert (report["num_actions"], report["num_tokens"]) == (300, 155)
    error = grid.decode(grid.encode(ACTIONS)) - ACTIONS
    for index, name in enumerate(("x", "y", "z", "roll", "pitch", "yaw", "gripper")):
        found = report["reconstruction"][name]
        assert found["rmse"] == pytest.approx(np.sqrt(np.mean(error[:, index] ** 2)))
        assert found["max"] == pytest.approx(np.abs(error[:, index]).max())
        assert "unit" not in found
    assert (report["gaussians"] is None) == (kind != "gaussian")


def test_robot_units(dataset, tmp_path):
    """The error in metres is what remains after unnormalising, not a scaled guess."""
    from spatialvla_ft.actions.normalise import normalise, unnormalise
    from spatialvla_ft.data.stats.statistics import compute_statistics

    out = tmp_path / "grid.json"
    result = call("fit", tmp_path, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["source"] == "robot/1.0.0"
    statistics = compute_statistics(dataset.actions(), np.arange(7) < 6)
    normalised = normalise(dataset.actions(), statistics)
    grid = load_grid(out)
    before = unnormalise(normalised, statistics).astype("f8")
    after = unnormalise(grid.decode(grid.encode(normalised)), statistics).astype("f8")
    rmse = np.sqrt(np.mean((after - before) ** 2, axis=0))
    shown = [report["reconstruction"][name] for name in report["reconstruction"]]
    np.testing.assert_allclose([e["rmse_robot"] for e in shown], rmse, rtol=1e-4, atol=1e-9)
    assert [e["unit"] for e in shown[:6]] == ["m"] * 3 + ["rad"] * 3
    text = call("fit", tmp_path).output
    assert "not saved" in text
    assert "rad" in text


def test_joints(dataset, tmp_path):
    joints = ActionGroup("joint", tuple(f"q{i}" for i in range(6)), "rad", "joint")
    hand = ActionGroup("gripper", ("hand",), "1 = open, 0 = closed", "absolute")
    dataset.action_space = ActionSpace((joints, hand))
    out = tmp_path / "grid.json"
    result = call("fit", tmp_path, "--out", out, "--kind", "quantile", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert list(report["tokens"]) == ["q0", "q1", "q2", "q3", "q4", "q5", "hand"]
    assert load_grid(out).bins == (256,) * 6 + (2,)
    assert max(report["reconstruction"][f"q{i}"]["rmse"] for i in range(6)) < 0.01
    refused = call("fit", tmp_path, "--zero-bin")
    assert refused.exit_code == 1
    assert "leave zero_bin off" in refused.output


def test_plot(file, tmp_path, golden_checkpoint):
    picture = tmp_path / "grid.png"
    result = call("plot", golden_checkpoint, "--actions", file, "--out", picture, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "plot": str(picture),
        "bins": [16, 32, 8, 16, 16, 16, 2],
        "num_actions": 300,
    }
    assert picture.stat().st_size > 10_000


def test_a_new_folder_is_made_for_the_results(file, tmp_path):
    grid, picture = tmp_path / "new" / "grid.json", tmp_path / "newer" / "grid.png"
    result = call("fit", str(file), "--out", str(grid), "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert grid.is_file()
    assert picture.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "none.npy"), "none.npy does not exist"),
        (("fit", "none"), "neither a dataset directory nor a .npy"),
        (("fit", "FILE", "--bins", "16,32"), "bins needs 7 counts"),
        (("fit", "FILE", "--bins", "many"), "--bins is 'many'"),
        (("fit", "FILE", "--kind", "uniform", "--min-sigma", "1"), "fits no Gaussian"),
        (("fit", "RAW"), "actions[0, 1] (y) is 3, outside [-1, 1]; a file must hold NORMALISED"),
        (("fit", "WIDE"), "must have shape (n, 7)"),
        (("fit", "NPZ"), "none called 'actions'"),
        (("plot", "none.json"), "none.json does not exist"),
        (("plot", "FILE"), "is not JSON"),
    ],
)
def test_refuses(arguments, message, file, tmp_path):
    raw = ACTIONS.copy()
    raw[0, 1] = 3
    np.save(tmp_path / "raw.npy", raw)
    np.save(tmp_path / "wide.npy", np.zeros((3, 8)))
    np.savez(tmp_path / "two.npz", a=ACTIONS, b=ACTIONS)
    names = {"FILE": "actions.npy", "RAW": "raw.npy", "WIDE": "wide.npy", "NPZ": "two.npz"}
    result = call(*(tmp_path / names[a] if a in names else a for a in arguments))
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["fit", "plot"])
def test_help_has_an_example(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
