"""Whatever form a picture comes in, the model sees the same picture, or an error says why not."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from tiny_world import NAME, picture, tiny_processor

from spatialvla_ft.pictures import rgb_bytes

TOLERANCE = 2 / 255
"""Of a pixel value: half a level by rounding in bfloat16, half by the resize, and its overshoot."""
LEVELS = {
    "all": (0, 256),
    "bright": (128, 256),
    "dark": (0, 2),
    "white": (255, 256),
    "black": (0, 1),
}
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
FLOATS = ("float16", "float32", "float64", "bfloat16")
SCALES = {
    "levels": lambda x: x,
    "unit": lambda x: x / 255,
    "sixteen": lambda x: x * 257,
    "signed": lambda x: x / 127.5 - 1,
    "twice": lambda x: x / 255 / 255,
    "holes": lambda x: np.where(x == x.max(), np.nan, x / 255),
}
NUMBER = r"-?(?:[\d.]+(?:e[+-]\d+)?|inf)"
RANGE = rf"{NUMBER} \.\. {NUMBER}|NaN"


@pytest.fixture(scope="module")
def tiny():
    return tiny_processor()


def shown(rgb):
    """Pixel values by Pillow alone."""
    small = Image.fromarray(rgb).resize((32, 32), Image.Resampling.BICUBIC)
    return np.asarray(small, np.float32).transpose(2, 0, 1) / 255


def drawn(seed, levels, *, grey=False):
    rgb = np.random.default_rng(seed).integers(*LEVELS[levels], (22, 30, 3), dtype=np.uint8)
    return np.repeat(rgb[..., :1], 3, axis=2) if grey else rgb


def in_layout(rgb, layout):
    """(numbers, of every pixel) as float64, in one of the layouts."""
    values = rgb.astype(np.float64)
    if "alpha" in layout:
        values = np.concatenate([values, np.full((*rgb.shape[:2], 1), 255.0)], axis=2)
    if "grey" in layout:
        values = values[..., :1]
    if layout == "grey":
        return values[..., 0]
    return np.moveaxis(values, -1, 0) if "first" in layout else values


def as_type(values, dtype, container):
    if dtype == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    with np.errstate(invalid="ignore", over="ignore"):
        array = values.astype(dtype)
    return torch.from_numpy(np.ascontiguousarray(array)) if container == "torch" else array


FORMS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "levels": st.sampled_from(sorted(LEVELS)),
        "layout": st.sampled_from(
            ["last", "first", "last alpha", "first alpha", "grey", "grey last", "grey first"]
        ),
        "dtype": st.sampled_from([*INTEGERS, *FLOATS, "bool"]),
        "scale": st.sampled_from(sorted(SCALES)),
        "container": st.sampled_from(["numpy", "torch"]),
    }
)


def made(seed, levels, layout, dtype, scale, container):
    """(the picture's bytes, the form that is given) of one draw."""
    rgb = drawn(seed, levels, grey="grey" in layout)
    # A bright picture that was normalised to [-1, 1] lies in [0, 1], and nothing can tell.
    assume(not (scale == "signed" and levels in ("bright", "white")))
    if dtype in (*INTEGERS, "bool"):
        scale = scale if scale == "sixteen" else "levels"
        limit = 1 if dtype == "bool" else np.iinfo(dtype).max
        assume(
            int(rgb.max()) * (257 if scale == "sixteen" else 1) <= limit
        )  # else not this picture
        assume(not (dtype == "bool" and rgb.max() == 1))  # True is white, not level 1
        assume(not (dtype == "uint8" and scale == "sixteen"))
    return rgb, as_type(SCALES[scale](in_layout(rgb, layout)), dtype, container)


def answered(processor, one):
    """(pixel values, None) or (None, the error's words)."""
    try:
        return processor(images=one, text="go", unnorm_key=NAME)["pixel_values"][0].numpy(), None
    except ValueError as error:
        return None, str(error)


@given(form=FORMS)
def test_the_same_picture_or_an_error_that_names_type_and_range(tiny, form):
    rgb, one = made(**form)
    got, refusal = answered(tiny, one)
    if refusal is not None:
        known = "float32" if form["dtype"] == "bfloat16" else form["dtype"]
        assert known in refusal
        assert re.search(RANGE, refusal)
        return
    np.testing.assert_allclose(got, shown(rgb), atol=TOLERANCE, rtol=0)


@given(forms=st.lists(FORMS, min_size=2, max_size=3), nested=st.booleans())
def test_a_batch_of_different_forms_is_each_of_them(tiny, forms, nested):
    """One that cannot be read refuses the batch, and is the one that is named."""
    pairs = [made(**form) for form in forms]
    alone = []
    for i, (_, one) in enumerate(pairs):
        try:
            rgb_bytes(one)
        except ValueError:
            alone.append(i)
    images = [[one] if nested else one for _, one in pairs]
    if alone:
        with pytest.raises(ValueError, match=rf"images\[{alone[0]}\] is "):
            tiny(images=images, text="go", unnorm_key=NAME)
        return
    got = tiny(images=images, text="go", unnorm_key=NAME)["pixel_values"].numpy()
    wanted = np.stack([shown(rgb) for rgb, _ in pairs])
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0)


