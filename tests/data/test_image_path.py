"""A box whose corners are known in metres is found where K and depth say, before and after.

The box's front face is drawn with the exact coverage of every pixel, so that its edges can be
located to a few hundredths of a pixel from the brightness that a filter keeps.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import InterpolationMode, resize_image

from spatialvla_ft.actions.spaces import end_effector_delta
from spatialvla_ft.data.pictures import (
    WHOLE,
    Box,
    Region,
    crop,
    fit,
    fit_step,
    flip,
    random_region,
    resize,
    resize_bicubic,
)
from spatialvla_ft.data.sample import Observation, Sample

WIDTH, HEIGHT, SIZE = 160, 96, 224
FOCAL = (150.0, 140.0)
K = np.array([[150.0, 0, 76.3], [0, 140.0, 50.9], [0, 0, 1]])
FACE = 1.25
"""Distance of the face, metres; what is behind it is twice as far."""
CORNERS = np.array([[x, y, FACE] for x in (-0.231, 0.317) for y in (-0.172, 0.113)])


def cover(low, high, count):
    """Share of each pixel between two places."""
    edges = np.clip(np.arange(count + 1), low, high)
    return np.diff(edges)


def drawn():
    pixels = CORNERS @ K.T
    u, v = pixels[:, 0] / pixels[:, 2], pixels[:, 1] / pixels[:, 2]
    covered = np.outer(cover(v.min(), v.max(), HEIGHT), cover(u.min(), u.max(), WIDTH))
    image = np.round(30 + 190 * covered).astype(np.uint8)
    depth = np.where(covered > 0.5, FACE, 2 * FACE).astype(np.float32)
    return np.stack([image, 255 - image, image // 2 + 40], axis=-1), depth


@pytest.fixture(scope="module")
def seen():
    image, depth = drawn()
    return Observation(images={"c": image}, depth={"c": depth}, intrinsics={"c": K})


def edges(profile):
    """Where a bright bar begins and ends, from the brightness on either side of its middle."""
    bright = np.flatnonzero(profile > (profile.min() + profile.max()) / 2)
    middle = (bright[0] + bright[-1]) // 2
    low = (profile[:4].mean(), profile[-4:].mean())
    high = profile[middle - 5 : middle + 5].mean()
    left = (profile[:middle] - low[0]) / (high - low[0])
    right = (profile[middle:] - low[1]) / (high - low[1])
    return middle - left.sum(), middle + right.sum(), middle


def corners_found(step):
    """(4, 3) metres: the face's edges from the picture, its distance from depth, rays from K."""
    red, depth, K = step.images["c"][..., 0].astype(float), step.depth["c"], step.intrinsics["c"]
    inside = depth < 1.5 * FACE
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    some_rows = slice(rows[0] + 8, rows[-1] - 7)
    some_columns = slice(columns[0] + 8, columns[-1] - 7)
    left, right, middle = edges(red[some_rows].mean(axis=0))
    top, bottom, centre = edges(red[:, some_columns].mean(axis=1))
    z = depth[centre, middle]
    rays = np.linalg.inv(K) @ np.array([(u, v, 1) for u in (left, right) for v in (top, bottom)]).T
    # The silhouette in depth is the same box: to half a recorded pixel and half a new one.
    for axis, found, places in ((0, (left, right), columns), (1, (top, bottom), rows)):
        allowed = 0.5 * step.intrinsics["c"][axis, axis] / FOCAL[axis] + 0.55
        assert abs(places[0] - found[0]) <= allowed
        assert abs(places[-1] + 1 - found[1]) <= allowed
    return rays.T * z


def check(step, corners=CORNERS):
    error = np.linalg.norm(corners_found(step) - corners, axis=1)
    assert (error / np.linalg.norm(corners, axis=1)).max() < 1e-3, error


def test_the_box_is_found_where_it_is(seen):
    check(seen)


@pytest.mark.parametrize("path", ["parity", "fast"])
@pytest.mark.parametrize("seed", range(4))
def test_the_box_stays_where_it_is(seen, path, seed):
    region = random_region(np.random.default_rng(seed), 0.9)
    out = fit_step(seen, SIZE, path, {"c": region})
    assert out.images["c"].shape == (SIZE, SIZE, 3)
    assert out.depth["c"].shape == (SIZE, SIZE)
    assert abs(out.intrinsics["c"] - K).max() > 10
    check(out)


