"""What real LeRobot datasets suffer from: read all the same, or refused with place and cure."""

import io
import json
import struct
import time
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from lerobot_write import (
    FPS,
    LENGTHS,
    TASKS,
    action_of,
    depth_of,
    number_of,
    picture_number,
    write,
)
from PIL import Image

from spatialvla_ft.converters.lerobot_to_rlds import _example, _losses, mapping_of
from spatialvla_ft.converters.video_writer import reencode
from spatialvla_ft.data import DatasetError, open_dataset
from spatialvla_ft.data.decode import decode_depth, decode_rgb
from spatialvla_ft.data.lerobot.clips import Clips, Places
from spatialvla_ft.data.lerobot.data_files import DataFile
from spatialvla_ft.data.lerobot.draft import draft
from spatialvla_ft.data.lerobot.info import read_info
from spatialvla_ft.data.lerobot.store import LeRobotStore
from spatialvla_ft.inspection import inspect_dataset

KEY = "observation.images.front"
FRAMES = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "arm", "v3.0", depth=False, options={"g": "2"})


def edit_table(folder, change):
    """Change the rows of the episode table."""
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)


def add_feature(folder, key, feature, values, kind=None):
    """A further column in all data files."""
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"][key] = {"names": None, **feature}
    (folder / "meta/info.json").write_text(json.dumps(info))
    at = 0
    for path in sorted(folder.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        part = pa.array(values[at : at + len(table)], kind)
        at += len(table)
        pq.write_table(table.append_column(key, part), path)


def save_card(folder, **more):
    raw, doubts = draft(read_info(folder), folder)
    assert not doubts
    text = yaml.safe_dump({"schema_version": 1, "cards": {folder.name: {**raw, **more}}})
    (folder / "card.yaml").write_text(text)


def overlap(rows):
    rows[4][f"videos/{KEY}/from_timestamp"] = 0.3
    rows[4][f"videos/{KEY}/to_timestamp"] = 0.4


OVERLAP = (
    r"arm, camera 'observation\.images\.front': episodes 3 and 4 both claim 0\.300 to 0\.400 s of "
    r"videos/observation\.images\.front/chunk-000/file-001\.mp4.*merge again.*video: \{shared"
)


def test_overlapping_clips(folder):
    edit_table(folder, overlap)
    with pytest.raises(DatasetError, match=OVERLAP):
        open_dataset(folder, card=None)
    # Also where the store is read without a dataset, and for either of both.
    for episode in (3, 4):
        with pytest.raises(
            DatasetError, match=rf"arm, '{KEY}', episode {episode}, step 0: .*claim"
        ):
            LeRobotStore(folder).rgb(KEY, episode, 0)
    seen = inspect_dataset(folder, episodes=1)
    assert seen.episodes == (0,)
    (finding,) = [f for f in seen.findings if f.rule == "overlapping clips"]
    assert finding.severity == "error"
    assert "episodes 3 and 4" in finding.evidence
    save_card(folder, video={"shared": True})
    shared = open_dataset(folder, card=None, cameras=["primary"])
    assert number_of(shared[len(shared) - 1].images["primary"]) == picture_number(0, 3, 3)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (
            "to_timestamp",
            1.3,
            r"episode 1 has 12 steps, 1\.200 s at 10 fps, its clip 0\.700 to 1\.3",
        ),
        (
            "from_timestamp",
            None,
            r"episode 1: videos/.*/from_timestamp is empty, it must be seconds",
        ),
        ("from_timestamp", -3.0, r"from_timestamp is -3, it must be seconds from 0"),
        (
            "file_index",
            float("nan"),
            r"episode 1: videos/.*/file_index is empty, it must be a whole",
        ),
        ("file_index", 0.5, r"file_index is 0\.5, it must be a whole number"),
        ("chunk_index", -1, r"chunk_index is -1, it must be a whole number"),
    ],
)
def test_places_that_cannot_be(folder, column, value, said):
    edit_table(folder, lambda rows: rows[1].update({f"videos/{KEY}/{column}": value}))
    with pytest.raises(DatasetError, match=rf"(?s)arm.*camera '{KEY}': .*{said}.*again"):
        open_dataset(folder, card=None)
    assert open_dataset(folder, card=None, cameras=[]).actions().shape == (34, 4)


