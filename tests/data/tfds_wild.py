"""Features of an RLDS dataset that are legal and rare; written and read by tfds in `tfds_write`."""

import io

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

F = tfds.features
BF16 = tf.bfloat16.as_numpy_dtype

INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
FLOATS = (np.float16, np.float32, np.float64, BF16)


def _name(dtype):
    return np.dtype(dtype).name


def _tensor(shape, dtype=np.float32, **kwargs):
    return F.Tensor(shape=shape, dtype=dtype, **kwargs)


NUMBERS = {}
for _dtype in (*INTEGERS, *FLOATS, np.bool_):
    if _dtype is not BF16:  # which tfds refuses to write so
        NUMBERS[f"plain_{_name(_dtype)}"] = _tensor((2,), _dtype)
    NUMBERS[f"zlib_{_name(_dtype)}"] = _tensor((2, 2), _dtype, encoding="zlib")
    NUMBERS[f"bytes_{_name(_dtype)}"] = _tensor((3,), _dtype, encoding="bytes")

OBSERVATION = {
    **NUMBERS,
    "any_size": F.Image(),
    "grey_any": F.Image(shape=(None, None, 1), encoding_format="png"),
    "no_image": F.Image(shape=(None, None, 3), encoding_format="jpeg"),
    "rgb16": F.Image(shape=(4, 6, 3), dtype=np.uint16, encoding_format="png"),
    "depth32": F.Image(shape=(4, 6, 1), dtype=np.float32, encoding_format="png"),
    "labels": F.LabeledImage(labels=3, shape=(4, 6, 1)),
    "image_lists": F.Sequence(F.Sequence(F.Image(shape=(4, 6, 3), encoding_format="png"))),
    "video": F.Video(shape=(None, 4, 6, 3)),
    "sound": F.Audio(shape=(5,), sample_rate=8000),
    "sound_file": F.Audio(file_format="wav", lazy_decode=True),
    "translation": F.Translation(languages=["en", "de"]),
    "translations": F.TranslationVariableLanguages(languages=["en", "de", "fr"]),
    "boxes": F.Sequence({"box": F.BBoxFeature(), "what": F.ClassLabel(names=["a", "b"])}),
    "any_rows": _tensor((None, None, 2), np.uint16, encoding="bytes"),
    "packed": F.Sequence(_tensor((2, 3), np.int16, encoding="zlib")),
    "packed_any": F.Sequence(_tensor((None, None), np.float64, encoding="zlib")),
    "packed_tree": F.Sequence(F.Sequence(_tensor((2,), np.uint8, encoding="bytes"))),
    "deep": F.Sequence(F.Sequence(F.Sequence(F.Scalar(np.int64)))),
    "deep_text": F.Sequence({"words": F.Sequence(F.Text()), "n": F.Scalar(np.int32)}),
    "flags": F.Sequence(F.Scalar(np.bool_)),
    "halves": F.Sequence(_tensor((2,), np.float16)),
    "blob": F.Scalar(np.bytes_),
    "blobs": _tensor((2, 2), np.str_),
    "one": _tensor((1,)),
    "maybe_number": F.Scalar(np.float32, optional=True),
}

UNREAD = ("zlib_uint32", "bytes_uint32", "no_image", "sound_file")
"""What tfds writes and cannot read itself, or only with further packages: compared as bytes."""

WILD = F.FeaturesDict(
    {
        "steps": F.Dataset({"observation": F.FeaturesDict(OBSERVATION), "action": _tensor((7,))}),
        "episode_metadata": F.FeaturesDict(
            {
                "has": F.Scalar(np.int32, optional=True),
                "name": F.Text(),
                "vector": _tensor((3,), np.float64, optional=True),
                "title": _tensor((), np.str_, optional=True),
                "tree": F.Sequence(F.Sequence(F.Scalar(np.int16))),
                "photos": F.Sequence(F.Image(shape=(4, 6, 3), encoding_format="png")),
                "matrix": _tensor((None, None), np.float32, encoding="zlib"),
                "half": _tensor((2,), BF16, encoding="bytes"),
                "row": _tensor((None,)),
                "rows": _tensor((None, 2), np.int32),
                "some_blobs": _tensor((None,), np.str_),
                "sound": F.Audio(shape=(None,), sample_rate=8000),
            }
        ),
        "outcome": F.ClassLabel(names=["failure", "success"]),
    }
)


