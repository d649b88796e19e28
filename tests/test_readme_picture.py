"""The README's picture, out of a run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from spatialvla_ft.viz.embed import Film

ROOT = Path(__file__).parents[1]


def module_of(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool():
    return module_of(ROOT / "tools" / "readme_picture.py")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return module_of(ROOT / "tests/viz/run_folder.py").write_run(tmp_path_factory.mktemp("r") / "r")


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_it_moves_and_is_small(tool, run_dir, tmp_path, monkeypatch, capsys, kind):
    out = tmp_path / "images" / f"x.{kind}"
    monkeypatch.setattr(tool, "SIDES", (64,))
    monkeypatch.setattr(sys, "argv", ["readme_picture.py", str(run_dir), str(out)])
    tool.main()
    with Image.open(out) as picture:
        assert picture.format == kind.upper()
        assert picture.is_animated
        assert picture.width == 2 * 64 + 8
    assert out.stat().st_size < 1_000_000
    assert "None of the 2 scenes" in capsys.readouterr().out


def test_too_large_is_made_smaller_and_then_refused(tool, run_dir, tmp_path, monkeypatch, capsys):
    out = tmp_path / "x.webp"
    monkeypatch.setattr(tool, "SIDES", (96, 64))
    played = SimpleNamespace(seed=1000, instruction="go", ending="not solved", as_recorded=False)
    monkeypatch.setattr(tool, "replay_episodes", lambda wanted, size: [played, played])
    sizes = iter((96, 64, 96, 64))
    monkeypatch.setattr(tool, "encoded", lambda replays, kind: b"x" * next(sizes))
    monkeypatch.setattr(tool, "MOST_BYTES", 64)
    monkeypatch.setattr(sys, "argv", ["readme_picture.py", str(run_dir), str(out)])
    tool.main()
    assert out.read_bytes() == b"x" * 64
    assert "NOT as recorded" in capsys.readouterr().out
    monkeypatch.setattr(tool, "MOST_BYTES", 63)
    with pytest.raises(SystemExit):
        tool.main()
    assert "64 bytes even at 64 pixels" in capsys.readouterr().err


def test_a_thinned_film_lasts_as_long(tool):
    film = Film(np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1), (50,) * 7 + (900,))
    thin = tool.thinned(film, 8.0)
    assert thin.frames.ravel().tolist() == [0, 2, 4, 6, 7]
    assert thin.milliseconds == (100, 100, 100, 50, 900)