@pytest.mark.parametrize("path", ["parity", "fast"])
@pytest.mark.parametrize("size", [80, 96, 150, 224])
def test_the_whole_picture_at_any_size(seen, path, size):
    check(fit_step(seen, size, path))


def test_a_mirror_mirrors_the_box(seen):
    mirrored = CORNERS[[2, 3, 0, 1]] * [-1, 1, 1]
    flipped = flip(seen)
    check(flipped, mirrored)
    for path in ("parity", "fast"):
        region = random_region(np.random.default_rng(5), 0.85)
        check(fit_step(flipped, SIZE, path, {"c": region}), mirrored)
    again = flip(flipped)
    np.testing.assert_array_equal(again.images["c"], seen.images["c"])
    np.testing.assert_allclose(again.intrinsics["c"], K)


def as_sample(seen, **changes):
    return Sample(
        images=seen.images,
        depth=seen.depth,
        intrinsics=seen.intrinsics,
        instruction="",
        actions=np.zeros((1, 7), np.float32),
        action_space=end_effector_delta(),
        valid=np.ones(1, bool),
        dataset="x/1",
        episode=0,
        step=0,
        **changes,
    )


def test_crop_then_resize_of_samples(seen):
    sample = as_sample(seen)
    check(resize(crop(sample, {"c": Box(9, 5, 143, 87)}), 224, 150))


def test_past_steps_are_cut_alike(seen):
    sample = as_sample(seen, history=(seen, seen))
    region = random_region(np.random.default_rng(1), 0.9)
    out = fit_step(sample, SIZE, "fast", {"c": region})
    for past in out.history:
        np.testing.assert_array_equal(past.images["c"], out.images["c"])
        np.testing.assert_array_equal(past.intrinsics["c"], out.intrinsics["c"])
        np.testing.assert_array_equal(past.depth["c"], out.depth["c"])


def test_depth_of_another_size_shows_the_same(seen):
    small = dataclasses.replace(seen, depth={"c": seen.depth["c"][::2, ::2]})
    out = fit_step(small, SIZE, "parity", {"c": Region(0.02, 0.03, 0.9, 0.9)})
    full = fit_step(seen, SIZE, "parity", {"c": Region(0.02, 0.03, 0.9, 0.9)})
    assert (out.depth["c"] != full.depth["c"]).mean() < 0.03