def _numbers(rng, feature):
    dtype = np.dtype(feature.np_dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, feature.shape).astype(np.bool_)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max, feature.shape, dtype, endpoint=True)
        values.flat[0], values.flat[-1] = info.min, info.max
        return values
    return rng.normal(size=feature.shape).astype(np.float32).astype(dtype)


def wild_episode(number, length):
    rng = np.random.default_rng(200 + number)

    def pixels(*shape, dtype=np.uint8):
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)

    def step(t):
        n = (t + number) % 3
        return {
            **{name: _numbers(rng, feature) for name, feature in NUMBERS.items()},
            "any_size": pixels(3 + t, 5, 3),
            "grey_any": pixels(3, 4 + t, 1),
            "no_image": b"" if t % 2 else tf.io.encode_jpeg(pixels(8, 8, 3)).numpy(),
            "rgb16": pixels(4, 6, 3, dtype=np.uint16),
            "depth32": rng.normal(size=(4, 6, 1)).astype(np.float32),
            "labels": pixels(4, 6, 1) % 3,
            "image_lists": [[pixels(4, 6, 3) for _ in range(k)] for k in range(n + 1)],
            "video": pixels(n + 1, 4, 6, 3),
            "sound": rng.integers(-99, 99, 5),
            "sound_file": io.BytesIO(b"RIFF" + bytes([t, number])),
            "translation": {"en": f"on {t}", "de": f"auf {t}ß"},
            "translations": {"en": f"on {t}", **({"fr": ["sur", "là"]} if n else {})},
            "boxes": [{"box": F.BBox(0.0, k / 9, 0.5, 1.0), "what": k % 2} for k in range(n)],
            "any_rows": rng.integers(0, 9, (n, t, 2), dtype=np.uint16),
            "packed": [rng.integers(-9, 9, (2, 3), dtype=np.int16) for _ in range(n)],
            "packed_any": [rng.normal(size=(n, t)) for _ in range(n + 1)],
            "packed_tree": [[pixels(2) for _ in range(k)] for k in range(n)],
            "deep": [[list(range(j)) for j in range(k)] for k in range(n + 1)],
            "deep_text": [{"words": ["ö" * j for j in range(k)], "n": -k} for k in range(n)],
            "flags": [bool(k % 2) for k in range(n)],
            "halves": [rng.normal(size=2).astype(np.float16) for _ in range(n)],
            "blob": bytes([0, 255, t]),
            "blobs": [["a", ""], ["ü" * t, "x"]],
            "one": np.float32([t]),
            "maybe_number": float(t),
        }

    given = number % 2 == 0
    return {
        "steps": [
            {"observation": step(t), "action": rng.normal(size=7).astype(np.float32)}
            for t in range(length)
        ],
        "episode_metadata": {
            "has": number if given else None,
            "name": f"n{number}",
            "vector": np.arange(3) / 7 if given else None,
            "title": f"t{number}" if given else None,
            "tree": [list(range(k)) for k in range(number + 1)],
            "photos": [pixels(4, 6, 3) for _ in range(number)],
            "matrix": rng.normal(size=(number, 2)).astype(np.float32),
            "half": np.array([0.1, number], BF16),
            "row": rng.normal(size=number).astype(np.float32),
            "rows": rng.integers(-9, 9, (number, 2), dtype=np.int32),
            "some_blobs": ["q" * k for k in range(number)],
            "sound": rng.integers(-99, 99, number * 3),
        },
        "outcome": number % 2,
    }
