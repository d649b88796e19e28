"""An adapter's base is found from anywhere, and where it is not, that is said at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub, Repo
from tiny_world import tiny_model, tiny_processor
from typer.testing import CliRunner

from spatialvla_ft import SpatialVLAForConditionalGeneration
from spatialvla_ft.cli.main import app
from spatialvla_ft.export.adapter import export_adapter
from spatialvla_ft.export.inputs import random_inputs
from spatialvla_ft.export.lineage import read_lineage
from spatialvla_ft.models import checkpoint_files
from spatialvla_ft.models.base_place import find_base
from spatialvla_ft.models.lora import (
    attach_lora,
    fingerprint,
    load_with_adapter,
    save_adapter,
    spatial_rows,
)
from spatialvla_ft.policy.load import load_policy_model

CURE = (
    r"--base FOLDER with `export`, `push`, `eval sim`, `eval open-loop` and `check-robot`, "
    r"base= in Python"
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project that was worked in from its own folder: bases/one, and an adapter of it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    processor = tiny_processor()
    tiny_model(processor).save_pretrained("bases/one")
    processor.save_pretrained("bases/one")
    model = SpatialVLAForConditionalGeneration.from_pretrained("bases/one", dtype=torch.float32)
    own, rows = fingerprint(model), spatial_rows(model)
    adapted = attach_lora(model, rank=2)
    place = Path("runs/b/final")
    save_adapter(adapted, processor, rows, place, base="bases/one", base_fingerprint=own)
    return folder


def as_written_before(adapter):
    """base.json as earlier versions wrote it, which knew nothing but the name."""
    file = adapter / "base.json"
    content = json.loads(file.read_text())
    assert content.pop("base_from_here") == "../../../bases/one"
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("before", [False, True], ids=["now", "earlier"])
def test_the_base_is_found_from_another_folder(project, tmp_path, monkeypatch, before):
    adapter = project / "runs/b/final"
    if before:
        as_written_before(adapter)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Path(find_base(adapter)).samefile(project / "bases/one")
    load_policy_model(adapter)


def test_the_project_moves_as_a_whole(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moved = project.rename(tmp_path / "moved")
    assert Path(find_base(moved / "runs/b/final")).samefile(moved / "bases/one")


def test_the_way_from_the_adapter_comes_before_the_working_directory(
    project, tmp_path, monkeypatch
):
    """A base of the same name in another project is another base."""
    other = tmp_path / "other"
    shutil.copytree(project / "bases", other / "bases")
    monkeypatch.chdir(other)
    assert Path(find_base(project / "runs/b/final")).samefile(project / "bases/one")


def test_the_licence_follows_the_base_from_another_folder(project, tmp_path, monkeypatch):
    (project / "bases/one/README.md").write_text("---\nlicense: gemma\n---\n")
    monkeypatch.chdir(tmp_path)
    assert read_lineage(project / "runs/b/final").base_licence == "gemma"


def test_an_exported_adapter_knows_the_way_from_its_own_folder(project, tmp_path, monkeypatch):
    out = tmp_path / "somewhere" / "else" / "adapter"
    export_adapter("runs/b", out, lambda p, c: random_inputs(p, c, count=1))
    recorded = json.loads((out / "base.json").read_text())
    assert recorded["base"] == "bases/one"
    assert recorded["base_from_here"] == "../../../project/bases/one"
    monkeypatch.chdir(tmp_path)
    load_policy_model(out)
    named = export_adapter(
        project / "runs/b", tmp_path / "hub", lambda p, c: random_inputs(p, c, count=1),
        hub_base="ada/one",
    )  # fmt: skip
    recorded = json.loads((named.out / "base.json").read_text())
    assert recorded["base"] == "ada/one"
    assert "base_from_here" not in recorded


@pytest.fixture
def gone(project):
    """The base was moved: its name and the way to it lead nowhere."""
    (project / "bases/one").rename(project / "bases/two")
    return project / "runs/b/final"


def unreached(monkeypatch):
    """No Hub; the client that would try again for half a minute fails the test."""
    asked = []

    class Silent:
        def model_info(self, name, *, timeout):
            asked.append((name, timeout))
            raise TimeoutError("no route to host")

    def client(*_, **__):
        raise AssertionError("the Hub's own client was started")

    monkeypatch.setattr(checkpoint_files, "HfApi", Silent)
    monkeypatch.setattr(checkpoint_files, "cached_file", client)
    return asked


@pytest.mark.parametrize("before", [False, True], ids=["now", "earlier"])
def test_a_moved_base_is_named_at_once_with_the_option(gone, monkeypatch, before):
    """Of a new file it is known that the base was a folder; of an old one the Hub is asked once."""
    if before:
        as_written_before(gone)
    asked = unreached(monkeypatch)
    with pytest.raises(ValueError, match=rf"bases/one is no checkpoint folder.*{CURE}"):
        load_with_adapter(gone)
    assert asked == [("bases/one", checkpoint_files.HUB_SECONDS)] * before


def test_the_option_is_one_of_every_command_that_loads_an_adapter(gone, monkeypatch, tmp_path):
    unreached(monkeypatch)
    commands = {
        "export": f"export {gone} --out {tmp_path / 'out'}",
        "export adapter": f"export {gone} --out {tmp_path / 'out'} --adapter-only",
        "eval sim": f"eval sim --checkpoint {gone} --robot robot_a --episodes 1",
        "eval open-loop": f"eval open-loop {gone} {tmp_path}",
        "check-robot": f"check-robot {gone} {tmp_path}",
    }
    for name, command in commands.items():
        refused = CliRunner().invoke(app, command.split())
        assert refused.exit_code == 1, name
        assert "bases/one is no checkpoint folder" in refused.stderr, name
        wrong = CliRunner().invoke(app, [*command.split(), "--base", "bases/three"])
        assert wrong.exit_code == 1, name
        assert "error: --base bases/three: there is no folder of this name" in wrong.stderr, name


def test_the_new_place_is_taken(gone, tmp_path):
    moved = str(gone.parents[2] / "bases/two")
    load_policy_model(gone, base=moved)
    command = ["export", str(gone), "--out", str(tmp_path / "out"), "--samples", "1"]
    done = CliRunner().invoke(app, [*command, "--base", moved])
    assert done.exit_code == 0, done.output
    with pytest.raises(ValueError, match="is a whole checkpoint and needs no base"):
        load_policy_model(moved, base=moved)


def test_a_checkpoint_that_is_not_there_is_said_at_once_too(monkeypatch, tmp_path):
    """`exports/b` has the form of a repository's name."""
    asked = unreached(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"exports/b: there is no folder of this name.*no route"):
        load_policy_model("exports/b")
    assert asked == [("exports/b", checkpoint_files.HUB_SECONDS)]
    done = CliRunner().invoke(app, ["eval", "open-loop", "exports/b", "data"])
    assert done.exit_code == 1
    assert "exports/b: there is no folder" in done.stderr
    recipe = {
        "output": "out",
        "model": {"base": "bases/gone"},
        "data": {"datasets": [{"path": "data"}]},
        "train": {"steps": 1, "batch_size": 1, "learning_rate": 1e-3},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = CliRunner().invoke(app, ["train", "recipe.yaml"])
    assert done.exit_code == 1
    assert "error: model.base bases/gone: there is no folder of this name" in done.stderr
    done = CliRunner().invoke(app, ["adapt", "data", "--base", "bases/gone", "--out", "out"])
    assert done.exit_code == 1
    assert "--base bases/gone: there is no folder of this name" in done.stderr


@pytest.mark.slow
def test_without_a_network_it_takes_no_half_minute(gone, tmp_path):
    """In a process of its own, at an address where nobody answers."""
    as_written_before(gone)
    code = "import sys, pathlib; from spatialvla_ft.models.lora import load_with_adapter as load\n"
    code += "load(pathlib.Path(sys.argv[1]))"
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "0",
    }
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import spatialvla_ft.models.lora"], check=True)
    imported = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(gone)],
        check=False, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert "--base FOLDER" in done.stderr
    assert time.monotonic() - imported < 2 * (imported - start) + 10  # retries alone take 23 s


def test_a_base_on_the_hub_is_asked_for_by_name(project, tmp_path, monkeypatch):
    adapter = project / "runs/b/final"
    content = json.loads((adapter / "base.json").read_text())
    content = {**content, "base": "ada/one"}
    content.pop("base_from_here")
    (adapter / "base.json").write_text(json.dumps(content))
    with FakeHub() as hub:
        hub.in_process(monkeypatch, tmp_path / "cache")
        with pytest.raises(
            ValueError, match=r"ada/one is no checkpoint folder.*as a name on the Hub"
        ):
            find_base(adapter)
        hub.repos["model", "ada/one"] = Repo("model", "ada/one", private=False)
        assert find_base(adapter) == "ada/one"
