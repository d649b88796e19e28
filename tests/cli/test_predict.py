"""`spatialvla-ft predict`: from pictures and from a dataset, with every head."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import CHUNK, NAME, depth_map, picture, tiny_model, tiny_processor
from typer.testing import CliRunner

from spatialvla_ft.actions.normalise import ActionStatistics
from spatialvla_ft.cli.main import app
from spatialvla_ft.policy.load import load_policy_model
from spatialvla_ft.policy.prediction import PredictedChunk, predict_chunk
from spatialvla_ft.viz.prediction import Scene, likely, path_of, plot_prediction

HEADS = {
    "grid_tokens": None,
    "voxel_heatmap": {"bins": {"translation": [6, 6, 4], "rotation": [4, 4, 4]}},
    "l1": {},
    "flow": {"expert": 16, "layers": 1},
}


@pytest.fixture(scope="module", params=sorted(HEADS))
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    processor = tiny_processor()
    settings = HEADS[request.param]
    head = None if settings is None else {"kind": request.param, **settings}
    torch.manual_seed(0)
    tiny_model(processor, action_head=head).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seen")
    Image.fromarray(picture(1)).save(folder / "top.png")
    np.save(folder / "top.npy", depth_map(1))
    units = np.round(depth_map(1) * 1000).astype(np.uint16)
    Image.fromarray(units).save(folder / "depth.png")
    (folder / "K.json").write_text(json.dumps([[60.0, 0, 32], [0, 60, 20], [0, 0, 1]]))
    np.save(folder / "pose.npy", np.eye(4))
    several = folder / "several"
    several.mkdir()
    for i in range(3):
        Image.fromarray(picture(i)).save(several / f"{i}.png")
    return folder


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def seen(files, *more):
    return (
        *("--image", files / "top.png", "--instruction", "go left"),
        *("--intrinsics", files / "K.json", "--depth", files / "top.npy", *more),
    )


def test_a_picture_gives_the_actions_of_the_policy(checkpoint, files, tmp_path):
    plot = tmp_path / "made" / "plot.png"
    done = predict(checkpoint, *seen(files, "--plot", plot, "--json"))
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    model, processor = load_policy_model(checkpoint, canary=False)
    K = np.array([[60.0, 0, 32], [0, 60, 20], [0, 0, 1]])
    inputs = dict(processor([picture(1)], ["go left"], intrinsic=[K], depth=[depth_map(1)]))
    wanted = processor.to_robot_units(model.predict_actions(inputs), NAME)[0]
    np.testing.assert_allclose(said["actions"], wanted, rtol=1e-5, atol=1e-7)
    assert np.shape(said["actions"]) == (CHUNK, 7)
    assert said["names"][:3] == ["x", "y", "z"]
    assert said["units"][:3] == ["m"] * 3
    assert said["frames"][0] == "base"
    assert said["unnorm_key"] == NAME
    with Image.open(plot) as drawn:
        assert drawn.size[0] > 1000


def test_the_table_and_other_ways_to_say_the_camera(checkpoint, files):
    told = predict(checkpoint, *seen(files))
    assert told.exit_code == 0
    assert "frame: base; gripper 1 = open, 0 = closed" in told.output
    plain = predict(checkpoint, *seen(files, "--json")).stdout
    other = predict(
        checkpoint, "--image", files / "top.png", "--instruction", "go left", "--json",
        "--intrinsics", "primary=60,60,32,20", "--depth", f"primary={files / 'top.npy'}",
    ).stdout  # fmt: skip
    assert json.loads(plain)["actions"] == json.loads(other)["actions"]
    rounded = predict(
        checkpoint, "--image", files / "top.png", "--instruction", "go left", "--json",
        "--intrinsics", files / "K.json", "--depth", files / "depth.png",
    )  # fmt: skip
    assert rounded.exit_code == 0, rounded.output


def test_a_folder_is_predicted_picture_by_picture(checkpoint, files, tmp_path):
    depth = ("--depth", files / "top.npy", "--intrinsics", "60,60,32,20")
    done = predict(
        checkpoint, "--image", files / "several", "--instruction", "go", *depth, "--json",
        "--plot", tmp_path / "p.png",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"p-000{i}.png" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give exactly one of --image"),
        (("--image", "nowhere.png", "--instruction", "x"), "nowhere.png: there is no such file"),
        (("--image", "TOP"), "give the robot's instruction"),
        (("--image", "TOP", "--instruction", "x", "--depth", "left=a"), "not through 'left'"),
        (("--image", "TOP", "--instruction", "x", "--intrinsics", "1,2"), "intrinsics are 9 numb"),
        (("--image", "TOP", "--instruction", "x", "--intrinsics", "K.txt"), "no such file"),
        (("--image", "TOP", "--instruction", "x", "--depth", "TOP"), "one channel of 16 bits"),
        (("--image", "TOP", "--instruction", "x", "--mode", "best"), "mode 'best' is unknown"),
    ],
)
def test_what_is_missing_or_odd_is_said(checkpoint, files, arguments, said):
    given = [str(files / "top.png") if part == "TOP" else part for part in arguments]
    if "--mode" in given:
        given += ["--intrinsics", "60,60,32,20", "--depth", str(files / "top.npy")]
    done = predict(checkpoint, *given)
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())


def test_spread_and_heat_are_in_robot_units(checkpoint, files):
    model, processor = load_policy_model(checkpoint, canary=False)
    chunk = predict_chunk(model, processor, [_observation()], "go left")
    known = ActionStatistics.from_dict(processor.statistics[NAME])
    if model.action_head is None or not model.action_head.has_maps:
        assert chunk.heat == {}
        return
    heat = chunk.heat["translation"]
    assert heat.chance.shape == (CHUNK, 6 * 6 * 4)
    np.testing.assert_allclose(heat.chance.sum(-1), 1, rtol=1e-5)
    width = (known.q99 - known.q01)[0] / 2
    pad = model.action_head.pad
    middle = (known.q99 + known.q01)[0] / 2
    np.testing.assert_allclose(heat.points[:, 0].max(), middle + width * (1 + pad), rtol=1e-4)
    mean = heat.chance[0] @ heat.points
    variance = heat.chance[0] @ (heat.points - mean) ** 2
    np.testing.assert_allclose(chunk.spread[0, :3], np.sqrt(variance), rtol=1e-3)
    shown, shade = likely(heat, 0)
    assert heat.chance[0][shown].sum() > 0.98
    assert shade.max() == 1


def _observation(pose=None):
    from spatialvla_ft.data.sample import Observation

    return Observation(
        images={"primary": picture(1)},
        depth={"primary": depth_map(1)},
        intrinsics={"primary": np.array([[60.0, 0, 32], [0, 60, 20], [0, 0, 1]])},
        extrinsics={} if pose is None else {"primary": pose},
    )


def test_paths_add_deltas_up_and_are_drawn_where_the_camera_is_known():
    space = tiny_processor().grid.action_space
    actions = np.zeros((3, 7))
    actions[:, 0] = [0.01, 0.02, -0.01]
    chunk = PredictedChunk(actions, None, {}, space, NAME, None, "l1")
    np.testing.assert_allclose(path_of(chunk, slice(0, 3))[:, 0], [0, 0.01, 0.03, 0.02])
    seen = _observation()
    for pose, panels in ((None, 3), (np.eye(4), 3)):
        scene = Scene(
            seen.images["primary"], seen.depth["primary"], seen.intrinsics["primary"], pose
        )
        figure = plot_prediction(scene, chunk, "go")
        assert len(figure.axes) == panels
        said = [text.get_text() for text in figure.axes[0].texts]
        assert any("--extrinsics" in text for text in said) == (pose is None)
