"""Depth in a sensor's own units is refused at every door; what is hardly metres is warned of."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import NAME, depth_map, picture, tiny_inputs, tiny_model, tiny_processor

from spatialvla_ft.depth.cache import pack
from spatialvla_ft.depth.metres import DepthWarning, reading_in_metres
from spatialvla_ft.depth.sensor import SensorDepth
from spatialvla_ft.quickstart.plots import plot_view
from spatialvla_ft.viz.point_cloud import CameraFrame

MILLIMETRES = np.full((40, 64), 700, np.uint16)
K = np.array([[60.0, 0, 33], [0, 50, 21], [0, 0, 1]])


@pytest.fixture(scope="module")
def tiny():
    return tiny_processor()


def through_the_model(tiny, depth):
    inputs = tiny_inputs(tiny, rows=1)
    inputs["depth"] = torch.as_tensor(np.asarray(depth).astype(np.int32)[None, :32, :32])
    return tiny_model(tiny)(**inputs)


DOORS = {
    "processor": lambda tiny, depth: tiny(picture(0), "go", unnorm_key=NAME, depth=depth),
    "batch": lambda tiny, depth: tiny([picture(0)] * 2, "go", depth=[depth_map(0), depth]),
    "model": through_the_model,
    "sensor": lambda _, depth: SensorDepth(torch.from_numpy(depth.astype(np.int32))[None]),
    "cache": lambda _, depth: pack(depth),
    "points": lambda _, depth: CameraFrame("front", picture(0), depth, K),
    "view": lambda _, depth: plot_view(picture(0), depth, 8),
}


@pytest.mark.parametrize("door", DOORS)
def test_whole_numbers_are_refused_at_every_door(tiny, door):
    with pytest.raises(ValueError, match=r"(uint16|int32).*|metres"):
        DOORS[door](tiny, MILLIMETRES)


@pytest.mark.parametrize(
    "depth",
    [
        MILLIMETRES,
        Image.fromarray(MILLIMETRES),
        torch.full((40, 64), 700, dtype=torch.int32),
        MILLIMETRES.astype(np.int64).tolist(),
        MILLIMETRES > 0,
        np.zeros((40, 64), np.uint16),
    ],
    ids=["uint16", "PIL", "torch", "list", "mask", "zeros"],
)
def test_the_processor_names_type_range_and_cure(tiny, depth):
    """Zeros too: the next picture of the stream has values."""
    wanted = r"depth is (bool|u?int\d\d) \(40, 64\) of (0|1|700) .. .*astype\(np.float32\) / 1000"
    with pytest.raises(ValueError, match=wanted):
        tiny(picture(0), "go", unnorm_key=NAME, depth=depth)


def test_kinds_of_floats_are_the_same_depth(tiny):
    """Half precision keeps eleven binary digits, bfloat16 eight."""
    depth = depth_map(3)
    wanted = tiny(picture(0), "go", unnorm_key=NAME, depth=depth)["depth"]
    flipped = np.ascontiguousarray(depth[::-1])[::-1]
    kinds = [depth.astype(np.float64), depth[None], flipped, Image.fromarray(depth)]
    for one in (*kinds, torch.from_numpy(depth), torch.from_numpy(depth).requires_grad_()):
        assert torch.equal(tiny(picture(0), "go", unnorm_key=NAME, depth=one)["depth"], wanted)
    for one, digits in ((depth.astype(np.float16), 11), (torch.from_numpy(depth).bfloat16(), 8)):
        got = tiny(picture(0), "go", unnorm_key=NAME, depth=one)["depth"]
        torch.testing.assert_close(got, wanted, rtol=2.0**-digits, atol=0)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (np.full((40, 64), 700.0), r"about 7e\+02 m.*0.02 to 20 m.*divided by 1000"),
        (np.full((40, 64), 7e-4), r"about 0.0007 m, .*check its unit$"),
        (np.where(np.eye(40, 64) > 0, 650.0, np.nan), r"the median of depth is about 6e\+02 m"),
        (np.where(np.eye(40, 64) > 0, 0, 30.0), r"about 3e\+01 m"),
    ],
)
def test_what_is_hardly_metres_is_warned_of(tiny, depth, message):
    """Unknown pixels do not count."""
    with pytest.warns(DepthWarning, match=message):
        tiny(picture(0), "go", unnorm_key=NAME, depth=depth)


@pytest.mark.parametrize("value", [0.021, 0.7, 19.9, 0.0, np.nan])
def test_what_may_be_metres_is_not(value):
    """Nor is a map without a known pixel, which is told where depth is needed."""
    depth = np.full((40, 64), value, np.float32)
    depth[:3] = np.inf
    np.testing.assert_array_equal(reading_in_metres(depth), depth)


def test_a_stream_of_such_depth_is_warned_of_once():
    rng = np.random.default_rng(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(50):
            reading_in_metres(rng.uniform(0.7, 0.8) * 1000 * np.ones((4, 4)))
    assert 1 <= len(said) <= 2  # 7e+02 and 8e+02
