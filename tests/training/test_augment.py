"""Augmentation: a function of the slot, geometry follows, defaults as released."""

from __future__ import annotations

import numpy as np
import pytest

from spatialvla_ft.actions.spaces import end_effector_delta
from spatialvla_ft.data.sample import Sample
from spatialvla_ft.training.augment import Augment


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    v, u = np.mgrid[0:48, 0:64]
    image = np.stack([u * 3, v * 4, rng.integers(0, 255, (48, 64))], -1).astype(np.uint8)
    return Sample(
        images={"primary": image},
        depth={"primary": (u * 100 + v).astype(np.float32)},
        intrinsics={"primary": np.array([[50.0, 0, 31.0], [0, 52.0, 25.0], [0, 0, 1]])},
        instruction="touch the red block",
        actions=np.zeros((1, 7), np.float32),
        action_space=end_effector_delta(5.0),
        valid=np.ones(1, bool),
        proprio=None,
        dataset="d/1",
        episode=0,
        step=0,
    )


def test_the_same_slot_gives_the_same_sample_and_another_another(sample):
    augment = Augment()
    one, again, other = augment(sample, 7, 0), augment(sample, 7, 0), augment(sample, 8, 0)
    assert np.array_equal(one.images["primary"], again.images["primary"])
    assert not np.array_equal(one.images["primary"], other.images["primary"])


def test_depth_and_k_follow_the_crop(sample):
    cropped = Augment(crop_area=0.5, brightness=0, contrast=0, saturation=0, hue=0)(sample, 3, 1)
    depth = cropped.depth["primary"]
    left, top = divmod(int(depth[0, 0]), 100)
    assert depth.shape == cropped.images["primary"].shape[:2]
    height, width = depth.shape
    expected = sample.images["primary"][top : top + height, left : left + width]
    assert np.array_equal(cropped.images["primary"], expected)
    moved = sample.intrinsics["primary"] - cropped.intrinsics["primary"]
    assert np.allclose(moved, [[0, 0, left], [0, 0, top], [0, 0, 0]])
    assert left + top > 0


def test_jitter_changes_colours_only(sample):
    jittered = Augment(crop_area=1.0)(sample, 5, 0)
    assert not np.array_equal(jittered.images["primary"], sample.images["primary"])
    assert jittered.depth is sample.depth
    assert jittered.intrinsics is sample.intrinsics


def test_brightness_against_numpy(sample):
    only = Augment(crop_area=1.0, brightness=0.2, contrast=0, saturation=0, hue=0)
    got = only(sample, 11, 0).images["primary"].astype(float)
    factor = np.random.default_rng((0, 11)).uniform(0.8, 1.2)
    expected = np.clip(sample.images["primary"] * factor, 0, 255)
    assert np.abs(got - expected).max() <= 1.0


def test_nothing_asked_nothing_changed(sample):
    same = Augment(crop_area=1.0, brightness=0, contrast=0, saturation=0, hue=0)(sample, 2, 0)
    assert np.array_equal(same.images["primary"], sample.images["primary"])
