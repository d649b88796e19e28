"""`data index` and `data stats`: output, exit codes and the cure in every error."""

import json

import numpy as np
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.data import open_dataset

RUN = CliRunner()


def test_index(demo):
    done = RUN.invoke(app, ["data", "index", str(demo)])
    assert done.exit_code == 0
    assert "demo/1.0.0: 36 steps in 9 episodes" in done.stdout
    assert "train 6, val 3" in done.stdout
    assert (demo / "frame_index" / "meta.json").exists()


def test_index_json(demo, tmp_path):
    out = tmp_path / "index"
    arguments = ["data", "index", str(demo), "--out", str(out), "--no-crc", "--json"]
    done = RUN.invoke(app, arguments)
    summary = json.loads(done.stdout)
    assert summary["steps"] == 36
    assert summary["index"] == str(out)
    assert summary["crc_verified"] is False


def test_index_fails_with_the_cure(tmp_path):
    done = RUN.invoke(app, ["data", "index", str(tmp_path)])
    assert done.exit_code == 1
    assert "give the version directory" in done.stderr
    assert not done.stdout.strip()


def test_stats(demo):
    done = RUN.invoke(app, ["data", "stats", str(demo)])
    assert done.exit_code == 0
    assert "27 actions of 6 episodes" in done.stdout
    assert "pitch, rad" in done.stdout


def test_stats_json(demo):
    done = RUN.invoke(app, ["data", "stats", str(demo), "--split", "val", "--json"])
    entry = json.loads(done.stdout)["demo/1.0.0"]
    actions = open_dataset(demo, card=None, split="val").actions()
    np.testing.assert_allclose(entry["action"]["max"], actions.max(axis=0))
    assert entry["num_trajectories"] == 3


def test_stats_without_a_card(zoo):
    done = RUN.invoke(app, ["data", "stats", str(zoo)])
    assert done.exit_code == 1
    assert "card.yaml" in done.stderr


def test_help_has_an_example():
    for command in ("index", "stats"):
        done = RUN.invoke(app, ["data", command, "--help"])
        assert f"spatialvla-ft data {command}" in done.stdout


def test_statistics_of_a_mixture(demo, tmp_path):
    """Every dataset, what was dropped, and all as drawn; the fits of what is not excluded."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "schema_version: 1\nmixtures:\n  mine:\n"
        f"    demo/1.0.0: {{weight: 3, path: {demo}, no_ops: {{tolerance: 1.0}}}}\n"
    )
    command = ["data", "stats", "--mixture", "mine", "--file", str(file)]
    done = RUN.invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["shares"] == {"demo/1.0.0": 1.0}
    gone, of = found["dropped"]["demo/1.0.0"]["steps without motion"]
    assert of == 27
    assert found["datasets"]["demo/1.0.0"]["num_transitions"] == 27 - gone
    assert set(found["gaussians"]) == {*"xyz", "theta", "phi", "r", "roll", "pitch", "yaw"}
    shown = RUN.invoke(app, command)
    assert "100.00% of the draws" in shown.output
    assert f"{gone} of 27 steps without motion left out" in shown.output
    excluded = RUN.invoke(app, [*command, "--exclude", "demo"])
    assert excluded.exit_code == 1
    both = RUN.invoke(app, [*command, str(demo)])
    assert both.exit_code == 1
    assert "and not both" in both.stderr
