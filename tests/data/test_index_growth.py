"""Parallel scans and datasets that grow: the same index as one scan of everything."""

import json
import time

import pytest

from spatialvla_ft.bench.small_rlds import write_rlds
from spatialvla_ft.data import DatasetError, FrameIndex, build_index
from spatialvla_ft.data.rlds import build, parallel, scan_process
from spatialvla_ft.data.rlds.info import read_features
from spatialvla_ft.data.rlds.places import LocalStore
from spatialvla_ft.data.rlds.scan import Task, scan_shard

LENGTHS = [3, 1, 4, 2]
FILES = ("steps.arrow", "episodes.arrow", "meta.json")


@pytest.fixture
def small(tmp_path):
    return write_rlds(tmp_path, mebibytes=1, shards=4, steps=5, picture_bytes=400, lengths=LENGTHS)


def content(index):
    return [(index.path / name).read_bytes() for name in FILES]


def shards_of(directory):
    return sorted(directory.glob("*.tfrecord-*"))


def as_of(count, directory):
    """The dataset when it had its first `count` shards: other names, the same files."""
    path = directory / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = [str(n) for n in LENGTHS[:count]]
    path.write_text(json.dumps(info))
    for i, shard in enumerate(shards_of(directory)):
        stem = shard.name.split("-of-")[0]
        if i < count:
            shard.rename(directory / f"{stem}-of-{count:05d}")
        else:
            shard.rename(directory.parent / shard.name)


def grown(directory):
    """All shards are there again."""
    for shard in directory.parent.glob("*.tfrecord-*"):
        shard.rename(directory / shard.name)
    as_of(len(LENGTHS), directory)


def scanned(monkeypatch):
    """Names of the shards that are scanned from now on."""
    names = []
    scan = parallel.scan_shard

    def note(store, leaves, task, advance=None):
        names.append(task.name)
        return scan(store, leaves, task, advance)

    monkeypatch.setattr(parallel, "scan_shard", note)
    return names


def test_workers_do_not_change_the_index(small, tmp_path):
    seen = []
    one = build_index(small, out=tmp_path / "one", workers=1)
    two = build_index(
        small, out=tmp_path / "two", workers=2, progress=lambda *args: seen.append(args)
    )
    assert content(one) == content(two)
    assert one.column("action", 9).shape == (5, 7)
    assert [one._of(e, "first_step") for e in range(10)] == [5 * i for i in range(10)]
    assert [one._of(e, "shard") for e in range(10)] == [0, 0, 0, 1, 2, 2, 2, 2, 3, 3]
    total = sum(shard.stat().st_size for shard in shards_of(small))
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert not list(tmp_path.glob(".one*")) + list(tmp_path.glob(".two*"))


def test_a_process_scans_as_this_one_does(small, tmp_path):
    store = LocalStore(small)
    shards = shards_of(small)
    shards[1].write_bytes(shards[1].read_bytes()[:-5])
    leaves = read_features(store)

    def task(number, where):
        path = shards[number]
        return Task(
            name=path.name,
            split="train",
            size=path.stat().st_size,
            expected=LENGTHS[number],
            file_format="tfrecord",
            stem=str(tmp_path / where),
            verify_crc=True,
            skip=False,
        )

    told = []
    with scan_process.ScanProcess(small) as process:
        assert process.wait_until_ready()
        there = process.scan(task(2, "there"), told.append)
        with pytest.raises(DatasetError, match="is truncated") as error:
            process.scan(task(1, "there"), told.append)
        again = process.scan(task(0, "again"), told.append)  # an error does not end it
    assert there == scan_shard(store, leaves, task(2, "here"))
    assert (there.episodes, again.episodes) == (4, 3)
    assert sum(told) == shards[0].stat().st_size + shards[2].stat().st_size
    for kind in ("steps", "episodes"):
        files = [tmp_path / f"{where}.{kind}.arrow" for where in ("here", "there")]
        assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(DatasetError) as same:
        scan_shard(store, leaves, task(1, "here"))
    assert str(error.value) == str(same.value)


