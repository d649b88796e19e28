"""Images, depth and K move together: seen through the projection of points."""

import dataclasses

import numpy as np
import pytest

from spatialvla_ft.actions.spaces import end_effector_delta
from spatialvla_ft.data import Sample
from spatialvla_ft.data import pictures as tf

K = np.array([[70.0, 0, 31.5], [0, 65.0, 18.5], [0, 0, 1]])


@pytest.fixture
def sample():
    """64 x 36, where red and depth tell the column and green the row."""
    image = np.zeros((36, 64, 3), np.uint8)
    image[..., 0] = np.arange(64) * 4
    image[..., 1] = (np.arange(36) * 7)[:, None]
    depth = (np.arange(36)[:, None] + np.arange(64) / 100).astype(np.float32)
    return Sample(
        images={"primary": image},
        depth={"primary": depth},
        intrinsics={"primary": K},
        instruction="",
        actions=np.zeros((1, 7), np.float32),
        action_space=end_effector_delta(),
        valid=np.ones(1, bool),
        proprio=None,
        dataset="x",
        episode=0,
        step=0,
    )


def project(K, points):
    pixels = points @ K.T
    return pixels[:, :2] / pixels[:, 2:]


POINTS = np.array([[0.1, -0.05, 1.0], [-0.3, 0.2, 2.0], [0.0, 0.0, 0.5]])


def test_squash_moves_pixels_and_k_alike(sample):
    out = tf.squash(sample, 224)
    assert out.images["primary"].shape == (224, 224, 3)
    before, after = project(K, POINTS), project(out.intrinsics["primary"], POINTS)
    np.testing.assert_allclose(after, before * [224 / 64, 224 / 36])
    wide = np.asarray(sample.images["primary"][:, :, 0], float)
    for (x, y), (u, v) in zip(before, after, strict=True):
        old, new = wide[int(y), int(x)], out.images["primary"][int(v), int(u), 0]
        assert abs(old - float(new)) <= 6


def test_crop_moves_pixels_and_k_alike(sample):
    out = tf.crop(sample, {"primary": tf.Box(left=10, top=5, width=40, height=20)})
    assert out.images["primary"].shape == (20, 40, 3)
    after = project(out.intrinsics["primary"], POINTS)
    np.testing.assert_allclose(after, project(K, POINTS) - [10, 5])
    assert out.images["primary"][3, 4].tolist() == sample.images["primary"][8, 14].tolist()
    assert out.depth["primary"][3, 4] == sample.depth["primary"][8, 14]


def test_depth_is_never_averaged(sample):
    out = tf.resize(sample, 25, 11)
    assert set(out.depth["primary"].ravel()) <= set(sample.depth["primary"].ravel())
    for i in range(11):
        for j in range(25):
            row, column = int((i + 0.5) * 36 / 11), int((j + 0.5) * 64 / 25)
            assert out.depth["primary"][i, j] == sample.depth["primary"][row, column]


def test_depth_of_another_size_is_cut_at_the_same_place(sample):
    small = {"primary": tf.resize_depth(sample.depth["primary"], 32, 18)}
    other = dataclasses.replace(sample, depth=small)
    out = tf.crop(other, {"primary": tf.Box(32, 18, 32, 18)})
    assert out.depth["primary"].shape == (18, 32)
    assert abs(out.depth["primary"][0, 0] - sample.depth["primary"][18, 32]) < 1.5


def test_the_input_is_left_alone(sample):
    image, depth = sample.images["primary"].copy(), sample.depth["primary"].copy()
    tf.random_resized_crop(sample, 32, seed=0)
    np.testing.assert_array_equal(sample.images["primary"], image)
    np.testing.assert_array_equal(sample.depth["primary"], depth)
    np.testing.assert_array_equal(sample.intrinsics["primary"], K)


def test_random_crop_follows_its_seed_only(sample):
    one, same, other = (tf.random_resized_crop(sample, 32, seed=s) for s in (5, 5, 6))
    np.testing.assert_array_equal(one.images["primary"], same.images["primary"])
    assert (one.intrinsics["primary"] != other.intrinsics["primary"]).any()
    assert one.images["primary"].shape == (32, 32, 3)


def test_random_box_has_its_area_and_reaches_every_corner():
    generator = np.random.default_rng(0)
    boxes = [tf.random_box(generator, 100, 50, area=0.81) for _ in range(500)]
    assert {(box.width, box.height) for box in boxes} == {(90, 45)}
    assert {box.left for box in boxes} == set(range(11))
    assert {box.top for box in boxes} == set(range(6))


@pytest.mark.parametrize(
    ("slot", "box", "complaint"),
    [
        ("wrist", tf.Box(0, 0, 2, 2), "no image 'wrist'"),
        ("primary", tf.Box(60, 0, 8, 8), "leaves the 64 x 36 image"),
        ("primary", tf.Box(-1, 0, 8, 8), "leaves"),
        ("primary", tf.Box(0, 0, 0, 8), "leaves"),
    ],
)
def test_bad_crops(sample, slot, box, complaint):
    with pytest.raises(ValueError, match=complaint):
        tf.crop(sample, {slot: box})


def test_bad_area():
    with pytest.raises(ValueError, match="area must be"):
        tf.random_box(np.random.default_rng(0), 10, 10, area=1.5)


def test_a_sample_without_depth_or_k(sample):
    bare = dataclasses.replace(sample, depth=None, intrinsics={})
    out = tf.random_resized_crop(bare, 16, seed=0)
    assert out.depth is None
    assert out.intrinsics == {}
