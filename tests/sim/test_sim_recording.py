import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.data.cards.files import load_cards
from spatialvla_ft.data.opening import open_dataset
from spatialvla_ft.inspection import draft_for, inspect_dataset
from spatialvla_ft.processes import Worker, WorkerError
from spatialvla_ft.sim import recorder
from spatialvla_ft.sim.recorder import Plan
from spatialvla_ft.sim.recording import encode_depth
from spatialvla_ft.sim.rlds import proprio_of


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    out = tmp_path_factory.mktemp("recording")
    arguments = (
        f"data record --robot robot_b --task touch --task pick --episodes 3 --seed 40 --out {out} "
        "--image-size 32 --camera-mode random --action-noise 0.1 --cameras front,wrist "
        "--distractors 1 --name demo --workers 2 --json"
    )
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_tfds_reads_what_was_recorded(recording):
    plan = Plan(
        robot="robot_b",
        tasks=("touch", "pick"),
        seed=40,
        action_noise=0.1,
        image_size=32,
        cameras=("front", "wrist"),
        camera_mode="random",
        distractors=1,
    )
    with Worker("sim_checks:recorded_again", plan, range(recording["attempted"])) as worker:
        want = [episode for episode in worker.recv() if episode is not None]
    with Worker("sim_checks:read_with_tfds", recording["path"]) as worker:
        found = worker.recv()
    assert recording["episodes"] == len(found) == len(want) == 3
    assert recording["steps"] == sum(len(episode["steps"]) for episode in found)
    for number, (episode, truth) in enumerate(zip(found, want, strict=True)):
        meta, steps = episode["meta"], episode["steps"]
        assert meta["episode_id"] == number
        assert meta["seed"] == truth.seed
        assert (meta["task"], meta["robot"]) == (truth.task.encode(), b"robot_b")
        assert meta["success"]
        last = len(steps) - 1
        assert [step["is_first"] for step in steps] == [t == 0 for t in range(len(steps))]
        assert [step["is_last"] for step in steps] == [t == last for t in range(len(steps))]
        assert [step["reward"] for step in steps] == [float(t == last) for t in range(len(steps))]
        np.testing.assert_array_equal([step["action"] for step in steps], truth.actions)
        for step, seen in zip(steps, truth.observations, strict=True):
            assert step["language_instruction"].decode() == truth.instruction
            assert step["observation"].keys() == seen.keys()
            for key, value in seen.items():
                got = step["observation"][key]
                if key.startswith("depth"):
                    assert got.dtype == np.uint16
                    image = np.asarray(Image.open(io.BytesIO(value)))[..., None]
                    np.testing.assert_array_equal(got, image)
                elif key.startswith("image"):
                    image = np.asarray(Image.open(io.BytesIO(value)))
                    assert got.shape == (32, 32, 3)
                    difference = np.abs(got.astype(int) - image)  # two JPEG decoders
                    assert difference.max() <= 16
                    assert difference.mean() < 2
                else:
                    np.testing.assert_array_equal(got, value)


def test_the_card_fits_the_schema(recording):
    path = Path(recording["path"]) / "card.yaml"
    card = load_cards(path)["demo"]
    assert card.control_hz == 10.0
    assert card.depth_scale == 1e-4
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))["cards"]["demo"]
    assert raw["cameras"] == {
        "primary": "observation.image_front",
        "wrist": "observation.image_wrist",
    }
    assert raw["intrinsics"]["wrist"] == "observation.intrinsics_wrist"
    assert raw["proprio"]["terms"][1] == "zeros(1)"


def test_the_card_says_how_it_was_recorded(recording, tmp_path):
    """Also once it has been to LeRobot and back."""
    told = load_cards(Path(recording["path"]) / "card.yaml")["demo"].recorded.model_dump()
    assert told == {
        "robot": "robot_b",
        "tasks": ["touch", "pick"],
        "camera_mode": "random",
        "cameras": ["front", "wrist"],
        "image_size": 32,
        "distractors": [1],
        "action_noise": 0.1,
        "seeds": (40, 39 + recording["attempted"]),
    }
    there, back = tmp_path / "demo_lerobot", tmp_path / "rlds"
    for source, target, to in ((recording["path"], there, "lerobot"), (there, back, "rlds")):
        command = ["data", "convert", str(source), str(target), "--to", to]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    assert load_cards(there / "card.yaml")["demo"].recorded.model_dump() == told
    (card,) = load_cards(next(back.rglob("card.yaml"))).values()
    assert card.recorded.model_dump() == told


