"""Augmentation: a function of the slot, geometry follows, defaults as released."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from spatialvla_ft.actions.spaces import end_effector_delta
from spatialvla_ft.data.augment import Augment
from spatialvla_ft.data.pictures import fit_step
from spatialvla_ft.data.sample import Observation, Sample


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
    one, again, other = (augment(sample, slot, 0, size=32) for slot in (7, 7, 8))
    assert np.array_equal(one.images["primary"], again.images["primary"])
    assert not np.array_equal(one.images["primary"], other.images["primary"])
    seeded = augment(sample, 7, 1, size=32)
    assert not np.array_equal(one.images["primary"], seeded.images["primary"])


@pytest.mark.parametrize("path", ["parity", "fast"])
def test_depth_and_k_follow_the_crop(sample, path):
    """Depth tells the column and row that it was recorded at; K must say the same."""
    only = Augment(crop_area=0.5, brightness=0, contrast=0, saturation=0, hue=0)
    cropped = only(sample, 3, 1, size=40, path=path)
    assert cropped.images["primary"].shape == (40, 40, 3)
    depth = cropped.depth["primary"]
    column, row = np.divmod(depth, 100)
    K, old = cropped.intrinsics["primary"], sample.intrinsics["primary"]
    centres = np.arange(40) + 0.5
    u = (centres - K[0, 2]) / K[0, 0] * old[0, 0] + old[0, 2]
    v = (centres - K[1, 2]) / K[1, 1] * old[1, 1] + old[1, 2]
    assert np.array_equal(column, np.tile(np.floor(u), (40, 1)))
    assert np.array_equal(row, np.tile(np.floor(v)[:, None], (1, 40)))
    assert 0 < u[0] < u[-1] < 64
    assert u[-1] - u[0] == pytest.approx(64 * 0.5**0.5, rel=0.05)


def test_jitter_changes_colours_only(sample):
    jittered = Augment(crop_area=1.0)(sample, 5, 0, size=48)
    plain = fit_step(sample, 48, "fast")
    assert not np.array_equal(jittered.images["primary"], plain.images["primary"])
    assert np.array_equal(jittered.depth["primary"], plain.depth["primary"])
    assert np.array_equal(jittered.intrinsics["primary"], plain.intrinsics["primary"])


def test_brightness_is_added(sample):
    square = dataclasses.replace(
        sample, images={"primary": sample.images["primary"][:, :48]}, depth=None
    )
    only = Augment(crop_area=1.0, brightness=0.2, contrast=0, saturation=0, hue=0)
    got = only(square, 2, 0, size=48).images["primary"].astype(float)
    added = np.random.default_rng((0, 2)).uniform(-0.2, 0.2)
    expected = np.clip(square.images["primary"] + 255 * added, 0, 255)
    assert abs(added) > 0.05
    assert np.abs(got - expected).max() <= 1.0


def test_steps_of_a_window_are_varied_alike_and_cameras_on_their_own(sample):
    image = sample.images["primary"]
    both = {"primary": image, "wrist": image}
    past = Observation(images=both, intrinsics={})
    two = dataclasses.replace(sample, images=both, depth=None, history=(past,))
    out = Augment()(two, 4, 0, size=32)
    for camera in both:
        assert np.array_equal(out.history[0].images[camera], out.images[camera])
    assert not np.array_equal(out.images["primary"], out.images["wrist"])


def test_nothing_asked_nothing_changed(sample):
    none = Augment(crop_area=1.0, brightness=0, contrast=0, saturation=0, hue=0)
    same = none(sample, 2, 0, size=32)
    assert np.array_equal(same.images["primary"], fit_step(sample, 32, "fast").images["primary"])
