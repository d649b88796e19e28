"""The converter against scenes whose every pose, pixel and depth is known."""

import io
import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rh20t_scene import L515, START, distance_to_surfaces, points_in_base, render, write_scene
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from spatialvla_ft.converters.rh20t.episode import (
    DEPTH_SCALE,
    Options,
    base_from_tcp,
    convert_scene,
    prepare,
)
from spatialvla_ft.converters.rh20t.layout import SkipSceneError, configurations, find_scenes

TASKS = {"task_0001": "Press the button"}
FOUR = {"front": "front", "side": L515, "wrist": "wrist"}


def load(truth, options, kind="absolute"):
    (scene,) = (s for s in find_scenes(truth.folder.parents[1]) if s.folder == truth.folder)
    prepared = prepare(scene, TASKS, options)
    return prepared, convert_scene(prepared, kind, options)


@pytest.fixture(scope="module", params=[4, 5])
def full(request, tmp_path_factory):
    number = request.param
    robot = configurations()[number]
    cameras = {**FOUR, "wrist_b": robot.in_hand[1]} if number == 5 else FOUR
    truth = write_scene(tmp_path_factory.mktemp("raw"), number)
    options = Options(cameras)
    return truth, *load(truth, options), options


def steps_at(truth, episode, options):
    start = max([t[0] for t in truth.times.values()])
    return start + np.arange(len(episode.actions) + 1) * 1000 / options.hz


def picture(blob):
    return np.asarray(Image.open(io.BytesIO(blob)))


def test_every_camera_sees_the_table_where_it_is(full):
    """Each pixel's depth, through K and extrinsics, lies on the table or the box."""
    _, _, episode, options = full
    for slot in options.cameras:
        for observation in episode.observations[::5]:
            depth = picture(observation[f"depth_{slot}"]) * DEPTH_SCALE
            points = points_in_base(
                observation[f"intrinsics_{slot}"], observation[f"extrinsics_{slot}"], depth
            )[depth > 0]
            off, on_box = distance_to_surfaces(points)
            # A sensor counts millimetres; a moving camera's path is straight between samples.
            assert off.max() < (4e-3 if "wrist" in slot else 1.5e-3), slot
            assert on_box.any()


def test_known_corners_are_found_in_every_camera(full):
    """Where four tiles meet, on the table and on the box: right pixel, right place."""
    truth, prepared, episode, options = full
    corners = [[0.6, 0.15, 0], [0.35, -0.1, 0], [0.4, 0.1, 0], [0.45, -0.05, 0.06], [0.5, 0, 0.06]]
    found = set()
    for slot, serial in prepared.serials.items():
        for t, observation in list(enumerate(episode.observations))[::4]:
            ms = _frame_time(truth, episode, options, serial, t)
            _, true_depth = render(truth.k[serial], truth.camera(serial, ms), truth.size)
            seen = points_in_base(
                observation[f"intrinsics_{slot}"].astype(float),
                observation[f"extrinsics_{slot}"].astype(float),
                picture(observation[f"depth_{slot}"]) * DEPTH_SCALE,
            )
            colours = picture(observation[f"image_{slot}"]).astype(int)
            for corner in corners:
                x, y, z = (np.linalg.inv(truth.camera(serial, ms)) @ [*corner, 1])[:3]
                u, v, _ = truth.k[serial] @ [x / z, y / z, 1]
                width, height = truth.size
                if not (4 <= u < width - 4 and 4 <= v < height - 4):
                    continue
                around = true_depth[int(v - 1.5) : int(v + 2.5), int(u - 1.5) : int(u + 2.5)]
                if np.abs(around - z).max() > 0.03:
                    continue  # hidden, or at the box's edge
                at = [[v - 0.5], [u - 0.5]]
                place = [map_coordinates(seen[..., i], at, order=1)[0] for i in range(3)]
                np.testing.assert_allclose(place, corner, atol=3e-3, err_msg=slot)
                row, column = round(v), round(u)
                red = colours[row - 2 : row + 2, column - 2 : column + 2, 0]
                assert np.ptp(red) > 80  # tiles of two colours meet here
                found.add((slot, corner[2]))
    assert found == {(slot, z) for slot in prepared.serials for z in (0, 0.06)}


def _frame_time(truth, episode, options, serial, t):
    moment = steps_at(truth, episode, options)[t]
    times = truth.times[serial]
    return times[np.abs(times - moment).argmin()]