def test_cameras_that_are_not_read_may_be_wrong(tmp_path):
    folder = write(tmp_path / "arm", "v3.0", cameras=("wrist", "front"), depth=False)
    edit_table(folder, overlap)
    with pytest.raises(DatasetError, match="both claim"):
        open_dataset(folder, card=None)
    sample = open_dataset(folder, card=None, cameras=["wrist"])[8]
    assert number_of(sample.images["wrist"]) == picture_number(0, 1, 1)


def test_clips_of_a_hundred_thousand_episodes():
    count = 100_000
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 400, count)
    files = np.sort(rng.integers(0, 500, count)).astype(float)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) / 30
    starts -= starts[np.searchsorted(files, files)]
    starts += rng.uniform(-0.1, 0.1, count) / 30  # durations of files are rounded
    starts = np.maximum(starts, 0)
    names = ("chunk_index", "file_index")
    places = Places("videos/a", "{chunk_index}/{file_index}.mp4", names, {}, 0 * files, files)

    def troubles(starts, stops):
        return Clips("a", places, starts, stops, True).troubles(lengths, 30.0, shared=False)

    begin = time.perf_counter()
    assert not troubles(starts, starts + lengths / 30)
    assert time.perf_counter() - begin < 10
    moved = starts.copy()
    moved[501] = moved[500] - 3  # into the one before, or beyond it
    assert files[499] == files[501]
    (found,) = troubles(moved, moved + lengths / 30)
    assert found.rule == "overlapping clips"
    assert {int(w) for w in found.evidence.split() if w.isdigit()} in ({499, 501}, {500, 501})


def test_frames_to_spare_are_no_error(folder, caplog):
    for row in (0, 3):
        edit_table(
            folder,
            lambda rows, row=row: rows[row].update({f"videos/{KEY}/to_timestamp": 99.0}),
        )
    dataset = open_dataset(folder, card=None)
    assert "episode 0 has 7 steps, its clip of" in caplog.text
    assert [number_of(s.images["primary"]) for s in dataset[:8]] == [
        picture_number(0, e, t) for e, t in FRAMES[:8]
    ]


def restamp(folder, stamps):
    """New time stamps: a function of episode and step."""
    for path in folder.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        rows = zip(
            table["episode_index"].to_pylist(), table["frame_index"].to_pylist(), strict=True
        )
        values = pa.array([stamps(e, t) for e, t in rows], pa.float32())
        at = table.schema.get_field_index("timestamp")
        pq.write_table(table.set_column(at, "timestamp", values), path)


def test_clock_stamps(folder):
    restamp(folder, lambda e, t: t / FPS * (1.1 if e == 1 else 1))
    told = (
        r"timestamp: episode 1, step 3: timestamp is 0\.33 s, but frame_index 3 is at 0\.3 s at 10"
    )
    with pytest.raises(DatasetError, match=rf"{told}.*9 rows.*video: \{{time: frame_index\}}"):
        open_dataset(folder, card=None, cameras=["primary"])
    dataset = open_dataset(folder, card=None)
    assert number_of(dataset[6].images["primary"]) == picture_number(0, 0, 6)
    with pytest.raises(DatasetError, match=rf"(?s)arm, '{KEY}', episode 1, step 0: .*{told}"):
        dataset[7]
    rules = {(f.rule, f.severity) for f in inspect_dataset(folder, episodes=1).findings}
    assert ("clock stamps", "error") in rules
    save_card(folder, video={"time": "frame_index"})
    dataset = open_dataset(folder, card=None, cameras=["primary"])
    assert [number_of(s.images["primary"]) for s in dataset] == [
        picture_number(0, e, t) for e, t in FRAMES
    ]


