"""Crop and colour jitter against TensorFlow, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spatialvla_ft.data.colour import Jitter, recolour
from spatialvla_ft.data.pictures import Region, fit, resize_rgb

PROGRAM = Path(__file__).parent / "tf_colours.py"
BOX = (0.031, 0.047, 0.031 + 0.9**0.5, 0.047 + 0.9**0.5)
JITTERS = [
    (0.0, 1.0, 1.0, 0.0),
    (0.17, 1.0, 1.0, 0.0),
    (-0.2, 1.0, 1.0, 0.0),
    (0.0, 0.8, 1.0, 0.0),
    (0.0, 1.2, 1.0, 0.0),
    (0.0, 1.0, 0.8, 0.0),
    (0.0, 1.0, 1.2, 0.0),
    (0.0, 1.0, 1.0, 0.05),
    (0.0, 1.0, 1.0, -0.05),
    (0.2, 1.2, 1.2, -0.05),
    (-0.13, 0.93, 1.14, 0.031),
]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """What TensorFlow makes of a picture with every hue, grey, black and white in it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:180, 0:240]
    waves = [128 + 130 * np.sin(x * a + y * b + c) for a, b, c in rng.uniform(0.01, 0.2, (3, 3))]
    image = np.clip(np.stack(waves, -1), 0, 255).astype(np.uint8)
    image[:30, :40] = 0
    image[:30, 40:80] = 255
    image[:30, 80:120] = 77
    image[-40:, -60:] = rng.integers(0, 256, (40, 60, 3))
    folder = tmp_path_factory.mktemp("colours")
    np.savez(folder / "in.npz", image=image, box=np.array(BOX), jitters=np.array(JITTERS))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder / "in.npz"), str(folder / "out.npz")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {"image": image, **np.load(folder / "out.npz")}


def region():
    top, left, bottom, right = BOX
    return Region(left, top, right - left, bottom - top)


def test_the_square_is_theirs_to_a_level(oracle):
    """Pillow rounds to bytes between columns and rows: a level off, more at hard edges."""
    off = np.abs(resize_rgb(oracle["image"], 224, 224).astype(int) - oracle["square"])
    assert (off > 1).mean() < 0.005
    assert off.mean() < 0.25
    middle = off[40:120]  # no hard edges there
    assert middle.max() <= 1


def test_the_crop_is_theirs(oracle):
    pixels, _ = fit(oracle["square"], 224, "parity", region())
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, oracle["crop"], atol=2e-5)


@pytest.mark.parametrize("i", range(len(JITTERS)), ids=[str(jitter) for jitter in JITTERS])
def test_the_colours_are_theirs(oracle, i):
    """Equal but for truncation to bytes: a float that lands on the other side of a level."""
    off = np.abs(recolour(oracle["crop"], Jitter(*JITTERS[i])).astype(int) - oracle["jittered"][i])
    assert off.max() <= 1
    assert (off > 0).mean() < 1e-3


def test_the_whole_of_it(oracle):
    pixels, _ = fit(oracle["image"], 224, "parity", region())
    off = np.abs(recolour(pixels, Jitter(*JITTERS[-1])).astype(int) - oracle["jittered"][-1])
    assert (off > 2).mean() < 0.01
    assert off.mean() < 0.4