def test_k_and_camera_poses_are_those_of_the_rig(full):
    truth, prepared, episode, options = full
    for slot, serial in prepared.serials.items():
        for t, observation in enumerate(episode.observations):
            assert picture(observation[f"image_{slot}"]).shape == (90, 160, 3)
            np.testing.assert_allclose(
                observation[f"intrinsics_{slot}"], truth.k[serial], rtol=1e-6
            )
            want = truth.camera(serial, _frame_time(truth, episode, options, serial, t))
            tolerance = 1e-6 if serial in truth.fixed else 3e-3
            np.testing.assert_allclose(
                observation[f"extrinsics_{slot}"], want, atol=tolerance, err_msg=slot
            )


def test_pictures_are_the_frames_of_their_moment(full):
    truth, prepared, episode, options = full
    for slot, serial in prepared.serials.items():
        for t in (0, 7):
            ms = _frame_time(truth, episode, options, serial, t)
            want, _ = render(truth.k[serial], truth.camera(serial, ms), truth.size)
            got = picture(episode.observations[t][f"image_{slot}"]).astype(int)
            error = np.abs(got - want).mean()
            assert error < 8  # two lossy codecs
            if serial not in truth.fixed:
                other = np.abs(picture(episode.observations[t + 1][f"image_{slot}"]) - got).mean()
                assert error < other / 2


def test_actions_lead_from_pose_to_pose(full):
    truth, _, episode, options = full
    moments = steps_at(truth, episode, options)
    tools = np.stack([truth.tool(ms) for ms in moments])
    rotation = Rotation.from_matrix(tools[0, :3, :3])
    position = tools[0, :3, 3].copy()
    for action, want, observation in zip(
        episode.actions, tools[:-1], episode.observations, strict=True
    ):
        np.testing.assert_allclose(position, want[:3, 3], atol=3e-3)
        state = observation["state"]
        np.testing.assert_allclose(state[:3], want[:3, 3], atol=3e-3)
        angle = (Rotation.from_euler("xyz", state[3:6]).inv() * rotation).magnitude()
        assert angle < 5e-3
        position = position + action[:3]
        rotation = Rotation.from_euler("xyz", action[3:6]) * rotation
    np.testing.assert_allclose(position, tools[-1][:3, 3], atol=3e-3)
    assert (rotation.inv() * Rotation.from_matrix(tools[-1, :3, :3])).magnitude() < 5e-3


def test_the_gripper_closes_on_something_wide_and_opens_again(full):
    truth, _, episode, options = full
    moments = (steps_at(truth, episode, options) - START) / 1000
    after = moments[1:]
    closed = (after > 1.15) & (after < 2.25)
    unsure = (np.abs(after - 1.0) < 0.2) | (np.abs(after - 2.2) < 0.2)
    np.testing.assert_array_equal(episode.actions[~unsure, 6], ~closed[~unsure])
    opening = np.array([o["state"][6] for o in episode.observations])
    robot = configurations()[episode.metadata["configuration"]]
    want = truth.width(steps_at(truth, episode, options)[:-1], robot.full_width) / robot.full_width
    np.testing.assert_allclose(opening, want, atol=0.05)


def test_what_the_episode_says_of_itself(full):
    truth, prepared, episode, _ = full
    assert episode.instruction == "Press the button"
    assert episode.metadata["rating"] == 7
    assert episode.metadata["calib_quality"] == 3
    assert episode.metadata["folder"] == truth.folder.name
    assert (episode.metadata["task"], episode.metadata["user"]) == ("task_0001", "user_0001")
    assert prepared.verdict.kind == "absolute"
    assert episode.chain_error[0] < 1e-6


def test_differences_give_the_same_episode(tmp_path):
    options = Options({"primary": "front"}, depth=False)
    front = configurations()[3].front
    pair = {}
    for kind in ("absolute", "difference"):
        truth = write_scene(tmp_path / kind, 3, kind=kind, depth=False, videos=(front,))
        prepared, episode = load(truth, options, kind)
        assert prepared.verdict.kind == kind
        pair[kind] = episode
    one, other = pair.values()
    np.testing.assert_allclose(one.actions, other.actions, atol=2e-3)
    for a, b in zip(one.observations, other.observations, strict=True):
        np.testing.assert_allclose(a["state"], b["state"], atol=2e-3)
    with pytest.raises(SkipSceneError, match="disagree"):
        load(write_scene(tmp_path / "wrong", 3, kind="difference", videos=False), options)


