"""A push is whole or not there, says which, and is completed by a second one; no token leaks."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub, File
from huggingface_hub import constants, snapshot_download
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.export.push_plan import plan_push
from spatialvla_ft.hub.plan import PushError
from spatialvla_ft.hub.push import ATTEMPTS, push

REPO = "ada/blocks-vla"
COMMIT, LFS, BATCH = r"/commit/", r"^/lfs/", r"objects/batch"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with FakeHub() as server:
        yield server.in_process(monkeypatch, tmp_path / "cache")


@pytest.fixture(scope="module")
def plan(exported):
    return plan_push(exported.out, REPO, verify=False)


@pytest.fixture(autouse=True)
def no_token_anywhere(capsys, caplog):
    """Whatever a test does, the token is in no output and no log, at any level."""
    caplog.set_level(logging.DEBUG)
    yield
    captured = capsys.readouterr()
    assert TOKEN not in captured.out + captured.err + caplog.text


def held(hub, revision="main"):
    return {path: file.data for path, file in hub.repo("model", REPO).files(revision).items()}


def wanted(plan):
    return {
        f.path: f.content if f.content is not None else f.source.read_bytes() for f in plan.files
    }


def refused(plan, **options):
    """The message of a push that fails, without the token in it or in its traceback."""
    with pytest.raises(PushError) as caught:
        push(plan, token=TOKEN, **options)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


def test_a_push_is_one_commit_of_exactly_the_plan(hub, plan):
    done = push(plan, token=TOKEN)
    repo = hub.repo("model", REPO)
    assert repo.private
    assert done.private
    assert done.created
    assert done.changed == len(plan.files)
    assert held(hub) == wanted(plan)
    assert repo.messages == ["initial commit", "Upload from spatialvla-ft"]
    assert repo.branches["main"] == done.commit
    assert {path for path, file in repo.files().items() if file.lfs} == {
        "model.safetensors",
        "golden_outputs.safetensors",
    }
    assert b'"ada/blocks-vla", trust_remote_code=True' in held(hub)["README.md"]


def test_hashes_of_the_plan(plan):
    for file in plan.files:
        data = wanted(plan)[file.path]
        assert file.size == len(data)
        assert file.sha256 == hashlib.sha256(data).hexdigest()
    config = next(file for file in plan.files if file.path == "config.json")
    git = ["git", "hash-object", "--no-filters", str(config.source)]
    said = subprocess.run(git, capture_output=True, text=True, check=True)
    assert config.git_oid == said.stdout.strip()


def test_a_second_push_sends_nothing(hub, plan):
    first = push(plan, token=TOKEN)
    sent = len(hub.requests)
    second = push(plan, token=TOKEN)
    assert (second.changed, second.created, second.commit) == (0, False, first.commit)
    assert all(method in ("GET", "HEAD") for method, *_ in hub.requests[sent:])


def test_only_what_changed_goes_and_old_weights_leave(hub, exported, plan, tmp_path):
    old = shutil.copytree(exported.out, tmp_path / "old")
    (old / "model.safetensors").rename(old / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (old / "model.safetensors.index.json").write_text(json.dumps(index))
    push(plan_push(old, REPO, verify=False), token=TOKEN)
    hub.repo("model", REPO).commit("main", {**hub.repo("model", REPO).files(), **notes()}, "mine")
    done = push(plan, token=TOKEN)
    assert done.changed == 1
    assert done.removed == ("model-00001-of-00001.safetensors", "model.safetensors.index.json")
    assert held(hub) == {**wanted(plan), "notes/a.md": b"mine"}


def notes():
    return {"notes/a.md": File(b"mine", False)}


STEPS = {
    "looking": ("GET", "/api/models/"),
    "making": ("POST", "repos/create"),
    "asking": ("POST", "preupload"),
    "listing": ("GET", "/tree/"),
    "batch": ("POST", BATCH),
    "sending": ("PUT", LFS),
    "commit": ("POST", COMMIT),
}
PASSES = [(step, trouble) for step in STEPS for trouble in (503, "drop", "late")]
PASSES += [("commit", 429), ("commit", 500)]
STAYS = [("commit", trouble) for trouble in (401, 403, 409, 500, "drop")]
STAYS += [("sending", 500), ("sending", "drop"), ("batch", 500), ("asking", 401)]


def break_step(hub, step, trouble, times):
    method, pattern = STEPS[step]
    if trouble in ("drop", "late"):
        hub.drop(method, pattern, times, late=trouble == "late")
    else:
        hub.fail(method, pattern, trouble, times)


@pytest.mark.parametrize(("step", "trouble"), PASSES)
def test_what_passes_is_tried_again(hub, plan, step, trouble):
    """A single failure of any step is got over, and nothing is done twice."""
    break_step(hub, step, trouble, 1)
    push(plan, token=TOKEN)
    assert held(hub) == wanted(plan)
    assert hub.repo("model", REPO).messages == ["initial commit", "Upload from spatialvla-ft"]


@pytest.mark.parametrize(("step", "trouble"), STAYS)
def test_what_stays_broken_is_told_and_a_second_call_completes(hub, plan, step, trouble):
    break_step(hub, step, trouble, 1000)
    message = refused(plan)
    assert f"{REPO} was made by this call; nothing of this push is visible in it" in message
    assert f"{len(plan.files)} of {len(plan.files)} files are not committed" in message
    assert held(hub) == {}  # as the initial commit left it
    if trouble != "drop":
        assert f"the Hub answered {trouble}" in message
    assert {401: "hf auth login", 403: "right to write", 409: "else is writing"}.get(
        trouble, "all again"
    ) in message
    sent = hub.count("PUT", LFS)
    hub.troubles.clear()
    done = push(plan, token=TOKEN)
    assert not done.created
    assert held(hub) == wanted(plan)
    if step == "commit":  # the large files had arrived
        assert hub.count("PUT", LFS) == sent


def test_attempts_are_bounded(hub, plan):
    hub.fail("POST", COMMIT, 500, times=1000)
    refused(plan)
    assert hub.count("POST", COMMIT) == ATTEMPTS
    hub.troubles.clear()
    hub.fail("POST", COMMIT, 401, times=1000)
    refused(plan)
    assert hub.count("POST", COMMIT) == ATTEMPTS + 1  # a refusal is not tried again


def test_a_hub_that_goes_away_leaves_an_honest_unknown(hub, plan):
    push(plan, token=TOKEN)
    hub.fail("GET", "/api/models/", 503, times=1000)
    message = refused(plan)
    assert "is unknown, since the Hub does not answer" in message
    assert "all of this export or none of it" in message


def test_a_hub_that_repeats_the_token_is_not_repeated(hub, plan, caplog):
    hub.fail("POST", COMMIT, 503, words=f"slow down, {TOKEN}")
    hub.fail("POST", COMMIT, 422, words=f"no room for Bearer {TOKEN}")
    assert "no room for Bearer ***" in refused(plan)
    assert "slow down, ***" in caplog.text


def test_a_wrong_token_publishes_nothing(hub, plan):
    wrong = "hf_" + "w" * 34
    with pytest.raises(PushError) as caught:
        push(plan, token=wrong)
    assert "making the repository failed (the Hub answered 401" in str(caught.value)
    assert "nothing is published" in str(caught.value)
    assert "hf auth login" in str(caught.value)
    assert wrong not in "".join(traceback.format_exception(caught.value))
    assert hub.repos == {}


def test_somebody_else_commits_in_between(hub, plan):
    """409 once: the branch is read again, and the other's files stay."""
    push(plan, token=TOKEN)
    repo = hub.repo("model", REPO)
    repo.commit("main", {**notes()}, "theirs, which dropped everything")
    hub.fail("POST", COMMIT, 409)
    push(plan, token=TOKEN)
    assert held(hub) == {**wanted(plan), "notes/a.md": b"mine"}


