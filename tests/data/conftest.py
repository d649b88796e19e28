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
    _run(root)
    return root


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


@pytest.fixture(scope="session")
def tfds_read(written):
    """name, split -> what tfds reads: a list of (raw episode, decoded episode)."""

    def read(name, split):
        return pickle.loads((written / "dump" / name / f"{split}.pickle").read_bytes())

    return read