@pytest.mark.parametrize("number", range(1, 8))
def test_every_configuration_loads(number, tmp_path):
    """Frames, tool poses and the chain through the cameras, of all seven robots."""
    truth = write_scene(tmp_path, number, videos=False)
    (scene,) = find_scenes(tmp_path)
    prepared = prepare(scene, TASKS, Options({"primary": "front", "wrist": "wrist"}))
    assert prepared.verdict.kind == "absolute"
    poses, (distance, angle) = base_from_tcp(prepared, "absolute")
    assert distance < 1e-9
    assert angle < 1e-7
    for serial in truth.times:
        for ms, pose in zip(prepared.times[::9], poses[::9], strict=True):
            np.testing.assert_allclose(
                prepared.calibration.base_from_camera(serial, pose[None])[0],
                truth.camera(serial, ms),
                atol=1e-9,
            )


def spoil(path, change):
    content = np.load(path, allow_pickle=True).item()
    change(content)
    np.save(path, content, allow_pickle=True)


def break_extrinsics(truth):
    def turn(content):
        content[configurations()[3].front][0][0, 3] += 0.05

    spoil(next(truth.folder.parent.glob("calib/*/extrinsics.npy")), turn)


def break_gripper(truth):
    def unit(content):
        for entries in content.values():
            for entry in entries.values():
                entry["gripper_command"][0] *= 10

    spoil(truth.folder / "transformed" / "gripper.npy", unit)


def cut_video(truth):
    times = truth.folder / f"cam_{configurations()[3].front}" / "timestamps.npy"
    spoil(
        times,
        lambda content: content["color"].extend(
            content["color"][-1] + 100 * i for i in range(1, 7)
        ),
    )
    tcp = truth.folder / "transformed"
    for name in ("tcp.npy", "tcp_base.npy"):

        def longer(content):
            for entries in content.values():
                entries.extend(
                    {**entries[-1], "timestamp": entries[-1]["timestamp"] + 100 * i}
                    for i in range(1, 7)
                )

        spoil(tcp / name, longer)

    def wider(content):
        for entries in content.values():
            last = max(entries)
            entries |= {last + 100 * i: entries[last] for i in range(1, 7)}

    spoil(tcp / "gripper.npy", wider)
    meta = truth.folder / "metadata.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "finish_time": -1}))


def gap(truth):
    def hole(content):
        del content[configurations()[3].front][8:16]

    spoil(truth.folder / "transformed" / "tcp_base.npy", hole)


def poison(truth):
    class Attack:
        def __reduce__(self):
            return (print, ("executed",))

    path = truth.folder / "transformed" / "gripper.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|O", "fortran_order": False, "shape": ()}
        )
        pickle.dump(np.array(Attack(), dtype=object), file)


def truncate(truth):
    path = truth.folder / "transformed" / "tcp_base.npy"
    path.write_bytes(path.read_bytes()[:-50])


def edit(**changes):
    def change(truth):
        path = truth.folder / "metadata.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("pristine")
    truth = write_scene(root, 3, depth=False)
    return root, truth


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edit(calib=-1), "not calibrated"),
        (edit(calib=77), "the calibration is missing"),
        (edit(rating=1), "rated below 2"),
        (lambda truth: (truth.folder / "metadata.json").unlink(), "no metadata.json"),
        (break_extrinsics, "calibration and tool poses disagree"),
        (break_gripper, "gripper widths out of range"),
        (cut_video, "a video is shorter than its timestamps"),
        (gap, "a stream has a gap"),
        (poison, "a .npy file holds more than data"),
        (truncate, "unreadable .npy"),
        (lambda truth: (truth.folder / "metadata.json").write_text("{"), "unreadable metadata"),
        (edit(rating=None), "rated below 2"),
        (edit(finish_time=START + 100), "too short"),
    ],
)
def test_a_scene_that_is_not_sound_is_skipped_with_its_reason(
    change, reason, pristine, tmp_path, capfd
):
    root, truth = pristine
    shutil.copytree(root, tmp_path / "raw")
    truth = replace(truth, folder=tmp_path / "raw" / truth.folder.relative_to(root))
    change(truth)
    with pytest.raises(SkipSceneError) as caught:
        load(truth, Options({"primary": "front"}, depth=False))
    assert caught.value.reason.startswith(reason)
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (Options({"primary": "front"}), "no depth.mp4"),
        (Options({"primary": "123"}, depth=False), "no camera '123'"),
        (Options({"primary": "front"}, depth=False, hz=25.0), "a camera is slower than hz"),
        (Options({"primary": "front"}, depth=False, min_rating=8), "rated below 8"),
    ],
)
def test_options_that_a_scene_cannot_meet(options, reason, pristine):
    with pytest.raises(SkipSceneError) as caught:
        load(pristine[1], options)
    assert caught.value.reason == reason


def test_a_rate_must_be_positive():
    with pytest.raises(ValueError, match="hz: got 0"):
        Options({"primary": "front"}, hz=0)