def test_stamps_that_the_video_follows(folder):
    """The video of a robot that began to record late: by its stamps, if the card says so."""
    for path in folder.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        late = pa.array([max(t - 1, 0) for t in table["frame_index"].to_pylist()])
        keep = pa.array([t > 0 or e == 4 for e, t in zip(
            table["episode_index"].to_pylist(), table["frame_index"].to_pylist(), strict=True
        )])  # fmt: skip
        at = table.schema.get_field_index("frame_index")
        pq.write_table(table.set_column(at, "frame_index", late).filter(keep), path)
    edit_table(folder, lambda rows: [r.update(length=max(1, r["length"] - 1)) for r in rows])
    with pytest.raises(
        DatasetError, match=r"episode 0, step 0: timestamp is 0\.1 s, but frame_index"
    ):
        open_dataset(folder, card=None, cameras=["primary"])
    save_card(folder, video={"time": "timestamp"})
    dataset = open_dataset(folder, card=None, cameras=["primary"])
    kept = [(e, t) for e, t in FRAMES if t > 0 or e == 4]
    assert [number_of(s.images["primary"]) for s in dataset] == [
        picture_number(0, e, t) for e, t in kept
    ]
    restamp(folder, lambda e, t: t / FPS + 2 if e == 4 else (t + 1) / FPS)
    with pytest.raises(
        DatasetError, match=r"episode 4, step 0: timestamp asks for frame 20\.00 of a"
    ):
        open_dataset(folder, card=None, cameras=["primary"])


def test_what_was_found_of_the_rows_is_kept(folder, monkeypatch):
    first = open_dataset(folder, card=None, cameras=["primary"])
    with monkeypatch.context() as patch:
        patch.setattr(DataFile, "first", lambda *_: pytest.fail("read again"))
        open_dataset(folder, card=None, cameras=["primary"])
    edit_table(folder, lambda rows: rows[0].update({f"videos/{KEY}/to_timestamp": 0.69}))
    assert len(first) == len(open_dataset(folder, card=None, cameras=["primary"]))


def test_a_wrong_data_file_in_the_table(folder, caplog):
    right = open_dataset(folder, card=None).actions()
    edit_table(folder, lambda rows: [rows[e].update({"data/file_index": 5}) for e in (2, 4)])
    dataset = open_dataset(folder, card=None, cameras=["primary"])
    np.testing.assert_array_equal(dataset.actions(), right)
    assert (
        "says data/chunk-000/file-005.parquet for episode 2, its rows are in data/" in caplog.text
    )
    assert sum("episode table" in record.message for record in caplog.records) == 1
    other = folder / "data/chunk-000/file-009.parquet"
    other.write_bytes((folder / "data/chunk-000/file-001.parquet").read_bytes())
    told = r"file-005\.parquet is missing.*of episode 4.*file-001\.parquet has 1, .*file-009\.parq"
    with pytest.raises(DatasetError, match=told):
        open_dataset(folder, card=None).actions()


TEXT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def test_features_of_unknown_kind(folder):
    said = [[{"role": "user", "content": "hm"}]] * len(FRAMES)
    add_feature(folder, "language_events", {"dtype": "language", "shape": [1]}, said, TEXT)
    add_feature(folder, "cloud", {"dtype": "float32", "shape": [None, 3]}, [0.0] * len(FRAMES))
    sample = open_dataset(folder, card=None, cameras=["primary"])[0]
    np.testing.assert_array_equal(sample.actions[0, :3], action_of(0, 0)[:3])
    notes = {f.where: f.evidence for f in inspect_dataset(folder).findings if f.rule == "not read"}
    assert "dtype 'language' is not known here" in notes["language_events"]
    assert "its shape is [None, 3]" in notes["cloud"]
    store = LeRobotStore(folder)
    mapping = mapping_of(store, "arm")
    assert not {"language_events", "cloud"} & {entry.lerobot for entry in mapping.entries}
    assert set(_losses(store, mapping).left_out) == {"language_events", "cloud"}
    save_card(folder, target_point="language_events")
    with pytest.raises(DatasetError, match="'language_events' of arm cannot be read: its dtype"):
        open_dataset(folder, card=None)


def test_only_what_is_asked_for_is_read(folder, monkeypatch):
    state = [[1.0, 2.0]] * len(FRAMES)
    state[9] = None
    vector = {"dtype": "float32", "shape": [2]}
    add_feature(folder, "unread", vector, state, pa.list_(pa.float32()))
    # A name that goes on from that of another.
    add_feature(folder, "action.raw", vector, state, pa.list_(pa.float32()))
    asked = set()
    rows = DataFile.rows

    def noted(self, start, count, columns):
        found = rows(self, start, count, columns)
        asked.update(found.column_names)
        return found

    monkeypatch.setattr(DataFile, "rows", noted)
    dataset = open_dataset(folder, card=None)
    expected = np.array([action_of(e, t) for e, t in FRAMES])
    np.testing.assert_array_equal(dataset.actions()[:, :3], expected[:, :3])
    assert asked == {"action", "observation.state", "task_index", "episode_index"}
    with pytest.raises(DatasetError, match=r"arm, episode 1: 'unread' has 1 empty.*at step 2"):
        dataset.store.trajectory(1, ("unread",))
    (finding,) = [f for f in inspect_dataset(folder).findings if f.where == "unread"]
    assert (finding.rule, finding.severity) == ("column cannot be read", "warning")


