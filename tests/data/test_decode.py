"""Decoders against PIL, and their refusals."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from spatialvla_ft.data import DatasetError
from spatialvla_ft.data.decode import decode_depth, decode_rgb, to_metres
from spatialvla_ft.data.rlds.episodes import RldsStore


def encode(array, kind, **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (17, 23, 4), dtype=np.uint8)


def test_png_of_every_channel_count(pixels):
    np.testing.assert_array_equal(decode_rgb(encode(pixels[..., :3], "png")), pixels[..., :3])
    np.testing.assert_array_equal(decode_rgb(encode(pixels, "png")), pixels[..., :3])
    grey = decode_rgb(encode(pixels[..., 0], "png"))
    np.testing.assert_array_equal(grey, np.repeat(pixels[..., :1], 3, axis=2))


def test_palette_png(pixels):
    out = io.BytesIO()
    image = Image.fromarray(pixels[..., :3]).quantize(16)
    image.save(out, "png")
    np.testing.assert_array_equal(decode_rgb(out.getvalue()), np.asarray(image.convert("RGB")))


def test_jpeg_is_what_libjpeg_says(pixels):
    data = encode(pixels[..., :3], "jpeg", quality=95)
    theirs = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_allclose(decode_rgb(data, fast_dct=False).astype(int), theirs, atol=2)
    assert decode_rgb(encode(pixels[..., 0], "jpeg")).shape == (17, 23, 3)


def test_depth_16_bit(pixels):
    depth = np.random.default_rng(1).integers(0, 2**16, (5, 6), dtype=np.uint16)
    np.testing.assert_array_equal(decode_depth(encode(depth, "png"), np.dtype("uint16")), depth)


def test_depth_float32():
    depth = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    data = encode(depth.view(np.uint8).reshape(5, 6, 4), "png")
    np.testing.assert_array_equal(decode_depth(data, np.dtype("float32")), depth)


def test_metres():
    stored = np.array([[0, 10000, 65535]], np.uint16)
    np.testing.assert_allclose(to_metres(stored, 1e-4), [[0, 1, 6.5535]], rtol=1e-6)
    strange = np.array([[np.nan, -1, np.inf, 2]])
    assert to_metres(strange, 0.5).tolist() == [[0, 0, 0, 1]]


def test_refusals(pixels):
    with pytest.raises(DatasetError, match="neither JPEG nor PNG: 4 bytes that start with b'GIF8'"):
        decode_rgb(b"GIF8")
    with pytest.raises(DatasetError, match="damaged JPEG"):
        decode_rgb(b"\xff\xd8\xff\xe0 nothing")
    with pytest.raises(DatasetError, match="damaged PNG"):
        decode_rgb(encode(pixels, "png")[:60])
    with pytest.raises(DatasetError, match="one channel"):
        decode_depth(encode(pixels[..., :3], "png"), np.dtype("uint8"))
    with pytest.raises(DatasetError, match="8 bits"):
        decode_rgb(encode(pixels[..., 0].astype(np.uint16), "png"))


def store_of(leaf, value=None):
    """An RLDS dataset of one feature."""
    index = SimpleNamespace(
        name="lab", version="1.0.0", leaf=lambda _: leaf, value=lambda *_: value
    )
    return RldsStore(index)


def test_pictures_that_are_plain_tensors_are_judged_as_everywhere(pixels):
    rgb = np.tile(pixels[..., :3], (3, 3, 1))
    leaf = SimpleNamespace(kind="tensor")
    for given in (rgb, rgb.astype(np.float32) / 255, np.moveaxis(rgb, -1, 0).astype(np.int64)):
        np.testing.assert_array_equal(store_of(leaf, given).rgb("cam", 2, 5), rgb)
    where = r"'cam' of lab/1.0.0, episode 2, step 5 is float32 .* floats are read as \[0, 1\]"
    with pytest.raises(DatasetError, match=where):
        store_of(leaf, rgb.astype(np.float32)).rgb("cam", 2, 5)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_camera_of_16_bits_is_refused_when_the_dataset_is_opened(dtype):
    """tfds keeps float32 images as the bytes of an RGBA PNG, which would pass for colours."""
    store = store_of(SimpleNamespace(kind="image", dtype=np.dtype(dtype), shape=(), ragged=False))
    with pytest.raises(DatasetError, match=f"'cam' of lab/1.0.0 is an image of {dtype}, .*depth:"):
        store.check_image("cam", depth=False)
    store.check_image("cam", depth=True)
