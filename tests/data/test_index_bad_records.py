"""Damage of every kind: an error with file, offset and cure, or left out, counted and told."""

import json
import logging
import shutil
import struct

import numpy as np
import pytest
from typer.testing import CliRunner

from spatialvla_ft.bench.small_rlds import masked_crc, write_record, write_rlds
from spatialvla_ft.cli.main import app
from spatialvla_ft.data import DatasetError, build_index, open_dataset
from spatialvla_ft.data.cards.files import load_cards

LENGTHS = [3, 2]
CARD = """\
schema_version: 1
cards:
  generated:
    version: 1.0.0
    robot: none
    control_hz: 5
    cameras: {primary: observation.image_0}
    action:
      encoding: EEF_POS
      translation: ["action[0:3]"]
      rotation: {raw: labelled_euler, terms: ["action[3:6]"]}
      gripper: ["action[-1:]"]
"""


@pytest.fixture
def small(tmp_path):
    path = write_rlds(tmp_path, mebibytes=1, shards=2, steps=3, picture_bytes=500, lengths=LENGTHS)
    (path / "card.yaml").write_text(CARD)
    return path


def shard_of(directory, number=0):
    return directory / f"generated-train.tfrecord-{number:05d}-of-00002"


def starts(path):
    """Byte at which each record's framing starts, by a loop of its own."""
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        found.append(at)
        at += 16 + struct.unpack_from("<Q", data, at)[0]
    return found


def edit(path, at, value=None):
    data = bytearray(path.read_bytes())
    data[at] = data[at] ^ 4 if value is None else value
    path.write_bytes(data)


def flip_data(path):
    at = starts(path)[1]
    edit(path, at + 700)
    return at, 1


def flip_length(path):
    at = starts(path)[1]
    edit(path, at + 1)
    return at, 2


def flip_length_crc(path):
    at = starts(path)[2]
    edit(path, at + 9)
    return at, 1


def flip_data_crc(path):
    at = starts(path)[2]
    edit(path, path.stat().st_size - 1)
    return at, 1


def truncate(path):
    at = starts(path)[2]
    path.write_bytes(path.read_bytes()[: at + 50])
    return at, 1


def truncate_header(path):
    at = starts(path)[2]
    path.write_bytes(path.read_bytes()[: at + 5])
    return at, 1


def cut_between_records(path):
    at = starts(path)[2]
    path.write_bytes(path.read_bytes()[:at])
    return at, 1


def foreign(path):
    path.write_bytes(b"\x89PNG\r\n\x1a\n" * 99)
    return 0, 3


def empty(path):
    path.write_bytes(b"")
    return 0, 3


def no_example(path):
    data = path.read_bytes()
    at = starts(path)
    with path.open("wb") as file:
        file.write(data[: at[1]])
        write_record(file, b"\x0a\x05 is text, not an example")
        file.write(data[at[2] :])
    return at[1], 1


def other_features(path):
    """A record that is an Example, of another dataset."""
    data, at = path.read_bytes(), starts(path)
    with path.open("wb") as file:
        file.write(data[: at[2]])
        write_record(file, b"\x0a\x0b\x0a\x09\x0a\x03key\x12\x02\x1a\x00")
    return at[2], 1