def test_lengths_that_vary_are_refused_whatever_their_sum(folder):
    values = [[1.0, 2.0, 3.0], [4.0]] * (len(FRAMES) // 2)
    add_feature(folder, "pair", {"dtype": "float32", "shape": [2]}, values)
    with pytest.raises(DatasetError, match=r"'pair' has .* not the same number in each"):
        LeRobotStore(folder).trajectory(1, ("pair",))


def test_numbers_that_a_type_cannot_hold_are_refused(folder):
    whole = [float(i) for i in range(len(FRAMES))]
    add_feature(folder, "count", {"dtype": "int64", "shape": [1]}, whole)
    assert LeRobotStore(folder).value("count", 1, 2) == 9
    add_feature(folder, "part", {"dtype": "int64", "shape": [1]}, [v + 0.5 for v in whole])
    with pytest.raises(
        DatasetError, match=r"arm, episode 1: 'part' is 7\.5 at step 0.*cannot hold"
    ):
        LeRobotStore(folder).trajectory(1, ("part",))


def encoded(array, kind="TIFF", **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


DEPTH = f"{KEY}_depth"


def metres(episode, step):
    return depth_of(episode, step).astype(np.float32) / 7000


@pytest.mark.parametrize("place", ["bytes", "file"])
@pytest.mark.parametrize("unit", ["mm", "m"])
def test_depth_as_tiff(tmp_path, place, unit):
    folder = write(tmp_path / "rgbd", "v3.0", depth=False)
    stored = [depth_of(e, t) if unit == "mm" else metres(e, t) for e, t in FRAMES]
    entries = []
    for (e, t), values in zip(FRAMES, stored, strict=True):
        name = f"images/{DEPTH}/episode_{e:06d}/frame_{t:06d}.tiff"
        data = encoded(values)
        if place == "file":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            entries.append({"bytes": None, "path": f"/home/robot/.cache/{name}"})
        else:
            entries.append({"bytes": data, "path": None})
    info = {"is_depth_map": True, "depth_unit": unit}
    add_feature(folder, DEPTH, {"dtype": "image", "shape": [64, 96, 1], "info": info}, entries)
    dataset = open_dataset(folder, card=None)
    scale = {"mm": 1e-3, "m": 1}[unit]
    assert (dataset.card.depth_scale, dataset.card.depth["primary"].path) == (scale, DEPTH)
    for frame in (0, 9, 33):
        expected = stored[frame].astype(np.float32) * np.float32(scale)
        np.testing.assert_array_equal(dataset[frame].depth["primary"], expected)
    # To RLDS as it is: float32 stays float32.
    mapping = mapping_of(dataset.store, "rgbd")
    (entry,) = [entry for entry in mapping.entries if entry.how == "depth"]
    assert entry.dtype == ("uint16" if unit == "mm" else "float32")
    assert set(_losses(dataset.store, mapping).inexact) == {KEY}
    step = _example(dataset.store, mapping, 1)["steps"][2]["observation"][entry.keys[-1]]
    np.testing.assert_array_equal(step[..., 0], stored[9])


def test_depth_of_unknown_unit_is_left_out_of_a_draft(folder):
    entry = {"bytes": encoded(depth_of(0, 0)), "path": None}
    info = {"is_depth_map": True}
    feature = {"dtype": "image", "shape": [64, 96, 1], "info": info}
    add_feature(folder, DEPTH, feature, [entry] * len(FRAMES))
    raw, _ = draft(read_info(folder), folder)
    assert "depth" not in raw
    assert any("nothing says its unit" in note for note in raw["notes"])


def test_depth_as_a_column_of_numbers(folder):
    values = [depth_of(e, t).tolist() for e, t in FRAMES]
    kind = pa.list_(pa.list_(pa.uint16()))
    add_feature(folder, "depth_raw", {"dtype": "uint16", "shape": [64, 96]}, values, kind)
    save_card(folder, depth={"primary": "depth_raw"}, depth_scale=1e-4)
    sample = open_dataset(folder, card=None)[9]
    expected = depth_of(1, 2).astype(np.float32) * np.float32(1e-4)
    np.testing.assert_array_equal(sample.depth["primary"], expected)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (encoded(np.ones((8, 9), np.uint16))[:40], "damaged TIFF"),
        (b"GIF89a", "neither JPEG nor PNG"),
        (encoded(np.ones((8, 9, 3), np.uint8)), "depth has one channel"),
        (
            encoded(
                np.ones((8, 9), np.uint16),
                save_all=True,
                append_images=[Image.fromarray(np.ones((8, 9), np.uint16))],
            ),
            "a TIFF of 2 pictures",
        ),
    ],
)
def test_a_picture_that_cannot_be_decoded_is_named(folder, data, said):
    entries = [{"bytes": encoded(depth_of(e, t)), "path": None} for e, t in FRAMES]
    entries[9]["bytes"] = data
    info = {"is_depth_map": True, "depth_unit": "mm"}
    feature = {"dtype": "image", "shape": [64, 96, 1], "info": info}
    add_feature(folder, DEPTH, feature, entries)
    dataset = open_dataset(folder, card=None)
    assert dataset[8].depth["primary"].shape == (64, 96)
    with pytest.raises(DatasetError, match=rf"arm, '{DEPTH}', episode 1, step 2: .*{said}"):
        dataset[9]


