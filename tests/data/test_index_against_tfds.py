"""Every byte and every number against what tfds itself reads."""

import pickle

import numpy as np
import pytest

from spatialvla_ft.data import build_index


def leaf_values(steps, path):
    """Values of a dotted path; a `/` belongs to the key."""
    values = []
    for step in steps:
        value = step
        for part in path.split("."):
            value = value[part]
        values.append(value)
    return values


def equal(ours, theirs):
    """Nested comparison: shapes, numbers and bytes."""
    if isinstance(theirs, list) or (isinstance(ours, list) and len(ours) != 0):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    theirs = np.asarray(theirs)
    ours = np.asarray(ours)
    return ours.size == theirs.size and (
        ours.size == 0 or (ours.shape == theirs.shape and (ours == theirs).all())
    )


@pytest.fixture
def pairs(request, written, tfds_read, tmp_path):
    name = request.param
    index = build_index(written / name / "1.0.0", out=tmp_path / "index")
    return index, {split: tfds_read(name, split) for split in index.splits}


@pytest.mark.parametrize("pairs", ["demo", "zoo"], indirect=True)
def test_all_columns(pairs):
    index, splits = pairs
    compared = set()
    for split, content in splits.items():
        assert len(index.splits[split]) == len(content)
        for episode, (_, decoded) in zip(index.splits[split], content, strict=True):
            steps = decoded["steps"]
            assert index.episode_lengths[episode] == len(steps)
            for leaf in index.leaves.values():
                if leaf.kind == "image":
                    continue
                ours = index.column(leaf.path, episode)
                if leaf.level == "episode":
                    theirs = decoded
                    for part in leaf.path.split("."):
                        theirs = theirs[part]
                    assert equal(ours, theirs), leaf.path
                else:
                    assert len(ours) == len(steps)
                    for t, theirs in enumerate(leaf_values(steps, leaf.path)):
                        assert equal(ours[t], theirs), (leaf.path, ours[t], theirs)
                        if isinstance(theirs, np.ndarray) and theirs.dtype.kind in "iufb":
                            assert np.asarray(ours[t]).dtype == theirs.dtype, leaf.path
                compared.add(leaf.path)
    assert len(compared) == sum(leaf.kind != "image" for leaf in index.leaves.values())


@pytest.mark.parametrize("pairs", ["demo", "zoo"], indirect=True)
def test_image_bytes(pairs):
    index, splits = pairs
    count = 0
    for split, content in splits.items():
        for episode, (raw, _) in zip(index.splits[split], content, strict=True):
            for key in index.image_keys:
                if index.leaf(key).ragged:
                    continue
                for t, theirs in enumerate(leaf_values(raw["steps"], key)):
                    assert index.image_bytes(episode, t, key) == bytes(theirs)
                    count += 1
    assert count >= 40


@pytest.mark.parametrize("pairs", ["zoo"], indirect=True)
def test_sequences_of_images(pairs):
    from spatialvla_ft.data.decode import decode_rgb

    index, splits = pairs
    key = "observation.some_images"
    seen = 0
    for episode, (_, decoded) in enumerate(splits["train"]):
        for t, theirs in enumerate(leaf_values(decoded["steps"], key)):
            ours = [decode_rgb(data) for data in index.image_bytes(episode, t, key)]
            assert equal(ours, [np.asarray(image) for image in theirs])
            seen += len(ours)
    assert seen > 5


@pytest.mark.parametrize("pairs", ["demo", "zoo"], indirect=True)
def test_an_offset_of_one_byte_fails(pairs):
    """Negative control: the comparison above sees a shifted read."""
    index, splits = pairs
    key = index.image_keys[0]
    raw = splits["train"][0][0]
    episode = index.splits["train"][0]
    index._open()
    batch, row = index._steps.locate(index._of(episode, "first_step"))
    offset = batch.column(f"{key}@offset")[row].as_py()
    size = batch.column(f"{key}@length")[row].as_py()
    theirs = bytes(leaf_values(raw["steps"], key)[0])
    assert index._read(episode, offset, size) == theirs
    assert index._read(episode, offset + 1, size) != theirs


def test_train_comes_first_and_splits_are_kept(demo):
    index = build_index(demo)
    assert list(index.splits) == ["train", "val"]
    assert index.splits == {"train": range(6), "val": range(6, 9)}
    assert index.num_episodes == 9
    assert index.num_steps == 27 + 9 == int(index.episode_lengths.sum())


def test_record_names_are_understood(demo):
    index = build_index(demo)
    ours = index.column("observation.state", 2)
    np.testing.assert_array_equal(index.column("observation/state", 2), ours)
    np.testing.assert_array_equal(index.column("steps/observation/state", 2), ours)


def test_one_value_equals_its_column(zoo):
    index = build_index(zoo)
    for leaf in index.leaves.values():
        if leaf.kind != "image" and leaf.level == "step":
            assert equal(index.value(leaf.path, 0, 3), index.column(leaf.path, 0)[3]), leaf.path


def test_survives_pickle(demo):
    index = build_index(demo)
    key = "observation.image_front"
    here = index.image_bytes(3, 0, key)
    assert pickle.loads(pickle.dumps(index)).image_bytes(3, 0, key) == here