def test_a_running_simulation_feels_as_its_recording(recording):
    dataset = open_dataset(recording["path"], card=None)
    for episode in dataset.episodes.tolist():
        state = dataset.frame_index.column("observation.state", episode)
        rows = dataset.subset(np.array([episode])).proprio()
        np.testing.assert_array_equal(proprio_of(state), rows)
        assert np.ptp(rows, axis=0)[[0, 1, 2]].min() > 0


def test_depth_keeps_a_tenth_of_a_millimetre():
    depth = np.array([[0.0, 0.12346, 6.4]], np.float32)
    units = np.asarray(Image.open(io.BytesIO(encode_depth(depth))))
    np.testing.assert_array_equal(units, [[0, 1235, 64000]])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--robot robot_x", ["robot_x", "robot_a"]),
        ("--task dance", ["dance", "touch"]),
        ("--episodes 0", ["--episodes", "1 or more"]),
        ("--name Bad-Name", ["Bad-Name"]),
        ("--cameras top", ["top", "front"]),
        ("--camera-mode shaky", ["shaky", "random"]),
        ("--image-size 0", ["image_size"]),
    ],
)
def test_bad_input_names_the_cure(tmp_path, arguments, words):
    command = ["data", "record", "--out", str(tmp_path), *arguments.split()]
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    for word in words:
        assert word in result.stderr


def test_existing_data_is_not_overwritten(tmp_path):
    (tmp_path / "robot_a_touch").mkdir()
    (tmp_path / "robot_a_touch" / "something").write_text("mine")
    result = CliRunner().invoke(app, ["data", "record", "--out", str(tmp_path)])
    assert result.exit_code != 0
    assert "robot_a_touch" in result.stderr
    assert "not empty" in result.stderr


def test_inspection_raises_no_false_alarm(recording):
    seen = inspect_dataset(recording["path"])
    assert [f for f in seen.findings if f.severity != "note"] == []
    assert {f.rule for f in seen.findings} <= {"hardly moves", "changing instruction"}
    drafted = draft_for(seen.source).to_card()
    assert drafted.action.terms == seen.card.action.terms
    for field in ("cameras", "depth", "depth_scale", "intrinsics", "extrinsics", "language"):
        assert getattr(drafted, field) == getattr(seen.card, field), field


@pytest.mark.parametrize(
    ("dies", "said"),
    [
        ("simulate", r"a process that simulates and draws died with signal SIGKILL"),
        ("write", r"the process that writes the dataset died with signal SIGKILL .*memory"),
    ],
)
def test_a_process_of_a_recording_that_dies_is_named(tmp_path, monkeypatch, dies, said):
    """Nothing takes the dataset's place."""
    started = recorder.Worker

    def worker(target, *arguments, **options):
        if target.endswith(f":{dies}"):
            return started("sim_checks:die_reading", **options)
        return started(target, *arguments, **options)

    monkeypatch.setattr(recorder, "Worker", worker)
    plan = Plan(robot="robot_a", tasks=("touch",), image_size=16)
    with pytest.raises(WorkerError, match=said):
        list(recorder.record_dataset(plan, episodes=1, out=tmp_path, name="demo"))
    assert not (tmp_path / "demo" / "1.0.0").exists()


@pytest.mark.slow
def test_recording_with_osmesa(tmp_path):
    """Its LLVM and TensorFlow's crash in one process; here neither is where the other is."""
    probe = "from mujoco.osmesa import GLContext; GLContext(8, 8).make_current()"
    environment = {**os.environ, "MUJOCO_GL": "osmesa"}
    if subprocess.run([sys.executable, "-c", probe], env=environment, check=False).returncode:
        pytest.skip("OSMesa is not installed (Debian: libosmesa6)")
    command = "data record --robot robot_b --episodes 1 --image-size 16 --json --out"
    done = subprocess.run(
        [sys.executable, "-m", "spatialvla_ft_cli", *command.split(), str(tmp_path)],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["episodes"] == 1