def test_a_public_repository_is_not_written_to_by_accident(hub, plan):
    push(plan, token=TOKEN, private=False)
    assert not hub.repo("model", REPO).private
    count = hub.count("POST", COMMIT)
    assert f"{REPO} is public" in refused(plan)
    assert hub.count("POST", COMMIT) == count
    assert push(plan, token=TOKEN, private=False).changed == 0


def test_another_branch(hub, plan):
    done = push(plan, token=TOKEN, revision="v2")
    assert done.revision == "v2"
    assert held(hub) == {}
    assert held(hub, "v2") == wanted(plan)


def test_a_file_that_changes_meanwhile_is_noticed(hub, exported, tmp_path):
    folder = shutil.copytree(exported.out, tmp_path / "copy")
    plan = plan_push(folder, REPO, verify=False)
    (folder / "config.json").write_text("{}")
    assert "changed while it was being pushed" in refused(plan)
    assert held(hub) == {}


# ---------------------------------------------------------------------- the plan


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported.out, tmp_path / "copy")


def test_what_does_not_belong_stays_at_home(folder):
    for name in (".secret", "optimizer.pt", "notes.docx"):
        (folder / name).write_text("x")
    (folder / "checkpoints").mkdir()
    (folder / "link.json").symlink_to("/etc/hostname")
    (folder / "LICENSE").write_text("terms")
    plan = plan_push(folder, REPO, verify=False)
    assert plan.left_out == (".secret", "checkpoints/", "link.json", "notes.docx", "optimizer.pt")
    assert "LICENSE" in [file.path for file in plan.files]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "processor_config.json").unlink(), "processor_config.json is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "modeling_spatialvla.py").unlink(), "modeling_spatialvla.py is missing"),
        (lambda f: (f / "README.md").write_text(""), "README.md is empty"),
        (lambda f: cut(f / "model.safetensors"), r"model.safetensors \(.* cannot be read"),
        (lambda f: (f / "README.md").write_text(f"see {TOKEN}"), "access token"),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_incomplete_exports_are_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(PushError, match=message) as caught:
        plan_push(folder, REPO, verify=False)
    assert TOKEN not in str(caught.value)


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def test_names_of_repositories(exported):
    for name in ("blocks", "a/b/c", "a b/c", "/b", "https://hub/a/b"):
        with pytest.raises(PushError, match="write OWNER/NAME"):
            plan_push(exported.out, name, verify=False)


