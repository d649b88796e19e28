"""`data push` against a Hub on the loopback interface: what goes, what fails, what goes on."""

import json
import shutil
import time

import numpy as np
import pytest
from fake_hub import TOKEN, FakeHub
from lerobot_write import write
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.data import open_dataset

REPO = "ada/so100_pick"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with FakeHub() as server:
        yield server.in_process(monkeypatch, tmp_path / "cache")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("push") / "local", "v3.0")


@pytest.fixture
def folder(written, tmp_path):
    """A dataset with files that must stay at home."""
    place = tmp_path / "arm"
    shutil.copytree(written, place)
    (place / ".spatialvla_ft" / "statistics").mkdir(parents=True)
    (place / ".spatialvla_ft" / "statistics" / "a.json").write_text("{}")
    (place / ".env").write_text("SECRET=1")
    (place / "data" / "half.incomplete").write_text("x")
    return place


def call(folder, *options):
    done = CliRunner().invoke(app, ["data", "push", str(folder), REPO, *options])
    assert TOKEN not in done.output
    return done


def held(hub):
    return {path: file.data for path, file in hub.repo("dataset", REPO).files().items()}


def wanted(written):
    files = (path for path in written.rglob("*") if path.is_file())
    return {path.relative_to(written).as_posix(): path.read_bytes() for path in files}


def test_a_dry_run_lists_exactly_what_goes(hub, folder, written):
    done = call(folder, "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert hub.requests == []
    assert plan["left_out"] == [".env", ".spatialvla_ft/statistics/a.json", "data/half.incomplete"]
    assert (plan["episodes"], plan["version"], plan["dry_run"]) == (5, "v3.0", True)
    shown = call(folder, "--dry-run").stdout
    assert "dry run: nothing was sent" in shown
    assert "stays here: .env" in shown
    assert hub.requests == []
    assert call(folder).exit_code == 0
    assert held(hub) == wanted(written)
    sizes = {file["path"]: file["size"] for file in plan["files"]}
    assert sizes == {path: len(data) for path, data in held(hub).items()}
    assert plan["bytes"] == sum(sizes.values())
    for path in sizes:
        assert f"  {path}\n" in shown


def test_private_unless_asked_otherwise_and_read_back(hub, folder):
    report = json.loads(call(folder, "--json").stdout)["pushed"]
    repo = hub.repo("dataset", REPO)
    assert repo.private
    assert report["private"]
    assert repo.tags == {"v3.0": report["commit"]}
    back = open_dataset(report["address"], card=None)
    np.testing.assert_array_equal(back.actions(), open_dataset(folder, card=None).actions())
    again = call(folder, "--public")
    assert "pushed (private)" in again.stdout  # an old repository stays as it is
    branch = call(folder, "--revision", "trial")
    assert f"hf://datasets/{REPO}@trial" in branch.stdout


def test_nothing_goes_to_a_public_repository_by_accident(hub, folder):
    assert call(folder, "--public").exit_code == 0
    before = hub.repo("dataset", REPO).branches["main"]
    (folder / "note.txt").write_text("not for everybody")
    refused = call(folder)
    assert refused.exit_code == 1
    assert "is public, and so would be what is pushed: nothing was sent" in refused.stderr
    assert hub.repo("dataset", REPO).branches["main"] == before


def test_a_failure_in_the_middle_and_a_second_call(hub, folder, written):
    """Some large files are there, the commit is not: nothing is seen, and they go once only."""
    hub.fail("PUT", "/lfs/", 403, times=1)
    first = call(folder)
    assert first.exit_code == 1
    assert "a second try goes on where this one stopped" in " ".join(first.stderr.split())
    assert held(hub) == {}
    hub.fail("POST", "/commit/", 403)
    second = call(folder)
    assert second.exit_code == 1
    assert held(hub) == {}
    sent = hub.count("PUT", "/lfs/")
    hub.fail("POST", "/tag/", 403)
    third = call(folder)
    assert third.exit_code == 1
    assert held(hub) == wanted(written)
    assert hub.repo("dataset", REPO).tags == {}
    last = call(folder, "--json")
    assert last.exit_code == 0, last.output
    assert hub.repo("dataset", REPO).tags == {"v3.0": hub.repo("dataset", REPO).branches["main"]}
    assert hub.count("PUT", "/lfs/") == sent


def test_what_cannot_be_published(hub, folder, tmp_path):
    def refuse(words, place=folder):
        done = call(place, "--dry-run")
        assert done.exit_code == 1
        assert words in " ".join(done.stderr.split())

    readme = folder / "README.md"
    readme.write_text("my token is hf_" + "a" * 34)
    refuse("README.md holds what looks like an access token")
    readme.unlink()
    video = next(folder.rglob("*.mp4"))
    content = video.read_bytes()
    video.write_bytes(b"")
    refuse(f"{video.relative_to(folder).as_posix()} is empty")
    video.unlink()
    refuse(f"{video.relative_to(folder).as_posix()} is missing")
    video.write_bytes(content)
    (tmp_path / "features.json").write_text("{}")
    refuse("is an RLDS dataset", tmp_path)
    named = CliRunner().invoke(app, ["data", "push", str(folder), "so100", "--dry-run"])
    assert named.exit_code == 1
    assert "write OWNER/NAME" in named.stderr


def test_without_a_login(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    done = call(folder)
    assert done.exit_code == 1
    assert "hf auth login" in done.stderr
    assert hub.requests == []
