"""Damaged, foreign, stale and unsupported: each refused by name, with the cure."""

import json
import os
import shutil

import pytest

from spatialvla_ft.data import DatasetError, FrameIndex, build_index


def shard_of(directory, split="train"):
    return sorted(directory.glob(f"*{split}.tfrecord*"))[0]


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def payload_middle(directory, index):
    """A byte inside an encoded image of the first shard."""
    index._open()
    batch, _ = index._steps.locate(0)
    return batch.column("observation.image_front@offset")[0].as_py() + 40


def test_a_flipped_byte_is_caught_with_crc_only(demo, tmp_path):
    at = payload_middle(demo, build_index(demo, out=tmp_path / "clean"))
    shard = shard_of(demo)
    flip(shard, at)
    with pytest.raises(DatasetError, match=r"is damaged: the record at byte 0 .*CRC.*fetch") as e:
        build_index(demo, out=tmp_path / "a")
    assert str(shard) in str(e.value)
    assert not (tmp_path / "a").exists()
    assert not build_index(demo, out=tmp_path / "b", verify_crc=False).crc_verified


@pytest.mark.parametrize("keep", [7, 40, -3])
def test_a_truncated_shard(demo, keep):
    shard = shard_of(demo)
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(DatasetError, match=r"is truncated: the record at byte \d+ .*fetch") as e:
        build_index(demo)
    assert str(shard) in str(e.value)


def test_a_foreign_file(demo):
    shard_of(demo).write_bytes(b"<html>not found</html>" * 10)
    with pytest.raises(DatasetError, match="is not a TFRecord file"):
        build_index(demo)


def test_no_example_inside(demo):
    import struct

    from spatialvla_ft.data.rlds.records import masked_crc

    data = b"\xff\x07 something else"
    head = struct.pack("<Q", len(data))
    record = head + struct.pack("<I", masked_crc(head)) + data + struct.pack("<I", masked_crc(data))
    shard_of(demo).write_bytes(record)
    with pytest.raises(DatasetError, match=r"not a tf.train.Example"):
        build_index(demo)


def test_a_missing_shard(demo):
    shard_of(demo).unlink()
    with pytest.raises(DatasetError, match=r"demo-train.*is missing, though dataset_info.json"):
        build_index(demo)


def test_a_wrong_number_of_episodes(demo):
    path = demo / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"][0] = "7"
    path.write_text(json.dumps(info))
    with pytest.raises(DatasetError, match=r"holds \d episodes, dataset_info.json says 7"):
        build_index(demo)


def test_an_unindexed_leaf_is_an_error_and_never_dropped(demo):
    path = demo / "features.json"
    features = json.loads(path.read_text())
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    del steps["featuresDict"]["features"]["reward"]
    path.write_text(json.dumps(features))
    with pytest.raises(DatasetError, match=r"not in features.json \['steps/reward'\]"):
        build_index(demo)


def test_a_leaf_without_data(demo):
    path = demo / "features.json"
    features = json.loads(path.read_text())
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]
    steps["features"]["force"] = steps["features"]["reward"]
    path.write_text(json.dumps(features))
    with pytest.raises(DatasetError, match=r"not in the record \['steps/force'\]"):
        build_index(demo)


def test_a_wrong_shape(demo):
    path = demo / "features.json"
    path.write_text(path.read_text().replace('"7"', '"6"'))
    with pytest.raises(DatasetError, match=r"feature 'steps/action'"):
        build_index(demo)


def test_an_unsupported_feature_class(demo):
    path = demo / "features.json"
    features = json.loads(path.read_text())
    root = features["featuresDict"]["features"]
    root["sound"] = {"pythonClassName": "my.features.Smell", "jsonFeature": {}}
    path.write_text(json.dumps(features))
    with pytest.raises(DatasetError, match="sound: features of class Smell are not indexed"):
        build_index(demo)


@pytest.mark.parametrize("name", ["riegeli", "parquet"])
def test_other_file_formats_are_refused_by_name(demo, name):
    path = demo / "dataset_info.json"
    path.write_text(path.read_text().replace('"tfrecord"', f'"{name}"'))
    with pytest.raises(DatasetError, match=rf"{name}.*Convert it"):
        build_index(demo)


def test_no_dataset(tmp_path):
    with pytest.raises(DatasetError, match=r"features.json is missing; give the version directory"):
        build_index(tmp_path)


def test_a_fresh_index_is_opened_and_not_built_again(demo):
    first = build_index(demo).path / "steps.arrow"
    before = first.stat().st_mtime_ns
    build_index(demo)
    assert first.stat().st_mtime_ns == before
    build_index(demo, rebuild=True)
    assert first.stat().st_mtime_ns != before


def test_stale_size(demo):
    build_index(demo)
    shard = shard_of(demo)
    times = shard.stat().st_mtime_ns
    shard.write_bytes(shard.read_bytes() + b"x")
    os.utime(shard, ns=(times, times))
    with pytest.raises(DatasetError, match=rf"stale index: shard {shard.name} changed its size"):
        build_index(demo)


def test_stale_time(demo):
    build_index(demo)
    shard = shard_of(demo, "val")
    os.utime(shard, ns=(1, 1))
    with pytest.raises(DatasetError, match=rf"shard {shard.name} changed its mtime.*--rebuild"):
        build_index(demo)
    assert build_index(demo, rebuild=True).num_steps == 36


def test_stale_features(demo):
    build_index(demo)
    path = demo / "features.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DatasetError, match=r"features.json has changed"):
        build_index(demo)


def test_stale_format(demo):
    meta = build_index(demo).path / "meta.json"
    meta.write_text(meta.read_text().replace('"format_version": 2', '"format_version": 0'))
    with pytest.raises(DatasetError, match="format version 0"):
        FrameIndex(meta.parent)


def test_stale_shard_names(demo):
    meta = build_index(demo).path / "meta.json"
    meta.write_text(meta.read_text().replace("00000-of", "00009-of"))
    with pytest.raises(DatasetError, match=r"00009-of.* is now .*00000-of"):
        FrameIndex(meta.parent)


def test_an_unwritable_dataset_asks_for_out(demo, tmp_path):
    (demo / "frame_index").write_text("in the way")
    with pytest.raises(DatasetError, match=r"exists and is no frame index; pass another .*out="):
        build_index(demo)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DatasetError, match=r"cannot write an index.*out="):
        build_index(demo, out=blocked / "index")
    assert build_index(demo, out=tmp_path / "elsewhere").num_steps == 36


def test_an_index_elsewhere_knows_its_dataset(demo, tmp_path):
    build_index(demo, out=tmp_path / "index")
    assert FrameIndex(tmp_path / "index").image_bytes(0, 0, "observation.image_front")
    shutil.rmtree(demo)
    with pytest.raises(DatasetError, match="is missing"):
        FrameIndex(tmp_path / "index")


def test_unknown_keys_and_places(demo):
    index = build_index(demo)
    with pytest.raises(DatasetError, match=r"no feature 'observation.imag'; it has"):
        index.image_bytes(0, 0, "observation.imag")
    with pytest.raises(DatasetError, match="is no image"):
        index.image_bytes(0, 0, "action")
    with pytest.raises(DatasetError, match="is an image"):
        index.column("observation.image_front", 0)
    with pytest.raises(IndexError, match="episode 9 of demo: it has 9"):
        index.column("action", 9)
    with pytest.raises(IndexError, match="it has 4 steps"):
        index.image_bytes(0, 4, "observation.image_front")