def test_what_answers_otherwise_is_not_pushed(folder):
    file = folder / "processor_config.json"
    saved = json.loads(file.read_text())
    next(iter(saved["statistics"].values()))["action"]["q99"][0] += 0.01
    file.write_text(json.dumps(saved))
    with pytest.raises(PushError, match="does not give its stored answers"):
        plan_push(folder, REPO)


# ---------------------------------------------------------------------- the command


def test_dry_run_lists_and_sends_nothing(hub, exported):
    arguments = ["push", str(exported.out), "--repo", REPO, "--dry-run"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    size = (exported.out / "model.safetensors").stat().st_size
    digest = hashlib.sha256((exported.out / "model.safetensors").read_bytes()).hexdigest()
    assert f"{size:,}  {digest[:16]}  model.safetensors" in done.stdout
    assert "it gives its 3 stored answers" in done.stdout
    assert "nothing was sent" in done.stdout
    done = CliRunner().invoke(app, [*arguments, "--json", "--skip-verify"])
    listed = json.loads(done.stdout)
    assert {file["path"] for file in listed["files"]} == {p.name for p in exported.out.iterdir()}
    assert listed["bytes"] == sum(file["size"] for file in listed["files"])
    assert hub.requests == []


def test_the_command_pushes_and_anyone_loads_it(hub, exported, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(TOKEN + "\n")
    arguments = ["push", str(exported.out), "--repo", REPO, "--skip-verify", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--token-file", str(tmp_path / "token")])
    assert done.exit_code == 0, done.output
    assert TOKEN not in done.output
    assert json.loads(done.stdout)["pushed"]["private"] is True
    back = Path(snapshot_download(REPO, token=TOKEN, cache_dir=tmp_path / "cache"))
    for file in exported.out.iterdir():
        if file.name != "README.md":
            assert (back / file.name).read_bytes() == file.read_bytes(), file.name
    hub.fail("POST", COMMIT, 401, times=9)
    again = shutil.copytree(exported.out, tmp_path / "again")
    (again / "LICENSE").write_text("terms")
    done = CliRunner().invoke(
        app, ["push", str(again), *arguments[2:], "--token-file", str(tmp_path / "token")]
    )
    assert done.exit_code == 1
    assert "1 of " in done.output
    assert TOKEN not in done.output


def test_without_a_login(hub, exported, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    arguments = ["push", str(exported.out), "--repo", REPO, "--skip-verify"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "hf auth login" in " ".join(done.stderr.split())
    (tmp_path / "token").write_text(f"{TOKEN} and more")
    done = CliRunner().invoke(app, [*arguments, "--token-file", str(tmp_path / "token")])
    assert done.exit_code == 1
    assert "one access token and nothing else" in " ".join(done.stderr.split())
    assert TOKEN not in done.output


@pytest.mark.slow
def test_a_pushed_repository_loads_by_name_where_the_package_is_not(hub, exported, plan, tmp_path):
    """The same check as for a folder, through the Hub's HTTP calls."""
    push(plan, token=TOKEN)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-I", str(root / "tools/check_export_alone.py"), REPO]
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["AutoModel"]["ids_equal"] is True
    assert all(name.startswith("transformers_modules.") for name in found["code"])
    assert TOKEN not in done.stdout + done.stderr
