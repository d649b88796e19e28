"""Videos with near key frames: every frame at its time, everything else byte for byte."""

import json
import logging

import av
import numpy as np
import pytest
from lerobot_write import HEIGHT, LENGTHS, WIDTH, number_of, picture_number, write, write_video
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.converters.video_writer import reencode
from spatialvla_ft.data import DatasetError, open_dataset
from spatialvla_ft.data.lerobot import pace
from spatialvla_ft.data.lerobot.store import LeRobotStore

LONG = {"g": "250", "bf": "3"}
KEY = "observation.images.front"
FRAMES = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]


def packets(path):
    """(times of all frames, numbers of the key frames, codec), as FFmpeg lists them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        name = stream.codec_context.codec.canonical_name
        found = [
            (float(p.pts * p.time_base), p.is_keyframe) for p in container.demux(stream) if p.size
        ]
    found.sort()
    return [time for time, _ in found], [i for i, (_, key) in enumerate(found) if key], name


def convert(*args, code=0):
    done = CliRunner().invoke(app, ["data", "convert", *map(str, args)])
    assert done.exit_code == code, done.output
    return done


@pytest.mark.parametrize(
    ("version", "images", "gop"), [("v2.1", "keep", 2), ("v3.0", "keep", 3), ("v3.0", "av1", 2)]
)
def test_only_the_videos_change(tmp_path, version, images, gop):
    old = write(tmp_path / "old", version, options=LONG)
    (old / "card_of_mine.txt").write_text("kept")
    (old / ".cache").mkdir()
    (old / ".cache" / "junk").write_text("left")
    args = ["--to", "lerobot", "--gop", gop, "--images", images, "--json"]
    report = json.loads(convert(old, tmp_path / "new", *args).stdout)
    new = tmp_path / "new"
    assert (report["episodes"], report["steps"], report["exact"]) == (5, len(FRAMES), False)
    assert list(report["inexact"]) == [KEY]
    assert f"a key frame every {gop}" in report["inexact"][KEY]
    files = {p.relative_to(old) for p in old.rglob("*") if p.is_file() and ".cache" not in p.parts}
    assert {p.relative_to(new) for p in new.rglob("*") if p.is_file()} == files
    for name in files:
        if KEY in name.parts:
            times, keys, codec = packets(new / name)
            before, far, _ = packets(old / name)
            np.testing.assert_allclose(times, before, atol=1e-4)
            assert keys == list(range(0, len(times), gop))
            assert len(far) == 1
            assert codec == ("h264" if images == "keep" else images)
        elif name.as_posix() != "meta/info.json":
            assert (new / name).read_bytes() == (old / name).read_bytes()
    was, now = (json.loads((d / "meta/info.json").read_text()) for d in (old, new))
    assert now["features"][KEY]["info"]["video.codec"] == codec
    for info in (was, now):
        info["features"][KEY].pop("info")
    assert now == was
    a, b = open_dataset(old, card=None), open_dataset(new, card=None)
    for frame in np.random.default_rng(0).permutation(len(a)).tolist():
        episode, step = FRAMES[frame]
        assert number_of(b[frame].images["primary"]) == picture_number(0, episode, step)
        np.testing.assert_array_equal(a[frame].actions, b[frame].actions)
        np.testing.assert_array_equal(a[frame].depth["primary"], b[frame].depth["primary"])


def test_the_loss_is_the_one_that_is_said(tmp_path):
    old = write(tmp_path / "old", "v3.0", depth=False)
    rng = np.random.default_rng(0)
    for path in old.rglob("*.mp4"):
        count = len(packets(path)[0])
        noise = list(rng.integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8))
        write_video(path, noise, options=LONG)
    said = reencode(old, tmp_path / "new", gop=2).inexact[KEY]
    stores = LeRobotStore(old), LeRobotStore(tmp_path / "new")
    errors = []
    for episode, step in FRAMES:
        one, other = (np.float64(store.rgb(KEY, episode, step)) for store in stores)
        errors.append(np.square(one - other).mean())
    measured = 10 * np.log10(255**2 / np.mean(errors))
    assert abs(measured - float(said.split("before ")[1].split()[0])) < 1.0


def test_near_key_frames_are_left_as_they_are(tmp_path):
    old = write(tmp_path / "old", "v3.0", options={"g": "2"}, depth=False)
    report = reencode(old, tmp_path / "new", gop=2)
    assert report.inexact == {}
    for path in old.rglob("*.mp4"):
        assert (tmp_path / "new" / path.relative_to(old)).read_bytes() == path.read_bytes()


def test_what_cannot_be_done_is_said(tmp_path):
    old = write(tmp_path / "old", "v3.0", codec="mpeg4", depth=False)
    with pytest.raises(DatasetError, match=r"is mpeg4, which is not written here.*--images av1 or"):
        reencode(old, tmp_path / "a", gop=2)
    with pytest.raises(DatasetError, match="gop: got 0, allowed are 1 or more"):
        reencode(old, tmp_path / "a", gop=0)
    with pytest.raises(DatasetError, match="is not empty"):
        reencode(old, old, gop=2)
    with pytest.raises(DatasetError, match=r"'gif', allowed are \['keep', 'av1', 'h264'\]"):
        reencode(old, tmp_path / "a", gop=2, images="gif")
    said = convert(old, tmp_path / "a", "--to", "lerobot", "--fps", 5, code=1).stderr
    assert "--fps do not apply" in " ".join(said.split())
    assert not (tmp_path / "a").exists()


def test_far_key_frames_are_warned_of_with_the_cure(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(pace, "SLOW", 1e9)
    far = write(tmp_path / "far", "v3.0", options=LONG)
    near = write(tmp_path / "near", "v3.0", options={"g": "2"})
    with caplog.at_level(logging.WARNING):
        open_dataset(near, card=None)
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        open_dataset(far, card=None)
    (said,) = caplog.messages
    assert "a key frame only every 24 frames" in said
    assert f"spatialvla-ft data convert {far} NEW_FOLDER --to lerobot --gop 2" in said
    command = said.split("spatialvla-ft ")[1].replace("NEW_FOLDER", str(tmp_path / "new"))
    assert CliRunner().invoke(app, command.split()).exit_code == 0
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        open_dataset(tmp_path / "new", card=None)
    assert caplog.messages == []


def test_fast_enough_is_not_warned_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(pace, "SLOW", 1e-9)
    folder = write(tmp_path / "far", "v3.0", options=LONG)
    found = pace.measure_pace(LeRobotStore(folder), KEY)
    assert found.key_interval == 24
    assert found.frames_per_second > 1
    with caplog.at_level(logging.WARNING):
        open_dataset(folder, card=None)
    assert caplog.messages == []
