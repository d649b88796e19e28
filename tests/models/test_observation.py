"""Several cameras, past steps and proprioception: order, frames, and the released form within."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from tiny_world import NAME, actions, depth_map, picture, tiny_model, tiny_processor

from spatialvla_ft import SpatialVLAForConditionalGeneration, SpatialVLAProcessor
from spatialvla_ft.models.camera_inputs import relative_poses
from spatialvla_ft.models.observation import ObservationLayout, ObservationTokens

TWO = ObservationLayout(("primary", "wrist"), window=2, proprio_dim=5)
FIELDS = {"num_cameras": 2, "observation_window": 2, "proprio_dim": 5}
K = np.array([[60.0, 0, 33], [0, 50, 21], [0, 0, 1]])
PATCHES = 16


def pose(seed):
    rng = np.random.default_rng(seed)
    out = np.eye(4)
    out[:3, :3] = Rotation.random(rng=rng).as_matrix()
    out[:3, 3] = rng.normal(size=3)
    return out


def processor_of(layout=TWO):
    processor = tiny_processor()
    processor.layout = layout
    low, high = np.arange(5.0), np.arange(5.0) * 2 + 1
    zeros = np.zeros(5).tolist()
    quantiles = {"q01": low.tolist(), "q99": high.tolist(), "min": low.tolist()}
    processor.statistics[NAME]["proprio"] = {
        **quantiles, "max": high.tolist(), "mean": zeros, "std": zeros
    }  # fmt: skip
    return processor


def call(processor, rows=2, **changes):
    views = processor.layout.num_views
    arguments = {
        "images": [[picture(10 * i + n) for n in range(views)] for i in range(rows)],
        "text": ["pick up the red block", "püt it down, slowly and carefully"][:rows],
        "unnorm_key": NAME,
        "intrinsic": [[K + n for n in range(views)] for _ in range(rows)],
        "depth": [[depth_map(10 * i + n) for n in range(views)] for i in range(rows)],
        "proprio": np.arange(rows * 10).reshape(rows, 2, 5) / 4,
        "extrinsics": [[pose(10 * i + n) for n in range(views)] for i in range(rows)],
        **changes,
    }
    return dict(processor(**arguments))


@pytest.fixture(scope="module")
def processor():
    return processor_of()


@pytest.fixture(scope="module")
def model(processor):
    model = tiny_model(processor, **FIELDS)
    with torch.no_grad():
        model.observation_tokens.view_embedding.normal_()
    return model


def test_prompt_and_shapes(processor):
    inputs = call(processor)
    tokens = 2 * (2 * PATCHES + 1)
    assert processor.num_observation_tokens == tokens
    is_image = inputs["input_ids"] == processor.image_token_id
    assert is_image.sum(-1).tolist() == [tokens, tokens]
    assert inputs["pixel_values"].shape == (2, 4, 3, 32, 32)
    assert inputs["intrinsics"].shape == (2, 4, 3, 3)
    assert inputs["depth"].shape == (2, 4, 32, 32)
    assert inputs["camera_poses"].shape == (2, 4, 4, 4)
    single = tiny_processor()(
        picture(13), "x", intrinsic=K + 3, depth=depth_map(13), unnorm_key=NAME
    )
    torch.testing.assert_close(inputs["pixel_values"][1, 3], single["pixel_values"][0])
    torch.testing.assert_close(inputs["intrinsics"][1, 3], single["intrinsics"][0])
    torch.testing.assert_close(inputs["depth"][1, 3], single["depth"][0])
    low, high = np.arange(5.0), np.arange(5.0) * 2 + 1
    wanted = 2 * (np.arange(20).reshape(2, 2, 5) / 4 - low) / (high - low) - 1
    np.testing.assert_allclose(inputs["proprio"], wanted.clip(-1, 1), atol=1e-6)


def test_poses_are_relative_to_the_first_camera_now(processor):
    poses = call(processor)["camera_poses"]
    for row in range(2):
        for view in range(4):
            point = np.array([0.3, -0.2, 0.9, 1])
            common = pose(10 * row + view) @ point
            wanted = np.linalg.solve(pose(10 * row + 2), common)
            np.testing.assert_allclose(poses[row, view].double().numpy() @ point, wanted, atol=1e-5)


def test_unknown_poses_stay_in_their_own_frame():
    unknown = np.full((4, 4), np.nan)
    got = relative_poses([pose(0), unknown, pose(2)], 2)
    np.testing.assert_allclose(got[1], np.eye(4))
    np.testing.assert_allclose(got[2], np.eye(4), atol=1e-6)
    assert not np.allclose(got[0], np.eye(4))
    np.testing.assert_allclose(relative_poses([pose(0), unknown], 1), [np.eye(4)] * 2)
    with pytest.raises(ValueError, match="must be rigid transforms"):
        relative_poses([2 * np.eye(4)], 0)


def test_points_of_every_view_come_in_one_frame(processor, model):
    inputs = call(processor)
    with torch.no_grad():
        together = model(**inputs, debug_outputs=True).debug["xyz"]
        apart = model(**{**inputs, "camera_poses": None}, debug_outputs=True).debug["xyz"]
    poses = inputs["camera_poses"].flatten(0, 1).double().numpy()
    own = apart.double().numpy().reshape(8, PATCHES, -1, 3)
    for view in range(8):
        wanted = own[view] @ poses[view, :3, :3].T + poses[view, :3, 3]
        np.testing.assert_allclose(
            together[view].reshape(PATCHES, -1, 3), wanted, atol=2e-5, rtol=1e-5
        )


def test_tokens_come_step_by_step_camera_by_camera():
    torch.manual_seed(0)
    tokens = ObservationTokens(2, 3, 4, 8)
    with torch.no_grad():
        tokens.view_embedding.normal_()
    features, proprio = torch.randn(2 * 6, 5, 8), torch.randn(2, 3, 4)
    got = tokens(features, proprio).reshape(2, 3, 11, 8)
    for row in range(2):
        for step in range(3):
            for camera in range(2):
                view = 2 * step + camera
                wanted = features[6 * row + view] + tokens.view_embedding[view]
                torch.testing.assert_close(got[row, step, 5 * camera : 5 * camera + 5], wanted)
            state = tokens.proprio_projector(proprio[row, step])
            torch.testing.assert_close(got[row, step, 10], state)
    with pytest.raises(ValueError, match=r"reads proprioception: pass proprio \(B, 3, 4\)"):
        tokens(features, None)


def test_every_input_reaches_the_action(processor, model):
    inputs = call(processor)
    with torch.no_grad():
        before = model(**inputs).logits[:, -1]
        for name in ("pixel_values", "intrinsics", "depth", "camera_poses"):
            for view in range(4):
                changed = inputs[name].clone()
                if name == "pixel_values":
                    changed[:, view] = 1 - changed[:, view]
                elif name == "camera_poses":
                    changed[:, view, 0, 3] += 0.5
                else:
                    changed[:, view] *= 1.3
                after = model(**{**inputs, name: changed}).logits[:, -1]
                assert (after - before).abs().max() > 1e-4, (name, view)
        for step in range(2):
            changed = inputs["proprio"].clone()
            changed[:, step] += 0.5
            after = model(**{**inputs, "proprio": changed}).logits[:, -1]
            assert (after - before).abs().max() > 1e-4, step


def test_training_prediction_and_single_rows(processor, model):
    chunk = np.stack([actions(0), actions(1)])
    inputs = call(processor, suffix_actions=chunk)
    outputs = model(**{k: v for k, v in inputs.items() if k != "actions"})
    model.zero_grad()
    outputs.loss.backward()
    tokens = model.observation_tokens
    assert bool((tokens.view_embedding.grad.abs().sum(-1) > 0).all())
    assert tokens.proprio_projector[0].weight.grad.abs().sum() > 0
    prompts = call(processor)
    ids = model.predict_action(prompts)
    generated = model.generate(**prompts, max_new_tokens=1, do_sample=False)
    assert generated.shape[1] == prompts["input_ids"].shape[1] + 1
    for i in range(2):
        real = prompts["attention_mask"][i].bool()
        text = {"input_ids", "attention_mask", "token_type_ids"}
        row = {k: v[i : i + 1][:, real] if k in text else v[i : i + 1] for k, v in prompts.items()}
        assert torch.equal(model.predict_action(row)[0], ids[i])


def test_one_view_is_the_released_form():
    processor = tiny_processor()
    model = tiny_model(processor)
    assert not hasattr(model, "observation_tokens")
    inputs = call(processor_of(ObservationLayout()), proprio=None, extrinsics=None)
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)
    assert "camera_poses" not in inputs
    with torch.no_grad():
        plain = model(**inputs).logits
        views = ("pixel_values", "intrinsics", "depth")
        axis = {k: v.unsqueeze(1) if k in views else v for k, v in inputs.items()}
        torch.testing.assert_close(model(**axis).logits, plain, rtol=0, atol=0)


def test_a_base_of_one_picture_grows(tmp_path, processor):
    single = tiny_processor()
    base = tiny_model(single)
    base.save_pretrained(tmp_path / "base")
    grown = SpatialVLAForConditionalGeneration.from_pretrained(
        tmp_path / "base", dtype=torch.float32, **FIELDS
    ).eval()
    assert not grown.observation_tokens.view_embedding.any()
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, grown.state_dict()[name]), name
    grown.save_pretrained(tmp_path / "grown")
    processor.save_pretrained(tmp_path / "grown")
    again = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path / "grown").eval()
    layout = SpatialVLAProcessor.from_pretrained(tmp_path / "grown").layout
    assert layout == TWO
    inputs = call(processor)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, grown(**inputs).logits, rtol=0, atol=0)


@pytest.mark.parametrize("lost", ["view_embedding", "proprio_projector.2.weight"])
def test_a_checkpoint_that_lost_what_it_declares_is_refused(tmp_path, model, lost):
    weights = model.state_dict()
    kept = {n: t for n, t in weights.items() if n != f"observation_tokens.{lost}"}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match=f"1 weights are missing: observation_tokens.{lost}"):
        SpatialVLAForConditionalGeneration.from_pretrained(tmp_path)


def test_a_base_of_two_views_learns_to_feel(tmp_path, model):
    two = tiny_model(tiny_processor(), num_cameras=2)
    two.save_pretrained(tmp_path)
    grown = SpatialVLAForConditionalGeneration.from_pretrained(tmp_path, proprio_dim=3)
    assert grown.observation_tokens.proprio_projector[0].in_features == 3


def test_intrinsics_by_dataset_and_camera(processor):
    known = processor_of()
    wrist = {"intrinsic": (K * [[2], [3], [1]]).tolist(), "height": 80, "width": 128}
    known.intrinsic_config[NAME]["cameras"] = {"wrist": wrist}
    got = call(known, intrinsic=None)["intrinsics"][0]
    first = np.diag([32 / 64, 32 / 40, 1]) @ K
    second = np.diag([32 / 128, 32 / 80, 1]) @ np.array(wrist["intrinsic"])
    np.testing.assert_allclose(got, [first, second, first, second], rtol=1e-6)
    with pytest.raises(ValueError, match=r"camera 'wrist' are not known .* Pass intrinsic=K"):
        call(processor, intrinsic=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [picture(0)] * 3}, r"each prompt takes 4 picture\(s\).*got 3"),
        ({"proprio": None}, r"reads proprioception: pass proprio \(2, 5\) per prompt"),
        ({"proprio": np.zeros((2, 2, 4))}, r"proprio must be \(2, 2, 5\)"),
        ({"intrinsic": [[K] * 3] * 2}, r"intrinsic has 2 prompts of \[3\] matrices"),
        ({"depth": depth_map(0)[0]}, r"depth must be matrices \(2 axes\)"),
        ({"extrinsics": [[np.eye(3)] * 4] * 2}, "extrinsics must be 4 x 4"),
    ],
)
def test_what_does_not_fit_is_named(processor, changes, message):
    with pytest.raises(ValueError, match=message):
        call(processor, **changes)


def test_the_model_names_what_it_takes(processor, model):
    inputs = call(processor)
    with pytest.raises(ValueError, match=r"takes 4 views per prompt: pixel_values must be \(B, 4"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:, 0]})
    with pytest.raises(ValueError, match="have 3 views, the model takes 4"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:, :3]})


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"cameras": ()}, "one or more different names"),
        ({"cameras": ("a", "a")}, "one or more different names"),
        ({"window": 0}, "window must be at least 1"),
        ({"proprio_dim": 0}, "proprio_dim must be at least 1"),
    ],
)
def test_a_layout_shows_something(layout, message):
    with pytest.raises(ValueError, match=message):
        ObservationLayout(**layout)
