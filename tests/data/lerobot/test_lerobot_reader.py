"""Every frame asked for is the right one: the pictures carry their own number."""

import json
import multiprocessing
import pickle
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot_write import (
    LENGTHS,
    TASKS,
    action_of,
    depth_of,
    number_of,
    numbered,
    picture_number,
    write,
)

from spatialvla_ft.data import DatasetError, LeRobotDataset, holdout, open_dataset
from spatialvla_ft.data.mixtures import PRIMARY, Part, open_mixture
from spatialvla_ft.data.stats.statistics import dataset_statistics

FRAMES = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]
VERSIONS = ("v2.1", "v3.0")
LONG = {"g": "250", "bf": "3", "crf": "35"}
"""One key frame, B-frames, lossy: as unkind as H.264 gets."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("lerobot")
    return {v: write(root / v.replace(".", ""), v, options=LONG) for v in VERSIONS}


def test_the_number_survives_drawing():
    for number in (0, 1, 0x10203, 0xABCDEF):
        assert number_of(numbered(number)) == number


@pytest.mark.parametrize("version", VERSIONS)
def test_every_frame_is_the_right_one_in_any_order(folders, version):
    dataset = open_dataset(folders[version], card=None)
    assert isinstance(dataset, LeRobotDataset)
    assert len(dataset) == len(FRAMES)
    order = np.random.default_rng(3).permutation(len(dataset))
    for frame in [*order, *range(len(dataset)), *reversed(range(len(dataset)))]:
        sample = dataset[int(frame)]
        episode, step = FRAMES[frame]
        assert (sample.episode, sample.step) == (episode, step)
        assert number_of(sample.images["primary"]) == picture_number(0, episode, step)
        stored = depth_of(episode, step)
        np.testing.assert_array_equal(
            sample.depth["primary"], stored.astype(np.float32) * np.float32(1e-4)
        )
        K = [[50 + step, 0, 40 + episode], [0, 60 + step, 30], [0, 0, 1]]
        np.testing.assert_array_equal(sample.intrinsics["primary"], K)
        assert sample.instruction == TASKS[(step + episode) % 2]
        chunk = [action_of(episode, min(step + k, LENGTHS[episode] - 1)) for k in range(4)]
        np.testing.assert_array_equal(sample.actions[:, :3], np.array(chunk)[:, :3])
        np.testing.assert_allclose(sample.actions[:, 3], np.array(chunk)[:, 3] / 100, rtol=1e-6)
        assert sample.valid.tolist() == [step + k < LENGTHS[episode] for k in range(4)]
        np.testing.assert_array_equal(sample.proprio, action_of(episode, step) - 1)


@pytest.mark.parametrize(
    ("codec", "pixels", "options"),
    [
        ("libsvtav1", "yuv420p", {"g": "2", "crf": "30", "preset": "12"}),
        ("mpeg4", "yuv420p", {}),
        ("libx264", "yuv444p", {"g": "4"}),
    ],
)
def test_other_codecs_too(tmp_path, codec, pixels, options):
    folder = write(tmp_path / "d", "v3.0", depth=False, codec=codec, pixels=pixels, options=options)
    dataset = open_dataset(folder, card=None, window=3)
    for frame in np.random.default_rng(5).permutation(len(dataset)):
        sample = dataset[int(frame)]
        seen = [number_of(observation.images["primary"]) for observation in sample.observations]
        steps = [max(sample.step - back, 0) for back in (2, 1, 0)]
        assert seen == [picture_number(0, sample.episode, t) for t in steps]


def test_two_cameras_go_by_name_or_by_card(tmp_path):
    folder = write(tmp_path / "d", "v3.0", cameras=("wrist", "front"), depth=False)
    sample = open_dataset(folder, card=None)[8]
    assert number_of(sample.images["wrist"]) == picture_number(0, 1, 1)
    assert number_of(sample.images["primary"]) == picture_number(1, 1, 1)


def test_the_contract_of_a_dataset(folders):
    dataset = open_dataset(folders["v3.0"], card=None)
    everything = np.array([action_of(e, t) for e, t in FRAMES])
    np.testing.assert_array_equal(dataset.actions()[:, :3], everything[:, :3])
    np.testing.assert_array_equal(dataset.proprio(), everything - 1)
    assert dataset.instructions() == sorted(TASKS)
    assert dataset.lengths.tolist() == list(LENGTHS)
    assert dataset.name == "v30"
    assert dataset.action_space.names == ("shoulder_pan", "shoulder_lift", "elbow_flex", "gripper")
    assert [group.role for group in dataset.action_space.groups] == ["joint", "gripper"]
    assert not dataset.action_space.deltas.any()
    part = dataset.subset(np.array([2, 0]))
    assert [(s.episode, s.step) for s in part] == [(2, t) for t in range(5)] + [
        (0, t) for t in range(7)
    ]
    rest, held = holdout(dataset, 0.4, seed=0)
    assert sorted([*rest.episodes, *held.episodes]) == list(range(5))
    found = dataset_statistics(dataset)
    np.testing.assert_allclose(found.max[:3], everything[:, :3].max(axis=0), rtol=1e-6)
    assert dataset_statistics(open_dataset(folders["v3.0"], card=None)).to_dict() == found.to_dict()


def _numbers(dataset, frames):
    return [number_of(dataset[i].images["primary"]) for i in frames]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_see_the_same_frames(folders, method, monkeypatch):
    monkeypatch.setenv("SPATIALVLA_FT_LIGHT", "1")
    dataset = open_dataset(folders["v3.0"], card=None)
    frames = list(range(0, len(dataset), 3))
    here = _numbers(dataset, frames)
    with multiprocessing.get_context(method).Pool(1) as pool:
        samples = pool.map(dataset.__getitem__, frames)
    assert [number_of(sample.images["primary"]) for sample in samples] == here
    assert _numbers(dataset, frames) == here
    assert _numbers(pickle.loads(pickle.dumps(dataset)), frames) == here


def test_decoders_stay_open_and_are_few(folders):
    from spatialvla_ft.data.lerobot.video import Decoders

    videos = sorted(folders["v2.1"].glob("videos/*/observation*/*.mp4"))
    decoders = Decoders(10, limit=2)
    first = decoders.get(videos[0])
    assert decoders.get(videos[0]) is first
    for episode, path in enumerate(videos):
        assert number_of(decoders.rgb(path, 0.0)) == picture_number(0, episode, 0)
    assert len(decoders._open) == 2
    assert decoders.get(videos[0]) is not first


def test_a_fork_opens_decoders_of_its_own(folders, monkeypatch):
    from spatialvla_ft.data.lerobot import video

    path = folders["v3.0"] / "videos/observation.images.front/chunk-000/file-000.mp4"
    decoders = video.Decoders(10)
    parents = decoders.get(path)
    monkeypatch.setattr(video.os, "getpid", lambda: -7)
    assert decoders.get(path) is not parents
    assert number_of(parents.frame(0.3, "rgb24")) == picture_number(0, 0, 3)


def test_going_forward_decodes_each_frame_once(folders, monkeypatch):
    from spatialvla_ft.data.lerobot.video import Decoder

    video = folders["v3.0"] / "videos/observation.images.front/chunk-000/file-000.mp4"
    decoder = Decoder(video, 10)
    count = 0
    advance = Decoder._advance

    def counted(self, *args, **options):
        nonlocal count
        count += 1
        return advance(self, *args, **options)

    monkeypatch.setattr(Decoder, "_advance", counted)
    for t in range(24):
        decoder.frame(t / 10, "rgb24")
    assert count == 24
    decoder.frame(2.3, "rgb24")
    assert count == 24


def test_a_video_that_is_too_short_or_of_another_rate_is_refused(folders):
    from spatialvla_ft.data.lerobot.video import Decoder

    video = folders["v3.0"] / "videos/observation.images.front/chunk-000/file-000.mp4"
    with pytest.raises(DatasetError, match=r"no frame at 2\.400000 s"):
        Decoder(video, 10).frame(2.4, "rgb24")
    with pytest.raises(DatasetError, match=r"no frame at 0\.050000 s.*does not fit"):
        Decoder(video, 20).frame(0.05, "rgb24")


def test_depth_that_was_rounded_is_refused(folders):
    from spatialvla_ft.data.lerobot.video import Decoders

    video = folders["v3.0"] / "videos/observation.images.front/chunk-000/file-000.mp4"
    with pytest.raises(DatasetError, match="yuv420p; depth is read from lossless gray16le"):
        Decoders(10).depth(video, 0.0)


def _edit(folder, change):
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_hole_is_told_before_the_first_sample(tmp_path, version):
    """Not hours later, when its frame is drawn: any video of a camera that is read, depth too."""
    folder = write(tmp_path / "d", version)
    mixture = {"d/1": Part(path=str(folder)), "absent/1": Part(path=str(tmp_path / "absent"))}
    videos = sorted(folder.glob("videos/**/*.mp4"))
    for lost in (*videos[-1:], *(v for v in videos if "depth" in str(v))):
        kept = lost.read_bytes()
        lost.unlink()
        told = rf"2 of 2 datasets[^-]*- d/1: 1 of \d+ files of {folder} are missing, first {lost};"
        with pytest.raises(DatasetError, match=told):
            open_mixture(mixture, reading=replace(PRIMARY, depth="depth" in str(lost)))
        open_dataset(folder, card=None).actions()  # columns need no video
        lost.write_bytes(kept)
    first = next(video for video in videos if "observation" in str(video))
    first.write_bytes(first.read_bytes()[:500])
    with pytest.raises(DatasetError, match=r"is damaged or no video .*fetch it again"):
        open_dataset(folder, card=None)


def test_errors_name_the_thing_and_the_cure(tmp_path):
    folder = write(tmp_path / "d", "v3.0", depth=False)
    with pytest.raises(DatasetError, match=r"no split 'test'; it has \['train'\]"):
        open_dataset(folder, card=None, split="test")
    with pytest.raises(DatasetError, match="depth was asked for"):
        open_dataset(folder, card=None, depth=True)
    data = folder / "data/chunk-000/file-001.parquet"
    table = pq.read_table(data)
    pq.write_table(table.slice(1), data)
    dataset = open_dataset(folder, card=None)
    with pytest.raises(DatasetError, match="has 8 rows of episode 3, meta/episodes says 9"):
        dataset[len(dataset) - 5]
    pq.write_table(table.drop_columns(["observation.state"]), data)
    with pytest.raises(DatasetError, match=r"lacks the columns \['observation.state'\]"):
        open_dataset(folder, card=None)[len(dataset) - 5]
    (folder / "videos/observation.images.front/chunk-000/file-000.mp4").unlink()
    with pytest.raises(DatasetError, match=r"file-000\.mp4 is missing; fetch"):
        open_dataset(folder, card=None)[0]
    _edit(folder, lambda info: info.update(codebase_version="v1.6"))
    with pytest.raises(DatasetError, match=r"'v1.6' is not read, only \['v2.1', 'v3.0'\]"):
        open_dataset(folder, card=None)