def test_a_process_that_dies_is_an_error(small, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with (
        scan_process.ScanProcess(small) as process,
        pytest.raises(RuntimeError, match=r"was to scan ended with exit code 1; with workers=1"),
    ):
        process.wait_until_ready()


def test_a_process_that_starts_too_late_is_not_waited_for(small, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", tmp_path / "sleeper")
    (tmp_path / "sleeper").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "sleeper").chmod(0o755)
    start = time.monotonic()
    assert build_index(small, workers=2).num_episodes == 10
    assert time.monotonic() - start < 30


def test_the_first_error_is_raised(small):
    shards = shards_of(small)
    for shard in (shards[1], shards[3]):
        shard.write_bytes(shard.read_bytes()[:-5])
    for workers in (1, 2):
        with pytest.raises(DatasetError, match=rf"{shards[1].name} is truncated"):
            build_index(small, workers=workers)
    assert not (small / "frame_index").exists()


def test_the_first_error_is_raised_even_if_it_comes_last(monkeypatch):
    done = []

    def scan(store, leaves, task, advance=None):
        time.sleep(0.3 if task == 1 else 0.0)
        done.append(task)
        if task > 0:
            raise DatasetError(f"error {task}")

    class Remote:
        local = False

    monkeypatch.setattr(parallel, "scan_shard", scan)
    with pytest.raises(DatasetError, match="error 1"):
        parallel.scan_shards(Remote(), (), [0, 1, 2, 3, 4, 5, 6, 7], workers=3)
    assert done[-1] == 1
    assert len(done) < 8  # nothing new is begun after an error


def test_workers_must_be_positive(small):
    with pytest.raises(DatasetError, match="workers must be at least 1, got 0"):
        build_index(small, workers=0)


def test_only_new_shards_are_scanned(small, tmp_path, monkeypatch):
    whole = build_index(small, out=tmp_path / "whole")
    as_of(2, small)
    first = build_index(small)
    assert first.num_episodes == 4
    grown(small)
    with pytest.raises(DatasetError, match=r"2 shards were indexed, the dataset now has 4.*00002"):
        FrameIndex(small / "frame_index")
    names, seen = scanned(monkeypatch), []
    after = build_index(small, progress=lambda *args: seen.append(args))
    assert [name.split("-")[2] for name in names] == ["00002", "00003"]
    assert seen[-1] == (sum(shard.stat().st_size for shard in shards_of(small)[2:]),) * 2
    assert content(after) == content(whole)
    names.clear()
    build_index(small)
    assert names == []


def test_a_shard_in_the_middle_moves_the_rows_behind_it(small, tmp_path):
    """Shards of a split are added before those of the next split."""
    path = small / "dataset_info.json"
    info = json.loads(path.read_text())
    shards = shards_of(small)
    more = {"name": "val", "shardLengths": ["2"]}
    info["splits"] = [{"name": "train", "shardLengths": ["3"]}, more]
    path.write_text(json.dumps(info))
    shards[0].rename(small / "generated-train.tfrecord-00000-of-00001")
    shards[3].rename(small / "generated-val.tfrecord-00000-of-00001")
    before = build_index(small)
    assert before.splits == {"train": range(3), "val": range(3, 5)}
    key = "observation.image_1"
    picture = before.image_bytes(4, 4, key)
    unread = FrameIndex(before.path)
    info["splits"][0]["shardLengths"] = ["3", "1"]
    path.write_text(json.dumps(info))
    (small / "generated-train.tfrecord-00000-of-00001").rename(
        small / "generated-train.tfrecord-00000-of-00002"
    )
    shards[1].rename(small / "generated-train.tfrecord-00001-of-00002")
    after = build_index(small)
    assert after.splits == {"train": range(4), "val": range(4, 6)}
    assert content(after) == content(build_index(small, out=tmp_path / "fresh"))
    assert after.image_bytes(5, 4, key) == picture != b""
    with pytest.raises(DatasetError, match="was built anew after it had been opened; open it ag"):
        unread.image_bytes(4, 4, key)


def test_a_changed_old_shard_is_refused_even_if_there_are_new_ones(small):
    as_of(2, small)
    build_index(small)
    grown(small)
    shard = shards_of(small)[0]
    shard.write_bytes(shard.read_bytes())
    with pytest.raises(DatasetError, match=r"changed its mtime from .* UTC.*--rebuild"):
        build_index(small)
    assert build_index(small, rebuild=True).num_episodes == 10


def test_fewer_shards_are_refused(small):
    build_index(small)
    as_of(3, small)
    with pytest.raises(DatasetError, match=r"4 shards were indexed, the dataset now has 3; .*gone"):
        build_index(small)


def test_a_failed_rebuild_leaves_the_old_index(small):
    index = build_index(small)
    before = content(index)
    shard = shards_of(small)[2]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="is truncated"):
        build_index(small, rebuild=True)
    assert content(index) == before


def test_many_batches(small, tmp_path, monkeypatch):
    whole = build_index(small, out=tmp_path / "whole", workers=1)
    monkeypatch.setattr("spatialvla_ft.data.rlds.scan.BATCH_STEPS", 7)
    parts = build_index(small, out=tmp_path / "parts", workers=1)
    key = "observation.image_0"
    assert json.loads((parts.path / build.META).read_text())["shards"][2]["step_batches"] == 2
    for episode in range(10):
        assert (parts.column("action", episode) == whole.column("action", episode)).all()
        assert parts.image_bytes(episode, 3, key) == whole.image_bytes(episode, 3, key)
