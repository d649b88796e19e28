"""Rare features, in both file formats, against what tfds itself reads."""

import json
import zlib

import ml_dtypes
import numpy as np
import pytest

from spatialvla_ft.bench.small_rlds import write_rlds
from spatialvla_ft.data import build_index
from spatialvla_ft.data.decode import decode_rgb

UNREAD = {
    "observation.zlib_uint32": lambda raw: np.frombuffer(zlib.decompress(raw), "<u4").reshape(2, 2),
    "observation.bytes_uint32": lambda raw: np.frombuffer(raw, "<u4"),
    "observation.sound_file": lambda raw: raw,
}
"""tfds gives their bytes only; how they are to be read."""

MISSING = ("episode_metadata.has", "episode_metadata.vector", "episode_metadata.title")


@pytest.fixture(params=["tfrecord", "array_record"])
def wild(request, wild_written, tmp_path):
    root = wild_written if request.param == "tfrecord" else wild_written / "array_record"
    return build_index(root / "wild" / "1.0.0", out=tmp_path / "index")


def find(tree, path):
    for part in path.split("."):
        tree = tree[part]
    return tree


def same(ours, theirs, dtype):
    """Numbers, their shapes and dtypes, byte strings, and lists of them to any depth."""
    if isinstance(theirs, list) or isinstance(ours, list):
        return len(ours) == len(theirs) and all(
            same(a, b, dtype) for a, b in zip(ours, theirs, strict=True)
        )
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if dtype.kind == "O":
        return ours.tolist() == theirs.tolist()
    # A ragged list of tfds is a list of Python numbers at its innermost level.
    typed = theirs.dtype in (np.int64, np.float64, np.bool_) or ours.dtype == theirs.dtype
    return typed and ours.shape == theirs.shape and np.array_equal(ours, theirs)


def test_every_value(wild, tfds_read):
    compared = set()
    for split, episodes in wild.splits.items():
        content = tfds_read("wild", split)
        assert len(content) == len(episodes)
        for episode, (_, theirs) in zip(episodes, content, strict=True):
            assert wild.episode_lengths[episode] == len(theirs["steps"])
            for leaf in wild.leaves.values():
                if leaf.kind == "image":
                    continue
                ours = wild.column(leaf.path, episode)
                if leaf.level == "episode":
                    number = int(theirs["episode_metadata"]["name"][1:])
                    if leaf.path in MISSING and number % 2:
                        assert ours is None
                    else:
                        assert same(ours, find(theirs, leaf.path), leaf.dtype), leaf.path
                else:
                    assert len(ours) == len(theirs["steps"])
                    for mine, step in zip(ours, theirs["steps"], strict=True):
                        value = find(step, leaf.path)
                        if leaf.path in UNREAD:
                            value = UNREAD[leaf.path](value)
                        assert same(mine, value, leaf.dtype), (leaf.path, mine, value)
                compared.add(leaf.path)
    images = [leaf.path for leaf in wild.leaves.values() if leaf.kind == "image"]
    assert len(images) == 9
    assert len(compared) == len(wild.leaves) - len(images) >= 60


def test_every_dtype_is_the_declared_one(wild):
    kinds = set()
    for name in wild.leaves:
        stem, _, dtype = name.removeprefix("observation.").partition("_")
        if stem in ("plain", "zlib", "bytes") and "." not in stem:
            expected = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
            assert wild.column(name, 0).dtype == expected, name
            kinds.add(dtype)
    assert len(kinds) == 13
    assert wild.column("episode_metadata.half", 1).dtype == ml_dtypes.bfloat16


def test_every_picture_byte_for_byte(wild, tfds_read):
    single = ("any_size", "grey_any", "no_image", "rgb16", "depth32", "labels")
    empty = 0
    for split, episodes in wild.splits.items():
        for episode, (raw, _) in zip(episodes, tfds_read("wild", split), strict=True):
            for key in single:
                for t, step in enumerate(raw["steps"]):
                    ours = wild.image_bytes(episode, t, f"observation.{key}")
                    assert ours == bytes(step["observation"][key])
                    empty += ours == b""
    assert empty == 4  # every second step has none


def test_lists_of_pictures_and_videos(wild, tfds_read):
    def decode(data):
        return [decode(part) for part in data] if isinstance(data, list) else decode_rgb(data)

    for split, episodes in wild.splits.items():
        for episode, (_, theirs) in zip(episodes, tfds_read("wild", split), strict=True):
            for key in ("image_lists", "video"):
                for t, step in enumerate(theirs["steps"]):
                    ours = decode(wild.image_bytes(episode, t, f"observation.{key}"))
                    assert same(ours, list(step["observation"][key]), np.dtype(np.uint8)), key
            photos = decode(wild.image_bytes(episode, 0, "episode_metadata.photos"))
            assert same(photos, list(theirs["episode_metadata"]["photos"]), np.dtype(np.uint8))


def test_both_formats_hold_the_same(written, wild_written, tmp_path):
    one, other = (
        build_index(root / "demo" / "1.0.0", out=tmp_path / root.name)
        for root in (written, wild_written / "array_record")
    )
    assert other.file_format == "array_record"
    assert one.splits == other.splits
    for episode in range(one.num_episodes):
        for key in one.leaves:
            if one.leaf(key).kind != "image":
                assert same(one.column(key, episode), other.column(key, episode), np.dtype("O"))
        for key in one.image_keys:
            for t in range(one.episode_lengths[episode]):
                assert one.image_bytes(episode, t, key) == other.image_bytes(episode, t, key)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn"])
def test_narrow_floats_that_are_stored_as_floats(tmp_path, name):
    """tfds refuses to write bfloat16 so; other writers of RLDS need not."""
    directory = write_rlds(tmp_path, mebibytes=1, shards=1, lengths=[2], steps=3)
    wide = build_index(directory, out=tmp_path / "wide").column("action", 1)
    path = directory / "features.json"
    features = json.loads(path.read_text())
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    steps["featuresDict"]["features"]["action"]["tensor"]["dtype"] = name
    path.write_text(json.dumps(features))
    narrow = build_index(directory).column("action", 1)
    assert narrow.dtype == np.dtype(getattr(ml_dtypes, name, name))
    assert narrow.tobytes() == wide.astype(narrow.dtype).tobytes()
    assert (narrow.astype(np.float32) != wide).any()


def test_a_feature_of_an_unknown_dtype_or_encoding_is_named(zoo):
    path = zoo / "features.json"
    text = path.read_text()
    path.write_text(text.replace('"float64"', '"float3000"'))
    with pytest.raises(ValueError, match=r"steps/observation/f64: dtype 'float3000' is not supp"):
        build_index(zoo)
    features = json.loads(text)
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    steps["featuresDict"]["features"]["action"]["tensor"]["encoding"] = "gzip"
    path.write_text(json.dumps(features))
    with pytest.raises(ValueError, match=r"steps/action: encoding 'gzip' is not one of none, byt"):
        build_index(zoo)