READ = [("uint8", "levels"), ("int32", "levels"), ("int64", "levels"), ("uint32", "levels")]
READ += [(dtype, "unit") for dtype in FLOATS]


@pytest.mark.parametrize("layout", ["last", "first", "last alpha", "first alpha", "grey"])
@pytest.mark.parametrize(("dtype", "scale"), READ)
def test_forms_that_leave_no_doubt_are_read(dtype, scale, layout):
    """Levels come back exactly, but from eight bits of float."""
    rgb = drawn(7, "all", grey=layout == "grey")
    values = SCALES[scale](in_layout(rgb, layout))
    for container in ("numpy", "torch"):
        got = rgb_bytes(as_type(values, dtype, container))
        assert got.dtype == np.uint8
        assert got.flags.c_contiguous
        off = np.abs(got.astype(int) - rgb).max()
        assert off <= (dtype == "bfloat16"), (container, off)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((20, 30, 3), 200.0), r"float64 \(20, 30, 3\) of 200 .. 200: .*picture / 255"),
        (np.linspace(-1, 1, 1800).reshape(20, 30, 3), r"float64 .* of -1 .. 1: .*\(picture \+ 1\)"),
        (np.linspace(0, 1.2, 1800).reshape(20, 30, 3), r"of 0 .. 1.2: .*clip\(0, 1\)"),
        (np.eye(30)[:20], r"float64 .* of 0 .. 1, of nothing but 0 and 1: .*uint8"),
        (np.eye(30, dtype=np.int64)[:20], r"int64 .* of 0 .. 1, of nothing but 0 and 1"),
        (np.ones((20, 30, 3), np.float32), r"float32 .* of 1 .. 1, of nothing but 0 and 1"),
        (np.full((20, 30), 0.0039), r"of 0.0039 .. 0.0039: .*divided by 255 twice"),
        (np.full((20, 30), np.nan), r"float64 \(20, 30\) with 600 NaN: .*finite"),
        (np.full((20, 30), np.inf), r"of inf .. inf: .*finite"),
        (np.full((20, 30, 3), 900, np.uint16), r"uint16 .* of 900 .. 900.*/ 65535.*12 bits / 4095"),
        (np.full((20, 30, 3), 200, np.uint16), r"uint16 .* of 200 .. 200.*astype\(np.uint8\)"),
        (np.full((20, 30, 3), 900, np.int32), r"int32 .* of 900 .. 900: whole numbers .* 0..255"),
        (np.full((20, 30, 3), -3), r"int64 .* of -3 .. -3: whole numbers"),
        (np.ones((20, 30, 3), bool), r"bool .* of 1 .. 1: a mask is no picture"),
        (np.ones((20, 30, 3), complex), r"complex128 .*: a picture is uint8, or float"),
        (np.full((20, 30), "x"), r"<U1 .*: a picture is uint8"),
        (
            np.zeros((20, 30, 5), np.uint8),
            r"uint8 \(20, 30, 5\) of 0 .. 0: a picture is \(H, W",
        ),
        (np.zeros((3, 30, 3), np.uint8), r"uint8 \(3, 30, 3\) .*first axis or the last: .*PIL"),
        (np.zeros((1, 2, 20, 30), np.uint8), r"uint8 \(1, 2, 20, 30\) of"),
        (np.zeros((0, 30, 3)), r"float64 \(0, 30, 3\): a picture is"),
        (np.uint8(3), r"uint8 \(\) of 3 .. 3: a picture is"),
        ("camera.png", r"the picture is a path, 'camera.png': .*PIL.Image.open"),
        (b"\xff\xd8\xff", r"3 bytes of a file: .*io.BytesIO"),
        (None, "is a builtins.NoneType: pass a PIL image"),
        ({"path": "x"}, "is a builtins.dict: pass a PIL image"),
        (io.StringIO("x"), "is a _io.StringIO: pass a PIL image"),
        (torch.zeros(20, 30, 3).to_sparse(), "makes no NumPy array"),
    ],
)
def test_what_may_be_two_pictures_is_refused_with_the_cure(values, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        rgb_bytes(values)


def test_black_is_black_in_every_type():
    """No reading of zeros shows anything else, and a lens may be covered."""
    for dtype in ("uint8", "int32", "float32"):
        assert not rgb_bytes(np.zeros((20, 30, 3), dtype)).any()
    assert not rgb_bytes(np.dstack([np.zeros((20, 30, 3)), np.ones((20, 30))])).any()  # alpha 1


def test_rounding_beyond_the_range_is_taken_for_what_it_is():
    values = np.linspace(-4e-7, 1 + 4e-7, 1800, dtype=np.float32).reshape(20, 30, 3)
    got = rgb_bytes(values)
    assert (got.min(), got.max()) == (0, 255)


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"]


@pytest.mark.parametrize("mode", MODES)
def test_pil_images_are_what_pillow_shows(mode):
    grey = mode in ("L", "LA", "1")
    image = Image.fromarray(drawn(3, "all", grey=grey)).convert(mode)
    np.testing.assert_array_equal(rgb_bytes(image), np.asarray(image.convert("RGB")))


def test_a_palette_with_a_transparent_colour_keeps_its_colours():
    image = Image.fromarray(drawn(3, "all")).quantize(8)
    wanted = np.asarray(image.convert("RGB"))
    buffer = io.BytesIO()
    image.save(buffer, "png", transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(rgb_bytes(Image.open(buffer)), wanted)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((20, 30), 40_000, np.uint16)), "uint16 .* of 40000 .. 40000"),
        (Image.fromarray(np.full((20, 30), 40_000, np.int32)), "int32 .* of 40000 .. 40000"),
        (Image.fromarray(np.full((20, 30), 40.0, np.float32)), "float32 .* of 40 .. 40"),
    ],
)
def test_pil_images_of_numbers_are_judged_as_numbers(image, message):
    with pytest.raises(ValueError, match=message):
        rgb_bytes(image)


