"""Reading takes as much memory of the process however large the dataset is.

Pages of mapped files do not count: the system takes them back when it wants them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spatialvla_ft.bench.data import grow
from spatialvla_ft.bench.small_rlds import write_rlds
from spatialvla_ft.data.rlds.index import build_index

CARD = """\
schema_version: 1
cards:
  generated:
    version: 1.0.0
    cameras: {primary: observation.image_0}
    action:
      translation: ["action[0:3]"]
      rotation: {raw: labelled_euler, terms: ["action[3:6]"]}
      gripper: ["action[6:7]"]
"""
READ = """\
import gc, json, sys
from pathlib import Path
from spatialvla_ft.data.opening import open_dataset

def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

def read(folder):
    dataset = open_dataset(folder, card=None)
    index = dataset.frame_index
    for i in range(1500):
        episode, row = dataset.locate(i * 7919 % len(dataset))
        assert index.image_bytes(episode, row, "observation.image_0")
        dataset._rows(episode, range(row, row + 1))
    return dataset

read(sys.argv[1])  # what the code itself takes
gc.collect()
before = private()
dataset = read(sys.argv[2])
gc.collect()
print(json.dumps([len(dataset), private() - before]))
"""
BOUND = 3.0
"""MiB at most for 99 times more data; a list of its steps would take 5."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_private_memory_does_not_grow_with_the_data(tmp_path):
    small = write_rlds(
        tmp_path, mebibytes=1, shards=4, steps=20, picture_bytes=200, lengths=[20] * 4
    )
    (small / "card.yaml").write_text(CARD)
    found = {}
    for times in (1, 10, 100):
        folder = small if times == 1 else grow(small, tmp_path / f"x{times}", times)
        build_index(folder, workers=1)
        command = [sys.executable, "-c", READ, str(small), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=_light())
        assert done.returncode == 0, done.stderr[-1000:]
        steps, found[times] = json.loads(done.stdout)
        assert steps == 1600 * times
    assert max(found[10], found[100]) - found[1] < BOUND, found


def _light():
    root = str(Path(__file__).parents[2])
    return {**os.environ, "SPATIALVLA_FT_LIGHT": "1", "PYTHONPATH": root}
