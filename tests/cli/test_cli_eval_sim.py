"""`eval sim`: numbers of distractors, wrong objects, and the same scene with the other word."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.evaluation.outcome import wilson_interval

SIM = ("eval", "sim", "--robot", "robot_b", "--policy", "no-motion", "--image-size", "16")


def invoke(*arguments, columns="200"):
    return CliRunner().invoke(app, [*SIM, *arguments], env={"COLUMNS": columns})


def test_swap_test(tmp_path):
    out = tmp_path / "eval" / "still.json"
    options = ("--episodes", "3", "--seed", "30", "--distractors", "0,1,2", "--swap-test")
    done = invoke(*options, "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    (short,) = json.loads(done.stdout)
    (whole,) = json.loads(out.read_text())
    assert short["settings"]["distractors"] == [0, 1, 2]
    assert (short["episodes"], short["swap"]["episodes"]) == (3, 2)
    assert short["wrong_object_interval"] == list(wilson_interval(0, 3))
    assert short["swap"]["chance"] == pytest.approx((1 / 4 + 1 / 9) / 2)
    assert short["swap"]["followed_interval"] == list(wilson_interval(0, 2))
    assert "results" not in short
    assert "traces" not in short["swap"]
    assert [r["seed"] for r in whole["swap"]["results"]] == [31, 32]
    assert set(whole["swap"]["traces"]) == {"31", "32"}


def test_table():
    done = invoke("--episodes", "2", "--seed", "31", "--distractors", "1", "--swap-test")
    assert done.exit_code == 0, done.output
    for text in ("wrong object", "0/2 = 0%", "0% .. 66%", "other word", "followed", "25%"):
        assert text in done.stdout
    assert "a policy that does not read" in " ".join(done.stdout.split())


def test_conditions_of_the_demonstrations(tmp_path):
    """The documented way: record with the defaults, evaluate without options."""
    record = f"data record --robot robot_b --episodes 2 --image-size 16 --out {tmp_path}"
    done = CliRunner().invoke(app, record.split())
    assert done.exit_code == 0, done.output
    data = tmp_path / "robot_b_touch" / "1.0.0"
    plain = ["eval", "sim", "--policy", "mean-action", "--dataset", str(data), "--episodes", "2"]
    done = CliRunner().invoke(app, [*plain, "--json"])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)
    assert (found["robot"], found["task"]) == ("robot_b", "touch")
    settings = {"image_size": 16, "camera_mode": "fixed", "distractors": [1]}
    assert found["settings"].items() >= settings.items()
    assert found["conditions"]["dataset"] == "robot_b_touch/1.0.0"
    told = " ".join(done.stderr.split())
    assert "as robot_b_touch/1.0.0 was recorded: robot robot_b; task touch; image-size 16" in told
    assert "warning" not in told

    done = CliRunner().invoke(app, [*plain, "--seed", "1", "--camera-mode", "random", "--json"])
    (found,) = json.loads(done.stdout)
    assert found["settings"]["camera_mode"] == "random"
    told = " ".join(done.stderr.split())
    assert "--camera-mode is random, but robot_b_touch/1.0.0 was recorded with fixed" in told
    assert "the policy may know these" in told


def test_a_robot_must_be_known():
    done = CliRunner().invoke(app, ["eval", "sim", "--policy", "no-motion", "--episodes", "1"])
    assert done.exit_code == 1
    assert "give the robot: --robot robot_a or --robot robot_b" in " ".join(done.stderr.split())


def test_without_the_swap_test_nothing_is_said_of_it():
    done = invoke("--episodes", "1", "--json")
    (short,) = json.loads(done.stdout)
    assert short["swap"] is None
    assert short["settings"]["distractors"] == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--distractors", "1;2"], "distractors: got '1;2', allowed are a number or several"),
        (["--distractors", ""], "allowed are a number or several"),
        (["--distractors", "0,6"], "distractors: got 6, allowed for 'touch' are 0 to 5"),
        (["--swap-test"], "ask for distractors, 1 or a list as 0,1,1,2,2"),
        (
            ["--swap-test", "--distractors", "1", "--task", "touch", "--task", "place_behind"],
            "'place_behind' names two blocks; choose a task that names one: touch, pick",
        ),
    ],
)
def test_refusals(arguments, message):
    done = invoke("--episodes", "2", *arguments)
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
