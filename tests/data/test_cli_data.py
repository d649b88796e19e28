"""`data index` and `data stats`: output, exit codes and the cure in every error."""

import functools
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from spatialvla_ft.actions.fit import axis_tables, fit_grid
from spatialvla_ft.actions.normalise import normalise
from spatialvla_ft.cli.main import app
from spatialvla_ft.data import open_dataset
from spatialvla_ft.data.rlds.episodes import RldsStore
from spatialvla_ft.data.stats.statistics import compute_statistics

RUN = CliRunner()
STATS = ("data", "stats")


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
    report = json.loads(done.stdout)
    assert report["source"] == {"kind": "dataset", "name": "demo/1.0.0", "split": "val"}
    entry = report["datasets"]["demo/1.0.0"]
    actions = open_dataset(demo, card=None, split="val").actions()
    found = entry["statistics"]["dimensions"]
    assert list(found) == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    for column, numbers in zip(actions.T, found.values(), strict=True):
        assert numbers["max"] == column.max()
        assert numbers["q99"] == pytest.approx(np.quantile(column, 0.99))
    assert entry["statistics"]["episodes"] == 3
    assert (found["x"]["unit"], found["gripper"]["normalised"]) == ("m", False)
    assert entry["fits"] == report["as_drawn"]["fits"]


def test_stats_edges_are_those_of_the_grid_and_exact(demo):
    report = json.loads(RUN.invoke(app, ["data", "stats", str(demo), "--json"]).stdout)
    dataset = open_dataset(demo, card=None)
    actions = normalise(dataset.actions(), compute_statistics(dataset.actions(), np.arange(7) < 6))
    grid = fit_grid("quantile", actions)
    fit = report["datasets"]["demo/1.0.0"]["fits"]["quantile"]
    assert set(fit) == set(grid.edges)
    for axis, edges in grid.edges.items():
        np.testing.assert_allclose(fit[axis]["edges"], edges, atol=1e-9)
        assert fit[axis]["error"] == 0
    shown = RUN.invoke(app, ["data", "stats", str(demo)]).stdout
    assert f"{grid.edges['roll'][3]:.3g}" in shown
    assert "All numbers are exact" in shown


def test_stats_say_how_far_edges_may_be_off(demo, monkeypatch):
    """With room for few distinct numbers, the bound stands in both outputs."""
    few = functools.partial(axis_tables, distinct=10, cells=512)
    monkeypatch.setattr("spatialvla_ft.data.stats.fits.axis_tables", few)
    done = RUN.invoke(app, ["data", "stats", str(demo), "--json"])
    fit = json.loads(done.stdout)["as_drawn"]["fits"]["quantile"]
    assert fit["roll"]["error"] == 2 / 512
    assert fit["theta"]["error"] == np.pi / 512
    assert "at most 0.01 below the true" in RUN.invoke(app, ["data", "stats", str(demo)]).stdout


def test_stats_in_the_layout_of_a_checkpoint(demo):
    done = RUN.invoke(app, ["data", "stats", str(demo), "--checkpoint-json"])
    entry = json.loads(done.stdout)["demo/1.0.0"]
    assert entry["num_trajectories"] == 6
    actions = open_dataset(demo, card=None).actions()
    np.testing.assert_allclose(entry["action"]["mean"], actions.mean(axis=0), rtol=1e-4)
    both = RUN.invoke(app, ["data", "stats", str(demo), "--checkpoint-json", "--json"])
    assert both.exit_code == 1


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
    part = found["datasets"]["demo/1.0.0"]
    assert part["share"] == 1.0
    gone, of = part["dropped"]["steps without motion"]
    assert of == 27
    assert part["statistics"]["count"] == 27 - gone
    axes = {*"xyz", "theta", "phi", "r", "roll", "pitch", "yaw"}
    assert set(found["as_drawn"]["fits"]["gaussian"]) == axes
    shown = RUN.invoke(app, command)
    assert "100.00% of the draws" in shown.output
    assert f"{gone} of 27 steps without motion left out" in shown.output
    excluded = RUN.invoke(app, [*command, "--exclude", "demo"])
    assert excluded.exit_code == 1
    both = RUN.invoke(app, [*command, str(demo)])
    assert both.exit_code == 1
    assert "and not both" in both.stderr


def test_several_processes_find_the_same_and_nothing_is_read_twice(mine, demo, monkeypatch):
    serial = RUN.invoke(app, [*STATS, *mine, "--json", "--workers", "1"])
    assert serial.exit_code == 0, serial.output
    kept = {path: path.read_bytes() for path in demo.parents[1].rglob("*.json")}
    for path in kept:
        if path.parent.name == "statistics":
            path.unlink()
    parallel = RUN.invoke(app, [*STATS, *mine, "--json", "--workers", "2"])
    assert parallel.exit_code == 0, parallel.output
    assert json.loads(parallel.stdout) == json.loads(serial.stdout)
    assert {path: path.read_bytes() for path in demo.parents[1].rglob("*.json")} == kept

    def refuse(self, episode, keys):
        raise AssertionError("read again")

    monkeypatch.setattr(RldsStore, "trajectory", refuse)
    assert RUN.invoke(app, [*STATS, *mine, "--workers", "2"]).exit_code == 0
    card = demo / "card.yaml"
    card.write_text(card.read_text().replace("action[0:3]", "action[3:6]"))
    changed = RUN.invoke(app, [*STATS, *mine, "--workers", "1"])
    assert str(changed.exception) == "read again"


def test_a_list_of_the_file_is_left_out_of_the_fits(mine):
    def fits(*more):
        done = RUN.invoke(app, [*STATS, *mine, "--json", "--workers", "1", *more])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        return found["excluded_from_fits"], found

    excluded, found = fits("--exclude", "hands")
    assert excluded == ["other/1.0.0"]
    alone = found["datasets"]["demo/1.0.0"]["fits"]["gaussian"]
    for axis, fit in found["as_drawn"]["fits"]["gaussian"].items():
        assert fit == pytest.approx(alone[axis])
    assert found["as_drawn"]["statistics"]["count"] == 27
    assert fits("--exclude", "other")[1] == found
    assert fits()[1]["as_drawn"] != found["as_drawn"]
    for name in ("hand", "demos"):
        done = RUN.invoke(app, [*STATS, *mine, "--exclude", name])
        assert done.exit_code == 1
        assert "did you mean" in done.stderr
        assert "Lists of datasets: hands" in " ".join(done.stderr.split())
    shown = RUN.invoke(app, [*STATS, *mine, "--exclude", "hands", "--every-fit"]).output
    assert "without other/1.0.0" in shown
    assert shown.count("Fits of") == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--exclude", "x"), "--exclude: for --mixture only"),
        (("--root", "x"), "--root: for --mixture only"),
        (("--workers", "0"), "--workers is 0"),
    ],
)
def test_stats_refuse_what_does_not_belong(demo, options, words):
    done = RUN.invoke(app, ["data", "stats", str(demo), *options])
    assert done.exit_code == 1
    assert words in done.stderr
