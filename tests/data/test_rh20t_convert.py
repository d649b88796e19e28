"""From a folder of scenes to a dataset that opens, through the command in tools/."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rh20t_scene import (
    INSTRUCTIONS,
    L515,
    distance_to_surfaces,
    points_in_base,
    write_scene,
    write_tasks,
)

from spatialvla_ft.converters.rh20t import convert, layout, streams
from spatialvla_ft.converters.rh20t.episode import Options
from spatialvla_ft.converters.rh20t.layout import configurations
from spatialvla_ft.data.opening import open_dataset

FILMED = [(robot.front, robot.in_hand[0]) for robot in map(configurations().get, (3, 6))]
ROOT = Path(__file__).resolve().parents[2]


def command(*args):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "convert_rh20t.py"), *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Two configurations, a failure, an uncalibrated scene and a person's demonstration."""
    root = tmp_path_factory.mktemp("raw")
    truths = [
        write_scene(root, 3, size=(640, 360), frames=24, videos=FILMED[0]),
        write_scene(root, 6, task="task_0002", frames=24, videos=FILMED[1]),
    ]
    write_scene(root, 3, user=2, videos=False, metadata={"rating": 1})
    write_scene(root, 3, user=3, videos=False, metadata={"calib": -1})
    write_scene(root, 3, user=4, videos=False, metadata={"calib": -1})
    person = truths[0].folder
    person.with_name(person.name + "_human").mkdir()
    out = tmp_path_factory.mktemp("out")
    done = command(root, "--tasks", write_tasks(root), "--out", out)
    return truths, done, out


def test_the_command_reports_what_it_did(converted):
    _, done, out = converted
    assert done.returncode == 0, done.stderr
    assert "6 scenes, 2 may be converted" in done.stdout
    assert "absolute: 2 scenes" in done.stdout
    assert "travel of the sum m" in done.stdout
    assert "skipped 2: not calibrated (calib: -1)" in done.stdout
    assert "skipped 1: rated below 2" in done.stdout
    assert "skipped 1: a person's demonstration" in done.stdout
    assert f"2 episodes, 22 steps in {out / 'rh20t' / '1.0.0'}" in done.stdout


def test_the_dataset_opens_with_its_card(converted):
    truths, done, out = converted
    assert done.returncode == 0, done.stderr
    assert [truth.size for truth in truths] == [(640, 360), (160, 90)]
    dataset = open_dataset(out / "rh20t" / "1.0.0", card=None, horizon=2)
    assert len(dataset) == 22
    for number, truth, task in ((3, truths[0], "task_0001"), (17, truths[1], "task_0002")):
        sample = dataset[number]
        assert sample.instruction == INSTRUCTIONS[task]
        assert sample.actions.shape == (2, 7)
        width, height = truth.size
        for slot, serial in zip(("primary", "wrist"), FILMED[number > 9], strict=True):
            np.testing.assert_allclose(sample.intrinsics[slot], truth.k[serial], rtol=1e-6)
            assert sample.images[slot].shape == (height, width, 3)
            depth = sample.depth[slot]
            points = points_in_base(sample.intrinsics[slot], sample.extrinsics[slot], depth)
            off, on_box = distance_to_surfaces(points[depth > 0])
            assert off.max() < 4e-3
            assert on_box.any()


def test_an_ambiguous_stream_stops_the_command_until_it_is_told(tmp_path):
    write_scene(tmp_path, 3, still=True, videos=False)
    tasks = write_tasks(tmp_path)
    args = (tmp_path, "--tasks", tasks, "--out", tmp_path / "out", "--no-depth")
    args += ("--camera", "primary=front")
    done = command(*args)
    assert done.returncode == 1
    assert "nothing moves" in done.stderr
    assert "--tcp absolute or --tcp difference" in done.stderr
    assert not (tmp_path / "out").exists()
    wrong = command(*args, "--tcp", "difference")
    assert wrong.returncode == 1
    assert "skipped 1: calibration and tool poses disagree" in wrong.stdout
    assert not (tmp_path / "out").exists()