def test_a_file_that_is_cut_short_is_an_error_of_the_picture():
    buffer = io.BytesIO()
    Image.fromarray(picture(1)).save(buffer, "png")
    cut = Image.open(io.BytesIO(buffer.getvalue()[:900]))
    with pytest.raises(ValueError, match="mode RGB, 64 x 40, that cannot be read"):
        rgb_bytes(cut)


def test_bytes_are_not_copied():
    rgb = picture(0)
    assert np.shares_memory(rgb_bytes(rgb), rgb)


@pytest.mark.parametrize("batch", [np.stack, lambda x: torch.from_numpy(np.stack(x))])
def test_a_batch_in_one_array_is_its_pictures(tiny, batch):
    rgb = [picture(0), picture(1)]
    floats = [np.moveaxis(one, -1, 0).astype(np.float32) / 255 for one in rgb]
    got = tiny(images=batch(floats), text="go", unnorm_key=NAME)["pixel_values"]
    assert torch.equal(got, tiny(images=rgb, text="go", unnorm_key=NAME)["pixel_values"])


@pytest.mark.parametrize("channels", [1, 4])
def test_depth_and_k_belong_to_the_picture_not_to_its_channels(tiny, channels):
    """(H, W, 4) has a height of H, whatever comes last."""
    array = np.zeros((40, 64, channels), np.uint8)
    K, depth = np.array([[60.0, 0, 32], [0, 60, 20], [0, 0, 1]]), np.full((40, 64), 0.7)
    got = tiny(images=array, text="go", intrinsic=K, depth=depth)
    wanted = np.diag([32 / 64, 32 / 40, 1]) @ K
    np.testing.assert_allclose(got["intrinsics"][0], wanted, rtol=1e-6)
    np.testing.assert_allclose(got["depth"][0], 0.7)


@pytest.mark.parametrize("images", ["x.png", ["x.png"], b"x"])
def test_a_path_is_refused_with_the_cure(tiny, images):
    with pytest.raises(ValueError, match=r"PIL\.Image\.open"):
        tiny(images=images, text="go", unnorm_key=NAME)
