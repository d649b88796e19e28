"""The processor: batches, cameras, depth, statistics, and its files."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import CHUNK, NAME, actions, depth_map, picture, statistics, tiny_processor

from spatialvla_ft import SpatialVLAProcessor
from spatialvla_ft.models.camera_inputs import square_depth, square_intrinsics

K = [[60.0, 0, 33], [0, 50, 21], [0, 0, 1]]
OTHER_K = [[80.0, 0, 20], [0, 90, 15], [0, 0, 1]]


@pytest.fixture(scope="module")
def tiny():
    return tiny_processor()


def test_a_batch_holds_its_samples(tiny):
    pictures = [picture(0), picture(1, 30, 50)]
    depths = [depth_map(0), depth_map(1, 30, 50)]
    texts = ["pick up the red block", "go"]
    suffix = np.stack([actions(0), actions(1)])
    batch = tiny(pictures, texts, suffix_actions=suffix, intrinsic=[K, OTHER_K], depth=depths)
    for i in range(2):
        one = tiny(
            pictures[i], texts[i], suffix_actions=suffix[i], intrinsic=[K, OTHER_K][i],
            depth=depths[i],
        )  # fmt: skip
        real = batch["attention_mask"][i].bool()
        for name in ("input_ids", "token_type_ids", "labels"):
            assert torch.equal(batch[name][i][real], one[name][0]), name
            pads = batch[name][i][~real]
            assert set(pads.tolist()) <= {
                {"input_ids": 0, "token_type_ids": 0, "labels": -100}[name]
            }
        for name in ("pixel_values", "intrinsics", "depth", "actions"):
            assert torch.equal(batch[name][i], one[name][0]), name


def test_the_sequence_and_its_labels(tiny):
    inputs = tiny(picture(0), "go", unnorm_key=NAME, suffix_actions=actions(3))
    ids = inputs["input_ids"][0].tolist()
    words = tiny.tokenizer("go\n", add_special_tokens=False).input_ids
    absolute = tiny.action_tokenizer.encode(actions(3)).ravel().tolist()
    assert ids == [tiny.image_token_id] * 16 + [2, *words, *absolute, 1]
    assert inputs["labels"][0].tolist() == [-100] * (17 + len(words)) + [*absolute, 1]
    assert len(absolute) == 3 * CHUNK
    assert tiny(picture(0), "go", unnorm_key=NAME).get("labels") is None


def test_pads_are_left_in_prompts_and_right_in_training(tiny):
    call = {"images": [picture(0)] * 2, "text": ["go", "go on, slowly"], "unnorm_key": NAME}
    assert tiny(**call)["attention_mask"][0].tolist()[0] == 0
    suffix = np.stack([actions(0)] * 2)
    assert tiny(**call, suffix_actions=suffix)["attention_mask"][0].tolist()[-1] == 0
    assert tiny(**call, padding_side="right")["attention_mask"][0].tolist()[-1] == 0


@pytest.mark.parametrize("kind", ["array", "pil", "tensor"])
def test_kinds_of_pictures_are_the_same_picture(tiny, kind):
    array = picture(4)
    given = {
        "array": array,
        "pil": Image.fromarray(array),
        "tensor": torch.from_numpy(array).permute(2, 0, 1),
    }[kind]
    pixels = tiny(given, "go", unnorm_key=NAME)["pixel_values"][0]
    wanted = Image.fromarray(array).resize((32, 32), Image.Resampling.BICUBIC)
    wanted = np.asarray(wanted, np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(pixels, wanted, atol=1e-6)


def test_intrinsics_follow_the_squash(tiny):
    got = tiny(picture(0, 30, 50), "go", intrinsic=OTHER_K)["intrinsics"][0].numpy()
    wanted = np.diag([32 / 50, 32 / 30, 1]) @ np.array(OTHER_K)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    # A point projects to the same relative place before and after.
    point = np.array([0.1, -0.2, 0.9])
    before, after = np.array(OTHER_K) @ point, got @ point
    np.testing.assert_allclose(before[:2] / [50, 30], after[:2] / [32, 32], rtol=1e-6)


def test_known_cameras_are_of_their_own_picture_size(tiny):
    """The entry is for 64 x 40; the picture at hand has another size of the same view."""
    got = tiny(picture(0, 80, 128), "go", unnorm_key=NAME)["intrinsics"][0].numpy()
    np.testing.assert_allclose(got, np.diag([32 / 64, 32 / 40, 1]) @ np.array(K), rtol=1e-6)
    only = tiny(picture(0), "go")["intrinsics"][0].numpy()
    np.testing.assert_allclose(only, got, rtol=1e-6)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(2), r"must be a finite \(3, 3\) matrix"),
        (np.full((3, 3), np.nan), r"must be a finite \(3, 3\) matrix"),
        (np.diag([0.0, 50, 1]), "focal lengths must be positive"),
    ],
)
def test_impossible_cameras(matrix, message):
    with pytest.raises(ValueError, match=message):
        square_intrinsics(matrix, 40, 64, 32)


def test_unknown_cameras_are_never_guessed_silently(tiny):
    with pytest.raises(ValueError, match=r"not known for dataset 'elsewhere'.*made_up/1.0.0"):
        tiny(picture(0), "go", unnorm_key="elsewhere")
    guessed = tiny(picture(0), "go", unnorm_key="elsewhere", assume_intrinsics=NAME)
    assert torch.equal(guessed["intrinsics"], tiny(picture(0), "go", unnorm_key=NAME)["intrinsics"])
    with pytest.raises(ValueError, match="assume_intrinsics='nobody' is not in"):
        tiny(picture(0), "go", unnorm_key="elsewhere", assume_intrinsics="nobody")


@pytest.mark.parametrize(("height", "width"), [(40, 64), (7, 5), (32, 32), (100, 33)])
def test_depth_is_resized_to_the_nearest_pixel(height, width):
    depth = depth_map(7, height, width)
    depth[0, 0], depth[-1, -1], depth[0, -1] = np.nan, -2, np.inf
    got = square_depth(depth, height, width, 32).numpy()
    for i in range(32):
        for j in range(32):
            y, x = (i + 0.5) * height / 32, (j + 0.5) * width / 32
            # pixel p covers [p, p + 1)
            source = depth[int(np.floor(y)), int(np.floor(x))]
            assert got[i, j] == (source if np.isfinite(source) and source > 0 else 0), (i, j)


def test_depth_must_fit_its_picture(tiny):
    with pytest.raises(ValueError, match=r"depth has shape \(30, 50\), its picture is 40 x 64"):
        tiny(picture(0), "go", unnorm_key=NAME, depth=depth_map(0, 30, 50))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"images": [picture(0)] * 2, "text": ["go"]}, "got 2 images and 1 texts"),
        ({"images": picture(0), "text": None}, "needs images and text"),
        ({"return_tensors": "np"}, "only 'pt' is supported"),
        ({"unnorm_key": [NAME, NAME]}, "unnorm_key has 2 entries for 1 items"),
        (
            {"intrinsic": [K, K]},
            r"intrinsic has 2 prompts of \[1\] matrices; the pictures are 1 prompt",
        ),
        ({"suffix_actions": np.zeros((2, 2, 7))}, r"or \(B, T, 7\) with B = 1 images"),
        ({"suffix_actions": np.full((2, 7), np.nan)}, r"actions\[0, 0\] \(x\) is nan"),
    ],
)
def test_calls_that_cannot_be_right(tiny, call, message):
    with pytest.raises(ValueError, match=message):
        tiny(**{"images": picture(0), "text": "go", "unnorm_key": NAME, **call})


def test_actions_beyond_the_range_are_said_to_be_clipped(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        tiny(picture(0), "go", unnorm_key=NAME, suffix_actions=actions(0) * 3)
    assert "outside [-1, 1]" in caplog.text


# -------------------------------------------------------------------- decoding


def test_decoded_actions_are_in_the_robots_units(tiny):
    normalised = np.stack([actions(0), actions(1)])
    ids = tiny.action_tokenizer.encode(normalised.reshape(-1, 7)).reshape(2, -1)
    decoded = tiny.decode_actions(torch.as_tensor(ids))
    assert decoded["actions"].shape == (2, CHUNK, 7)
    low, high = (np.array(statistics()["action"][name]) for name in ("q01", "q99"))
    wanted = (decoded["normalised"] + 1) / 2 * (high - low) + low
    np.testing.assert_allclose(decoded["actions"][..., :6], wanted[..., :6], atol=1e-6)
    np.testing.assert_array_equal(decoded["actions"][..., 6], normalised[..., 6])
    np.testing.assert_array_equal(decoded["ids"], ids)
    single = tiny.decode_actions(ids[1], unnorm_key=NAME)
    np.testing.assert_array_equal(single["actions"][0], decoded["actions"][1])


def test_statistics_are_named_or_the_only_ones():
    tiny = tiny_processor()
    ids = tiny.action_tokenizer.encode(actions(0)).ravel()
    with pytest.raises(ValueError, match=r"unnorm_key 'x' is unknown: .* \['made_up/1.0.0'\]"):
        tiny.decode_actions(ids, unnorm_key="x")
    wider = statistics()
    wider["action"]["q99"] = [2 * v for v in wider["action"]["q99"]]
    tiny.statistics["another/2.0.0"] = wider
    with pytest.raises(ValueError, match=r"is needed: .* \['another/2.0.0', 'made_up/1.0.0'\]"):
        tiny.decode_actions(ids)
    both = tiny.decode_actions(np.stack([ids, ids]), unnorm_key=[NAME, "another/2.0.0"])["actions"]
    assert (both[0] != both[1]).any()


@pytest.mark.parametrize(
    "change", [lambda r, b: r.__setitem__(0, r[1]), lambda r, b: r.__setitem__(1, r[0])]
)
def test_a_token_of_another_slot_is_an_error(tiny, change):
    ids = tiny.action_tokenizer.encode(actions(0)).ravel()
    change(ids, tiny.action_tokenizer.begin_id)
    with pytest.raises(ValueError, match="id"):
        tiny.decode_actions(ids)


def test_words_and_half_actions_are_errors(tiny):
    with pytest.raises(ValueError, match="id"):
        tiny.decode_actions(np.array([5, 6, 7]))
    with pytest.raises(ValueError, match="3 tokens per action"):
        tiny.decode_actions(np.arange(4))


# -------------------------------------------------------------------- files


def test_saved_and_loaded_is_the_same(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    again = SpatialVLAProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == tiny.to_dict()
    call = {"images": picture(0), "text": "püt", "unnorm_key": NAME, "suffix_actions": actions(0)}
    one, other = tiny(**call), again(**call)
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_files_are_those_of_a_released_checkpoint(processor, golden_checkpoint, tmp_path):
    processor.save_pretrained(tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json"):
        ours, released = (
            json.loads((folder / name).read_text()) for folder in (tmp_path, golden_checkpoint)
        )
        shared = set(ours) & set(released)
        missing = set(released) - set(ours) - {"auto_map"}
        assert not missing, name
        for key in shared - {"min_sigma", "bin_policy", "auto_map"}:
            if key == "action_config":  # ours also says how bins decode
                assert ours[key].items() >= released[key].items()
            else:
                assert ours[key] == released[key], (name, key)
    assert SpatialVLAProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_a_folder_without_a_processor_says_what_is_missing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no processor_config.json, where the action grid"):
        SpatialVLAProcessor.from_pretrained(tmp_path)
