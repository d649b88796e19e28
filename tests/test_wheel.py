"""An installed package finds the cards that come with it."""

import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import spatialvla_ft.shipped as module
from spatialvla_ft.shipped import FOLDER, shipped

ROOT = Path(__file__).parents[2]


def test_the_wheel_takes_the_cards_where_they_are_looked_for(tmp_path):
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = config["tool"]["hatch"]["build"]["targets"]["wheel"]
    ((source, target),) = wheel["force-include"].items()
    assert source == FOLDER
    copied = tmp_path / "spatialvla_ft/shipped.py"
    copied.parent.mkdir(parents=True)
    shutil.copy(module.__file__, copied)
    shutil.copytree(ROOT / source, tmp_path / target)
    spec = importlib.util.spec_from_file_location("shipped_installed", copied)
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    for path in sorted((ROOT / FOLDER).iterdir()):
        found = installed.shipped(path.name)
        assert found.is_relative_to(tmp_path / "spatialvla_ft")
        assert found.read_bytes() == path.read_bytes()


def test_a_checkout_finds_its_own():
    assert shipped("oxe_cards.yaml").read_bytes() == (ROOT / FOLDER / "oxe_cards.yaml").read_bytes()


@pytest.mark.slow
def test_a_built_wheel_holds_the_cards(tmp_path):
    pytest.importorskip("hatchling", reason="uv pip install hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"spatialvla_ft/{FOLDER}/{path.name}" for path in (ROOT / FOLDER).iterdir()} <= {*names}
    assert "spatialvla_ft/viz/report.html" in names
    assert len(names) == len(set(names))