def test_encodings_of_pictures():
    colour = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    for kind in ("TIFF", "BMP", "PNG"):
        np.testing.assert_array_equal(decode_rgb(encoded(colour, kind)), colour)
    np.testing.assert_array_equal(decode_rgb(encoded(colour, "WEBP", lossless=True)), colour)
    grey = np.random.default_rng(1).integers(0, 2**16, (6, 7), np.uint16)
    for kind in ("TIFF", "PNG"):
        np.testing.assert_array_equal(decode_depth(encoded(grey, kind), None), grey)
        with pytest.raises(DatasetError, match="8 bits"):
            decode_rgb(encoded(grey, kind))
    big = io.BytesIO()
    Image.frombytes("I;16B", (7, 6), grey.astype(">u2").tobytes()).save(big, "TIFF")
    found = decode_depth(big.getvalue(), None)
    np.testing.assert_array_equal(found, grey)
    assert found.dtype == np.uint16
    real = grey.astype(np.float32) / 7
    for options in ({}, {"compression": "tiff_lzw"}):
        np.testing.assert_array_equal(decode_depth(encoded(real, **options), None), real)


def png16(pixels):
    """A PNG of 16 bits per channel, which Pillow reads but does not write."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def test_colour_of_16_bits_keeps_the_upper_8():
    pixels = np.random.default_rng(0).integers(0, 2**16, (6, 7, 3), np.uint16)
    np.testing.assert_array_equal(decode_rgb(png16(pixels)), (pixels >> 8).astype(np.uint8))


def test_tasks_that_cannot_be_told_apart(folder):
    path = folder / "meta/tasks.parquet"
    table = pa.table({"task_index": [0, 1], "de": ["a", "b"], "en": list(TASKS)})
    pq.write_table(table, path)
    with pytest.raises(DatasetError, match=r"tasks\.parquet has columns.*which are the words"):
        open_dataset(folder, card=None)
    pq.write_table(pa.table({"task_index": [0, 0], "task": list(TASKS)}), path)
    with pytest.raises(DatasetError, match="task 0 is both 'pick the cube' and 'open the drawer'"):
        open_dataset(folder, card=None)
    path.unlink()
    with pytest.raises(DatasetError, match=r"tasks\.parquet is missing"):
        open_dataset(folder, card=None)
    save_card(folder, language={"kind": "none"})
    assert open_dataset(folder, card=None)[0].instruction == ""


def test_a_conversion_never_writes_into_its_source(folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(DatasetError, match="lies within the dataset itself"):
        reencode(folder, folder / "sub" / "more", gop=2)
    assert sorted(folder.rglob("*")) == before
