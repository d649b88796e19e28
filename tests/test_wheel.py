"""The built wheel in an environment of its own: recipes by name, in a folder outside any clone."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "data"))
import plain_rlds as plain
from plain_rlds import Spec, tensor

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("spatialvla_ft", "data_mixtures", "recipes")
"""Of the checkout; what is no Python in them must be in the wheel too."""
STATE = """
import json, sys
from pathlib import Path

import spatialvla_ft
from spatialvla_ft.quickstart.job import _stages
from spatialvla_ft.shipped import shipped, shipped_recipes
from spatialvla_ft.training.recipe import load_recipe

trained = [s.arguments for s in _stages(Path("runs"), 0) if s.arguments[0] == "train"]
for _, name, *overrides in trained:
    load_recipe(name, overrides)
print(json.dumps({
    "package": spatialvla_ft.__file__,
    "path": [str(Path(place).resolve()) for place in sys.path],
    "outputs": {name: str(load_recipe(name).output) for name in shipped_recipes()},
    "cards": str(shipped("oxe_cards.yaml")),
    "quickstart": [words[1] for words in trained],
}))
"""
CALLS = """
import json, sys
from spatialvla_ft.cli.main import app

for words in json.loads(sys.argv[1]):
    if code := app(words, standalone_mode=False):
        sys.exit(code)
"""
"""Several calls of the command in one process, as most of each would be the loading of torch."""
STEPS = (8, 9, 7, 8)
TINY = ("train.steps=1", "train.batch_size=2", "train.global_batch=2", "train.threads=1",
        "train.trackers=[jsonl]", "train.precision=float32", "data.workers=0")  # fmt: skip


@dataclass
class Bare:
    """An environment that has the wheel, and all that it needs from the one of the tests.

    Attributes:
        site: where it is installed.
        python: its interpreter.
        work: the working directory, empty at first.
    """

    site: Path
    python: Path
    work: Path

    def run(self, program: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        hidden = {"PYTHONPATH", "PYTHONHOME"}
        done = subprocess.run(
            [self.python.with_name(program), *arguments],
            cwd=self.work,
            env={
                **{name: value for name, value in os.environ.items() if name not in hidden},
                "CUDA_VISIBLE_DEVICES": "",
                "SPATIALVLA_FT_LIGHT": "1",
                "HF_HUB_OFFLINE": "1",
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def files(self) -> set[str]:
        """What lies in the installed package, but compiled code."""
        whole = {path.relative_to(self.site).as_posix() for path in self.site.rglob("*")}
        return {name for name in whole if "__pycache__" not in name}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    python = [sys.executable, "-m"]
    environment = folder / "environment"
    run = {"cwd": ROOT, "check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([*python, "hatchling", "build", "-t", "wheel", "-d", str(folder)], **run)
    subprocess.run([*python, "venv", "--without-pip", str(environment)], **run)
    (wheel,) = folder.glob("*.whl")
    pip = [*python, "pip", "--python", str(environment / "bin/python")]
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-compile", str(wheel)]
    subprocess.run([*pip, "--disable-pip-version-check", *install], **run)
    (site,) = environment.glob("lib/python*/site-packages")
    # Its packages, but not what its own .pth files add, such as a checkout.
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "others.pth").write_text("\n".join(others) + "\n")
    (folder / "work").mkdir()
    return Bare(site, environment / "bin/python", folder / "work")


def noise(rng):
    """A PNG of 6 x 8 pixels."""
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def demonstrations(bare):
    """Four short episodes where recipes/debug.yaml looks for its data."""
    rng = np.random.default_rng(0)
    columns = plain.robot(STEPS)
    arm = [rng.uniform(-0.05, 0.05, (steps, 6)) for steps in STEPS]
    gripper = [np.arange(steps)[:, None] % 2 for steps in STEPS]
    both = zip(arm, gripper, strict=True)
    columns["action"].values[:] = [np.hstack(parts).ravel() for parts in both]
    pictures = [[noise(rng) for _ in range(steps)] for steps in STEPS]
    columns["observation.image"].values[:] = pictures
    depth = [rng.uniform(0.5, 1, steps * 8 * 6) for steps in STEPS]
    columns["observation.depth"] = Spec(tensor(8, 6), depth)
    card = {
        **plain.CARD,
        "depth": {"primary": "observation.depth"},
        "depth_scale": 1.0,
        "intrinsics": {"primary": {"fx": 7, "fy": 7, "cx": 3, "cy": 4, "width": 6, "height": 8}},
    }
    made = plain.write(bare.work / "made", columns, episodes=len(STEPS), card=card)
    place = bare.work / "runs/debug_data/robot_b_touch"
    place.mkdir(parents=True)
    made.rename(place / "1.0.0")


def test_the_wheel_has_everything_and_finds_it(bare):
    state = json.loads(bare.run("python", "-c", STATE).stdout)
    package = bare.site / "spatialvla_ft"
    assert Path(state["package"]) == package / "__init__.py"
    assert str(ROOT) not in state["path"]
    assert Path(state["cards"]) == package / "data_mixtures/oxe_cards.yaml"
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                inside = path.relative_to(ROOT / "spatialvla_ft" if folder == FOLDERS[0] else ROOT)
                assert (package / inside).read_bytes() == path.read_bytes()

    written = {path.stem: yaml.safe_load(path.read_text()) for path in ROOT.glob("recipes/*.yaml")}
    assert {name: output for name, output in state["outputs"].items() if "/" not in name} == {
        name: recipe["output"] for name, recipe in written.items()
    }
    assert state["outputs"]["toy/adapt_lora"] == "runs/toy/adapt_lora"
    assert state["quickstart"] == ["quickstart_base", "quickstart_scratch", "quickstart_adapt"]
    assert "adapt_lora_spatial" in bare.run("spatialvla-ft", "recipes").stdout
    assert "--resume" in bare.run("spatialvla-ft", "quickstart", "--help").stdout
    refused = bare.run("spatialvla-ft", "train", "adapt_lora", code=1).stderr
    assert refused.startswith("error: model.base spatialvla-4b-224-pt is no folder")


@pytest.mark.usefixtures("demonstrations")
def test_a_base_a_toy_and_an_adapted_policy_by_name(bare):
    before = bare.files()
    data, base = "runs/debug_data/robot_b_touch/1.0.0", "runs/debug/final"
    calls = [
        ["train", "debug", *TINY],
        ["train", "toy/adapt_lora", *TINY],
        ["adapt", data, "--base", base, "data.depth=sensor", "data.holdout=0.3", *TINY],
    ]
    bare.run("python", "-c", CALLS, json.dumps(calls))
    assert (bare.work / base / "config.json").is_file()
    for folder in ("toy/adapt_lora", "adapt_robot_b_touch/train"):
        adapter = bare.work / "runs" / folder / "final/adapter_config.json"
        assert json.loads(adapter.read_text())["r"] == 32
    assert (bare.work / "runs/adapt_robot_b_touch/open_loop.json").is_file()
    assert bare.files() == before
    assert {path.name for path in bare.work.iterdir()} == {"made", "runs"}
