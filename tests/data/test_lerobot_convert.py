"""RLDS to LeRobot and back: the same numbers, words and pictures."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.data import build_index, open_dataset

COLUMNS = (
    "action",
    "observation.state",
    "is_first",
    "is_last",
    "is_terminal",
    "reward",
    "discount",
)


def convert(*args):
    done = CliRunner().invoke(app, ["data", "convert", *map(str, args), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def trip(written, tmp_path_factory):
    """(RLDS, LeRobot made of it, RLDS made of that), with both reports."""
    root = tmp_path_factory.mktemp("trip")
    source = root / "source" / "demo" / "1.0.0"
    shutil.copytree(written / "demo" / "1.0.0", source)
    there = convert(source, root / "lerobot", "--to", "lerobot")
    back = convert(root / "lerobot", root / "rlds", "--to", "rlds")
    return source, root / "lerobot", root / "rlds/demo/1.0.0", there, back


def test_both_reports_say_exact(trip):
    *_, there, back = trip
    for report in (there, back):
        assert report["exact"] is True
        assert (report["episodes"], report["steps"]) == (9, 36)
        assert report["left_out"] == report["inexact"] == {}


def test_the_round_trip_keeps_every_column_and_every_byte(trip):
    source, _, again, *_ = trip
    a, b = build_index(source), build_index(again)
    assert set(a.leaves) == set(b.leaves)
    assert {k: (v.start, v.stop) for k, v in a.splits.items()} == {
        k: (v.start, v.stop) for k, v in b.splits.items()
    }
    for path, leaf in a.leaves.items():
        other = b.leaf(path)
        assert (leaf.wire, leaf.level, leaf.kind, leaf.dtype, leaf.shape, leaf.encoding) == (
            other.wire,
            other.level,
            other.kind,
            other.dtype,
            other.shape,
            other.encoding,
        )
        for episode, length in enumerate(a.episode_lengths.tolist()):
            if leaf.kind != "image":
                was, now = a.column(path, episode), b.column(path, episode)
                np.testing.assert_array_equal(was, now)
                assert np.asarray(was).dtype == np.asarray(now).dtype
            elif leaf.dtype == np.uint8:
                for t in range(length):
                    assert a.image_bytes(episode, t, path) == b.image_bytes(episode, t, path)


def same(one, other):
    assert (one.episode, one.step, one.instruction) == (
        other.episode,
        other.step,
        other.instruction,
    )
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.valid, other.valid)
    np.testing.assert_array_equal(one.proprio, other.proprio)
    assert one.action_space == other.action_space
    for field in ("images", "depth", "intrinsics", "extrinsics"):
        a, b = getattr(one, field), getattr(other, field)
        assert set(a) == set(b)
        for slot in a:
            np.testing.assert_array_equal(a[slot], b[slot])
            assert a[slot].dtype == b[slot].dtype


@pytest.mark.parametrize("split", ["train", "val"])
def test_all_three_give_the_same_samples(trip, split):
    source, lerobot, again, *_ = trip
    sets = [open_dataset(place, card=None, split=split) for place in (source, lerobot, again)]
    assert len(sets[0]) == len(sets[1]) == len(sets[2]) > 0
    for frame in range(len(sets[0])):
        same(sets[0][frame], sets[1][frame])
        same(sets[0][frame], sets[2][frame])


def test_the_layout_is_lerobots(trip):
    _, lerobot, *_ = trip
    info = json.loads((lerobot / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["splits"] == {"train": "0:6", "val": "6:9"}
    assert info["features"]["depth.front"]["info"]["video.pix_fmt"] == "gray16le"
    assert info["features"]["front_camera_intrinsics"]["names"] == ["fx", "fy", "cx", "cy"]
    episodes = pq.read_table(lerobot / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_from_index"] for row in episodes][:2] == [0, episodes[0]["length"]]
    seconds = [row["videos/depth.front/from_timestamp"] for row in episodes]
    np.testing.assert_allclose(seconds, np.cumsum([0, *(r["length"] for r in episodes[:-1])]) / 5)
    assert episodes[0]["episode_metadata.seed"] == build_index(trip[0]).column(
        "episode_metadata.seed", 0
    )


def test_datasets_reads_the_data_files_too(trip, tmp_path):
    import datasets

    source, lerobot, *_ = trip
    table = datasets.load_dataset(
        "parquet",
        data_files=str(lerobot / "data/*/*.parquet"),
        split="train",
        cache_dir=str(tmp_path),
    )
    index = build_index(source)
    assert isinstance(table.features["observation.images.front"], datasets.Image)
    row = 0
    for episode, length in enumerate(index.episode_lengths.tolist()):
        for t in range(length):
            entry = table[row]
            np.testing.assert_array_equal(
                np.float32(entry["action"]), index.column("action", episode)[t]
            )
            assert entry["frame_index"] == t
            assert entry["index"] == row
            assert entry["episode_index"] == episode
            row += 1
    assert row == len(table)
    from spatialvla_ft.data.decode import decode_rgb

    # The wrist's pictures are PNG, so every decoder gives the same.
    png = decode_rgb(index.image_bytes(0, 2, "observation.image_wrist"))
    np.testing.assert_array_equal(np.asarray(table[2]["observation.images.wrist"]), png)


def test_a_video_says_how_much_it_lost(trip, tmp_path):
    source, *_ = trip
    report = convert(source, tmp_path / "v", "--to", "lerobot", "--images", "h264")
    assert report["exact"] is False
    assert set(report["inexact"]) == {"observation.images.front", "observation.images.wrist"}
    said = report["inexact"]["observation.images.wrist"]
    assert said.startswith("h264 video: PSNR ")
    dataset = open_dataset(tmp_path / "v", card=None)
    original = open_dataset(source, card=None)
    error = [
        np.mean((np.float64(a.images["wrist"]) - b.images["wrist"]) ** 2)
        for a, b in zip(original, dataset, strict=True)
    ]
    measured = np.mean([10 * np.log10(255**2 / e) for e in error])
    assert abs(measured - float(said.split()[3])) < 1.5
    assert measured > 20


def test_refusals(trip, tmp_path):
    source, lerobot, *_ = trip

    def error(*args):
        done = CliRunner().invoke(app, ["data", "convert", *map(str, args)])
        assert done.exit_code == 1
        return " ".join(done.stderr.split())

    assert "is not empty" in error(source, lerobot, "--to", "lerobot")
    said = error(source, tmp_path / "a", "--to", "lerobot", "--images", "gif")
    assert "allowed are ['keep', 'av1', 'h264']" in said
    assert "belong to --to lerobot" in error(lerobot, tmp_path / "b", "--to", "rlds", "--fps", 5)
    assert "--name: got 'A b'" in error(lerobot, tmp_path / "c", "--to", "rlds", "--name", "A b")