def scenes(root, *plans):
    for user, (number, kind, still) in enumerate(plans):
        write_scene(root, number, kind=kind, still=still, user=user, videos=False)
    return layout.find_scenes(root)


def prepared(root, *plans):
    tally = convert.Tally()
    tasks = {"task_0001": "Press"}
    out = convert.prepare_all(scenes(root, *plans), tasks, Options({"primary": "front"}), tally)
    assert not tally.skipped
    return out


def test_scenes_decide_together(tmp_path):
    still, moving = (3, "absolute", True), (3, "absolute", False)
    other = (3, "difference", False)
    assert convert.decide_tcp_kind(prepared(tmp_path / "a", moving, still)) == "absolute"
    assert convert.decide_tcp_kind(prepared(tmp_path / "b", other, other)) == "difference"
    for name, plans in {"c": (still,), "d": (moving, other), "e": (moving, still, still)}.items():
        with pytest.raises(ValueError, match="cannot tell whether"):
            convert.decide_tcp_kind(prepared(tmp_path / name, *plans))


def test_cameras_by_name_and_all(tmp_path):
    found = scenes(tmp_path, (5, "absolute", False), (5, "absolute", False))
    robot = configurations()[5]
    cameras = convert.parse_cameras(["all"], found)
    assert set(cameras.values()) == {robot.front, L515, *robot.in_hand[:2]}
    assert cameras["cam_f0172289"] == L515
    assert convert.parse_cameras(["a=front", "b=123"], found) == {"a": "front", "b": "123"}
    for wrong in (["front"], ["a=front", "a=wrist"], ["A=front"], ["a="]):
        with pytest.raises(ValueError, match="camera: got"):
            convert.parse_cameras(wrong, found)
    mixed = scenes(tmp_path / "mixed", (1, "absolute", True), (7, "absolute", True))
    (mixed[0].camera(L515) / "color.mp4").unlink()
    with pytest.raises(ValueError, match="share none"):
        convert.parse_cameras(["all"], mixed)


def test_mistakes_about_folders_are_told(tmp_path):
    with pytest.raises(ValueError, match="has no folder named task_0000"):
        layout.find_scenes(tmp_path)
    (tmp_path / "task_0001_user_0001_scene_0001_cfg_0008").mkdir()
    with pytest.raises(ValueError, match="configuration 8 is unknown"):
        layout.find_scenes(tmp_path)
    path = tmp_path / "task_description.json"
    path.write_text(json.dumps({"task_0001": "Press"}))
    with pytest.raises(ValueError, match="task_description_english"):
        layout.read_tasks(path)


@pytest.mark.parametrize(
    ("widths", "want"),
    [
        ([90, 90, 90], [1, 1, 1]),
        ([10, 10, 10], [0, 0, 0]),
        ([90, 60, 59, 60, 62, 90], [1, 0, 0, 0, 0, 1]),  # closes on something wide
        ([90, 88, 86, 84, 82, 80], [1, 1, 1, 0, 0, 0]),  # slowly
        ([20, 20, 40, 95, 93, 92, 95], [0, 0, 1, 1, 1, 1, 1]),  # a small dip is no closing
        ([50, 95, 40, 80, 20], [0, 1, 0, 1, 0]),
    ],
)
def test_open_or_closed(widths, want):
    np.testing.assert_array_equal(streams.is_open(np.array(widths, float), 95), want)


def test_nearest_against_a_loop():
    rng = np.random.default_rng(0)
    times = np.unique(rng.integers(0, 5000, 60))
    at = rng.uniform(0, 5000, 40)
    got = streams.nearest(times, at, "x", 1e9)
    assert [abs(times[i] - t) for i, t in zip(got, at, strict=True)] == [
        min(abs(times - t)) for t in at
    ]
    assert streams.nearest(np.array([7]), np.array([5.0, 9.0]), "x", 10).tolist() == [0, 0]