DAMAGE = {
    flip_data: "is damaged: the record at byte {at} .* fails its CRC",
    flip_data_crc: "is damaged: the record at byte {at} .* fails its CRC",
    flip_length: "is damaged: no valid record length at byte {at}",
    flip_length_crc: "is damaged: no valid record length at byte {at}",
    truncate: "is truncated: the record at byte {at} runs past the end",
    truncate_header: "is truncated: the record at byte {at} runs past the end",
    cut_between_records: "ends at byte {at} and holds 2 episodes, dataset_info.json says 3",
    foreign: "is not a TFRecord file: no valid record length at byte {at}",
    empty: "is empty at byte {at}, dataset_info.json says that it holds 3 episodes",
    no_example: "record at byte {at}: not a tf.train.Example",
    other_features: "record at byte {at}: the record and features.json disagree",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_an_error_names_file_offset_and_cure(small, damage):
    shard = shard_of(small)
    at, _ = damage(shard)
    with pytest.raises(DatasetError, match=DAMAGE[damage].format(at=at)) as error:
        build_index(small)
    assert str(shard) in str(error.value)
    assert "fetch" in str(error.value)
    assert not (small / "frame_index").exists()


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_skipping_counts_and_says_so(small, tmp_path, damage, caplog):
    whole = build_index(small, out=tmp_path / "whole")
    key = "observation.image_1"
    pictures = [whole.image_bytes(i, 2, key) for i in range(5)]
    good = [(whole.column("action", i), i) for i in range(5)]
    shard = shard_of(small)
    at, lost = damage(shard)
    with caplog.at_level(logging.WARNING):
        index = build_index(small, on_bad_record="skip")
    assert len(caplog.records) == 1
    said = caplog.records[0].getMessage()
    assert f"{lost} of 5 episodes were skipped ({shard.name}" in said
    assert "--rebuild" in said
    assert index.num_episodes == 5 - lost == len(index.splits["train"])
    assert index.num_skipped == lost
    [(position, reason)] = index.skipped[shard.name]
    assert position == at
    assert str(shard) in reason
    meta = json.loads((index.path / "meta.json").read_text())
    assert sum(s["expected"] - s["episodes"] for s in meta["shards"]) == lost
    # What is there is what was there before, with its pictures.
    ours = [index.column("action", i) for i in range(index.num_episodes)]
    match = [next(i for a, i in good if np.array_equal(a, mine)) for mine in ours]
    assert match == sorted(match)
    assert {3, 4} <= set(match)
    assert [index.image_bytes(i, 2, key) for i in range(5 - lost)] == [pictures[i] for i in match]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        data = open_dataset(small, card=load_cards(small / "card.yaml")["generated"])
    assert any("is incomplete" in record.getMessage() for record in caplog.records)
    assert len(data.episodes) == 5 - lost


def test_several_bad_records_of_several_shards(small, caplog):
    flip_data(shard_of(small))
    flip_data_crc(shard_of(small))
    edit(shard_of(small, 1), 900)
    index = build_index(small, on_bad_record="skip", workers=1)
    assert [len(found) for found in index.skipped.values()] == [2, 1]
    assert index.num_episodes == 2
    assert index.splits == {"train": range(2)}
    assert "2 bad records" in index.incomplete
    assert "1 bad record)" in index.incomplete


def test_nothing_left_is_an_error(small):
    for number in (0, 1):
        shard_of(small, number).write_bytes(b"")
    with pytest.raises(DatasetError, match=r"no episodes, so .* first of 2 errors: .*is empty"):
        build_index(small, on_bad_record="skip")


def test_swapped_shards(small):
    first, second = shard_of(small, 0), shard_of(small, 1)
    a, b = first.read_bytes(), second.read_bytes()
    build_index(small)
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(DatasetError, match=r"stale index: shard .*00000-of.*--rebuild"):
        build_index(small)
    text = rf"{first} ends at byte {len(b)} and holds 2 .* says 3 .*swapped with another shard"
    with pytest.raises(DatasetError, match=text):
        build_index(small, rebuild=True)
    # More episodes than there should be is no damage that could be left out.
    with pytest.raises(DatasetError, match=rf"{second.name} .*holds 3 episodes, .* says 2"):
        build_index(small, rebuild=True, on_bad_record="skip")


def test_a_missing_shard_is_never_skipped(small):
    shard_of(small).unlink()
    with pytest.raises(DatasetError, match=r"is missing, though dataset_info.json lists it; fetch"):
        build_index(small, on_bad_record="skip")


def test_without_crc_damaged_data_passes(small):
    flip_data(shard_of(small))
    index = build_index(small, verify_crc=False)
    assert (index.num_episodes, index.crc_verified, index.incomplete) == (5, False, "")


def test_an_unknown_policy(small):
    with pytest.raises(DatasetError, match="on_bad_record must be 'fail' or 'skip', got 'ignore'"):
        build_index(small, on_bad_record="ignore")


def test_masked_crc_against_a_published_value():
    # CRC-32C of "123456789" is e3069283; masking rotates right by 15 and adds the constant.
    crc = 0xE3069283
    rotated = int(f"{crc:032b}"[-15:] + f"{crc:032b}"[:-15], 2)
    assert masked_crc(b"123456789") == (rotated + 0xA282EAD8) % 2**32


def test_damaged_array_records(wild_written, tmp_path):
    place = tmp_path / "demo"
    shutil.copytree(wild_written / "array_record" / "demo" / "1.0.0", place)
    shards = sorted(place.glob("*train.array_record*"))
    whole = build_index(place)
    edit(shards[0], 40_000)
    with pytest.raises(DatasetError, match=rf"{shards[0]} is damaged: record \d .*fetch the file"):
        build_index(place, rebuild=True)
    index = build_index(place, rebuild=True, on_bad_record="skip")
    assert index.num_skipped == whole.num_episodes - index.num_episodes >= 1
    shards[0].write_bytes(b"<html>" * 99)
    with pytest.raises(DatasetError, match=rf"{shards[0]} is truncated, damaged or no ArrayRecord"):
        build_index(place, rebuild=True, out=tmp_path / "other", workers=1)


def test_the_command(small):
    flip_data(shard_of(small))
    run = CliRunner()
    done = run.invoke(app, ["data", "index", str(small)])
    assert done.exit_code == 1
    assert "fails its CRC" in done.stderr
    done = run.invoke(
        app, ["data", "index", str(small), "--on-bad-record", "skip", "--workers", "1"]
    )
    assert done.exit_code == 0
    assert "1 of 5 episodes were skipped" in done.stderr
    assert "MiB/s" in done.stdout
    done = run.invoke(app, ["data", "index", str(small), "--json"])
    summary = json.loads(done.stdout)
    assert summary["skipped_episodes"] == 1
    assert summary["scanned_bytes"] == 0
    assert list(summary["skipped"]) == [shard_of(small).name]
