"""Datasets written, and read, by tfds in a process of its own, once per machine and source."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WRITER = Path(__file__).parent / "tfds_write.py"


def _run(*args):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, str(WRITER), *map(str, args)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Directory with `<name>/1.0.0` datasets and `dump` of what tfds reads from them."""
    root = tmp_path_factory.mktemp("tfds")
    _run(root, "demo", "zoo")
    return root


@pytest.fixture(scope="session")
def wild_written(tmp_path_factory):
    """As `written`, of rare features; the datasets below `array_record` are in that format."""
    root = tmp_path_factory.mktemp("tfds_wild")
    _run(root, "wild")
    return root


@pytest.fixture(scope="session")
def points_written(tmp_path_factory):
    """Name -> version directory of the datasets of `points_checks`; not to be changed."""
    from spatialvla_ft.processes import Worker

    with Worker("points_checks:write", tmp_path_factory.mktemp("points")) as writer:
        return writer.recv()


@pytest.fixture(scope="session")
def pointed(points_written):
    """A dataset with columns of points."""
    return points_written["pointed"]


@pytest.fixture(scope="session")
def acted(points_written):
    """A dataset of trajectories whose points in hindsight are known."""
    return points_written["acted"]


def _copy(written, name, place):
    target = place / name / "1.0.0"
    shutil.copytree(written / name / "1.0.0", target)
    return target


@pytest.fixture
def demo(written, tmp_path):
    """A private copy of the robot dataset, not yet indexed."""
    return _copy(written, "demo", tmp_path)


@pytest.fixture
def zoo(written, tmp_path):
    """A private copy of the dataset with every kind of feature."""
    return _copy(written, "zoo", tmp_path)


@pytest.fixture
def mine(demo, tmp_path):
    """Arguments for a mixture of two datasets, one of them with half the steps' motion."""
    other = tmp_path / "other" / "1.0.0"
    shutil.copytree(demo, other)
    for name in ("card.yaml", "dataset_info.json"):
        (other / name).write_text((other / name).read_text().replace("demo", "other"))
    for shard in other.glob("demo-*"):
        shard.rename(other / shard.name.replace("demo", "other"))
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"""schema_version: 1
mixtures:
  mine:
    demo/1.0.0: {{weight: 3, path: {demo}}}
    other/1.0.0: {{weight: 1, path: {tmp_path}/other/1.0.0, episodes: 3, no_ops: {{tolerance: 1}}}}
exclude_lists:
  hands: [other/1.0.0, elsewhere/0.1.0]
"""
    )
    return ["--mixture", "mine", "--file", str(file)]


@pytest.fixture(scope="session")
def tfds_read(request):
    """name, split -> what tfds reads: a list of (raw episode, decoded episode)."""

    def read(name, split):
        root = request.getfixturevalue("wild_written" if name == "wild" else "written")
        return pickle.loads((root / "dump" / name / f"{split}.pickle").read_bytes())

    return read