def test_what_does_not_follow_a_mirror(seen):
    with pytest.raises(ValueError, match=r"a sample of x/1 has actions, .*flip its observations"):
        flip(as_sample(seen))
    with pytest.raises(ValueError, match="the observation has proprioception"):
        flip(dataclasses.replace(seen, proprio=np.zeros(7, np.float32)))
    with pytest.raises(ValueError, match="the observation has extrinsics"):
        flip(dataclasses.replace(seen, extrinsics={"c": np.eye(4)}))
    skewed = K + np.array([[0, 0.5, 0], [0, 0, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"K of 'c' has a skew of 0\.5"):
        flip(dataclasses.replace(seen, intrinsics={"c": skewed}))


def test_fast_is_the_kernel_of_the_processor():
    """A level or so from transformers' own squash, on noise, which is the hardest picture."""
    from spatialvla_ft.models.camera_inputs import image_processor

    rng = np.random.default_rng(0)
    for height, width in ((480, 640), (256, 320), (100, 90)):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        ours = resize_bicubic(image, SIZE).astype(float)
        theirs = image_processor(SIZE, 14)(image, return_tensors="pt")["pixel_values"][0] * 255
        off = np.abs(ours - theirs.permute(1, 2, 0).numpy())
        assert off.max() < 2.01
        assert off.mean() < 0.02
        assert (off > 1.01).mean() < 1e-4


@pytest.mark.parametrize(("path", "allowed"), [("parity", 0.01), ("fast", 0.75)])
def test_the_region_shown_is_the_one_asked_for(path, allowed):
    """Ramps tell each new pixel's place in the old picture; the region must say the same."""
    v, u = np.mgrid[0:SIZE, 0:SIZE]
    image = np.stack([u, v, u], axis=-1).astype(np.uint8)
    asked = Region(0.1, 0.3, 0.6, 0.5)
    pixels, shown = fit(image, SIZE, path, asked)
    values = pixels * 255.0 if pixels.dtype == np.float32 else pixels.astype(float)
    centres = (np.arange(SIZE) + 0.5) / SIZE
    inner = slice(4, -4)  # a filter bends the ramp at the border of what was cut out
    for channel, begin, length in ((0, shown.left, shown.width), (1, shown.top, shown.height)):
        found = values[..., channel].mean(axis=channel)
        expected = (begin + centres * length) * SIZE - 0.5
        np.testing.assert_allclose(found[inner], expected[inner], atol=allowed)
    for name in ("left", "top", "width", "height"):
        assert abs(getattr(shown, name) - getattr(asked, name)) < 1 / SIZE


def test_no_region_and_the_right_size_change_nothing():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for path in ("parity", "fast"):
        pixels, shown = fit(image, 32, path)
        np.testing.assert_array_equal(pixels, image)
        assert shown == WHOLE


def test_regions_have_their_area_and_stay_inside():
    generator = np.random.default_rng(0)
    regions = [random_region(generator, 0.81) for _ in range(300)]
    lefts = np.array([region.left for region in regions])
    tops = np.array([region.top for region in regions])
    assert {(round(r.width, 9), round(r.height, 9)) for r in regions} == {(0.9, 0.9)}
    assert lefts.min() >= 0
    assert 0.095 < lefts.max() <= 0.1
    assert tops.max() > 0.095
    assert abs(np.corrcoef(lefts, tops)[0, 1]) < 0.2
    assert random_region(generator, 1) == WHOLE


@pytest.mark.parametrize(
    ("region", "path", "message"),
    [
        (Region(0.2, 0, 0.9, 0.5), "fast", "leaves the picture"),
        (Region(-0.1, 0, 0.5, 0.5), "parity", "leaves the picture"),
        (Region(0, 0, 0, 0.5), "parity", "leaves the picture"),
        (WHOLE, "exact", r"'exact' is not known; use one of \('parity', 'fast'\)"),
    ],
)
def test_what_cannot_be_shown(seen, region, path, message):
    with pytest.raises(ValueError, match=message):
        fit(seen.images["c"], 32, path, region)
    with pytest.raises(ValueError, match="area must be"):
        random_region(np.random.default_rng(0), 1.5)


@pytest.mark.parametrize("shape", [(37, 61, 3), (640, 48, 3), (1, 7, 3), (SIZE + 1, SIZE, 3)])
@pytest.mark.parametrize("cut", [slice(None), slice(1, None, 1), slice(0, -1, 2)])
def test_fast_is_bit_for_bit_torchvisions_bicubic(shape, cut):
    image = np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)[:, cut]
    image.setflags(write=False)
    planes = torch.from_numpy(image.copy()).permute(2, 0, 1)
    wanted = resize_image(planes, [SIZE, SIZE], InterpolationMode.BICUBIC, antialias=True)
    found = resize_bicubic(image, SIZE)
    np.testing.assert_array_equal(found, wanted.permute(1, 2, 0).numpy())
    assert found.flags.c_contiguous


@pytest.mark.parametrize("path", ["parity", "fast"])
def test_a_picture_of_floats_is_the_bytes_that_it_is(seen, path):
    """Of a dataset of somebody's own; what can be read in two ways is refused."""
    floats = np.moveaxis(seen.images["c"], -1, 0).astype(np.float32) / 255
    out = fit_step(dataclasses.replace(seen, images={"c": floats}), SIZE, path)
    wanted = fit_step(seen, SIZE, path)
    np.testing.assert_array_equal(out.images["c"], wanted.images["c"])
    np.testing.assert_array_equal(out.intrinsics["c"], wanted.intrinsics["c"])
    levels = dataclasses.replace(seen, images={"c": seen.images["c"].astype(np.float32)})
    with pytest.raises(ValueError, match=r"camera 'c' is float32 .* of 30 .. 225: floats"):
        fit_step(levels, SIZE, path)
