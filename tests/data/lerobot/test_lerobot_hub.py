"""Datasets pushed to a Hub on this machine, and read from it."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from fake_hub import TOKEN, FakeHub
from lerobot_write import LENGTHS, action_of, number_of, picture_number, write
from typer.testing import CliRunner

from spatialvla_ft.cli.data_convert import _fetched
from spatialvla_ft.cli.main import app
from spatialvla_ft.data import DatasetError, open_dataset
from spatialvla_ft.data.lerobot.hub import fetch_dataset
from spatialvla_ft.data.stats.statistics import dataset_statistics
from spatialvla_ft.hub.push import push_dataset

REPO = "tester/so100_pick"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as server:
        yield server.in_process(monkeypatch, tmp_path / "cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("hub") / "local", "v3.0")


def stored(hub, revision="main"):
    return {path: file.data for path, file in hub.repo("dataset", REPO).files(revision).items()}


def on_disk(folder):
    paths = (p for p in folder.rglob("*") if p.is_file() and ".spatialvla_ft" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def test_pushed_and_read_back(hub, folder):
    dataset_statistics(open_dataset(folder, card=None))
    assert (folder / ".spatialvla_ft").is_dir()
    commit = push_dataset(folder, REPO)
    repo = hub.repo("dataset", REPO)
    assert repo.private
    assert stored(hub) == on_disk(folder)
    assert repo.tags == {"v3.0": commit}
    dataset = open_dataset(f"hf://datasets/{REPO}", card=None)
    assert dataset.name == REPO
    assert len(dataset) == sum(LENGTHS)
    for frame, (episode, step) in {0: (0, 0), 20: (2, 1), 33: (4, 0)}.items():
        sample = dataset[frame]
        assert (sample.episode, sample.step) == (episode, step)
        assert number_of(sample.images["primary"]) == picture_number(0, episode, step)
        np.testing.assert_array_equal(sample.actions[0, :3], action_of(episode, step)[:3])


def test_converted_straight_from_its_address(hub, folder, tmp_path):
    push_dataset(folder, REPO)
    copy = tmp_path / "copy"
    command = ["data", "convert", f"hf://datasets/{REPO}", str(copy), "--to", "lerobot"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert not any(path.is_symlink() for path in copy.rglob("*"))
    theirs, ours = (open_dataset(place, card=None) for place in (folder, copy))
    np.testing.assert_array_equal(ours.actions(), theirs.actions())
    assert _fetched(f"hf://datasets/{REPO}")[1] == "so100_pick"  # not that of a cache's folder


def test_a_second_push_moves_the_tag_and_sends_only_what_changed(hub, folder, tmp_path):
    push_dataset(folder, REPO, private=False)
    assert not hub.repo("dataset", REPO).private
    sent = hub.count("PUT", "/lfs/")
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", str(folder), str(other)], check=True)
    (other / "note.txt").write_text("new")
    with pytest.raises(DatasetError, match="is public, and so would be what is pushed"):
        push_dataset(other, REPO)
    commit = push_dataset(other, REPO, private=False, message="a note")
    assert hub.count("PUT", "/lfs/") == sent
    assert stored(hub)["note.txt"] == b"new"
    assert hub.repo("dataset", REPO).tags["v3.0"] == commit
    assert hub.repo("dataset", REPO).messages[-1] == "a note"


def test_a_revision_is_what_is_read(hub, folder, tmp_path):
    first = push_dataset(folder, REPO)
    other = write(tmp_path / "av", "v2.1", depth=False)
    push_dataset(other, REPO, revision="trial")
    assert "depth.front" in (fetch_dataset(REPO) / "meta/info.json").read_text()
    here = open_dataset(f"hf://datasets/{REPO}@trial", card=None)
    assert here.depth is False
    assert open_dataset(f"hf://datasets/{REPO}@{first}", card=None).depth is True
    assert hub.repo("dataset", REPO).tags == {"v3.0": first}


def test_what_is_there_is_not_fetched_again(hub, folder):
    push_dataset(folder, REPO)
    fetch_dataset(REPO)
    before = hub.count("GET", "/resolve/")
    fetch_dataset(REPO)
    assert hub.count("GET", "/resolve/") == before > 0


def test_a_dropped_connection_is_picked_up(hub, folder):
    push_dataset(folder, REPO)
    hub.drop("GET", r"/resolve/.*file-000\.mp4", times=2, after=1000)
    place = fetch_dataset(REPO)
    for path, data in on_disk(folder).items():
        assert (place / path).read_bytes() == data


def test_a_busy_hub_is_asked_again(hub, folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.fail("POST", "/preupload/", 503)
    hub.fail("PUT", "/lfs/", 502, times=2)
    push_dataset(folder, REPO)
    assert stored(hub) == on_disk(folder)


def test_refusals_say_why_and_keep_the_token(hub, folder, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(DatasetError, match=r"cannot fetch dataset tester/so100_pick \(Repo"):
        fetch_dataset(REPO)
    push_dataset(folder, REPO, token=TOKEN)
    with pytest.raises(DatasetError, match=r"tester/so100_pick at nowhere \(Revision"):
        fetch_dataset(REPO, revision="nowhere")
    hub.fail("POST", "/commit/", 403)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DatasetError, match=r"meta/info\.json is missing"):
        push_dataset(tmp_path / "bare", REPO)
    other = write(tmp_path / "other", "v2.1", depth=False)
    with pytest.raises(DatasetError, match=r"cannot publish .* \(status 403\): check that you may"):
        push_dataset(other, REPO)
    wrong = "hf_" + "w" * 34
    with pytest.raises(DatasetError, match=r"\(status 401\)") as error:
        push_dataset(folder, "tester/another", token=wrong)
    for text in (caplog.text, str(error.value), repr(error.value.__cause__)):
        assert TOKEN not in text
        assert wrong not in text


def test_no_hub_at_all(hub, folder):
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(DatasetError, match="cannot fetch dataset"):
        fetch_dataset(REPO)


@pytest.mark.parametrize("address", ["hf://datasets/one", "hf://datasets/a/b/c", "hf://datasets/"])
def test_addresses(address):
    with pytest.raises(DatasetError, match="is no Hub address; write hf://datasets/OWNER/NAME"):
        open_dataset(address, card=None)


PROGRAM = """
import datasets
table = datasets.load_dataset("tester/so100_pick", split="train")
print(len(table), [int(x) for x in table[20]["action"]], table[20]["frame_index"])
"""


@pytest.mark.slow
def test_datasets_loads_it_by_its_hub_name(hub, folder, tmp_path):
    """In a process that has HF_ENDPOINT from the start, logged in, without our package."""
    from spatialvla_ft.converters.lerobot_meta import FRONT_MATTER

    (folder / "README.md").write_text(FRONT_MATTER)
    push_dataset(folder, REPO)
    env = {**os.environ, **hub.environment(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[0] == "34 [2, 1, 0, 10] 1"
