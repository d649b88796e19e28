"""How long a mixture takes to open and how much memory it holds, on simulated frame indexes.

A simulated index is a real one in every byte that is read at the start: the same files in the same
format, with an `action` column of random numbers (one block of steps, repeated). There are no
pictures and the shards are empty, so only what needs no picture can be measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..data.mixtures import Part, open_mixture
from ..data.reading import Reading
from ..data.rlds.build import EPISODES, META, STEPS
from ..data.rlds.index import INDEX_DIR
from ..data.rlds.info import FORMAT_VERSION, feature_hash, read_dataset_info, shard_table
from ..data.rlds.places import open_store
from ..data.sampler import Sampler
from ..data.stats.fits import MixtureActions
from ..data.stats.statistics import dataset_statistics
from ..processes import ChildError, how_it_ended

BATCH_ROWS = 65_536
_CARD = """\
schema_version: 1
cards:
  {name}:
    version: 1.0.0
    language: {{kind: none}}
    action:
      translation: ["action[0:3]"]
      rotation: {{raw: labelled_euler, terms: ["action[3:6]"]}}
      gripper: ["action[6:7]"]
"""
_FEATURES = {
    "featuresDict": {
        "features": {
            "steps": {
                "sequence": {
                    "feature": {
                        "featuresDict": {
                            "features": {
                                "action": {
                                    "tensor": {
                                        "shape": {"dimensions": ["7"]},
                                        "dtype": "float32",
                                        "encoding": "none",
                                    }
                                }
                            }
                        }
                    },
                    "length": "-1",
                }
            }
        }
    }
}


def simulate_dataset(
    root: Path, name: str, *, steps: int, episode_steps: int = 100, seed: int = 0
) -> Path:
    """Write `<root>/<name>/1.0.0` with an index of about `steps` steps; gives the folder."""
    folder = root / name / "1.0.0"
    index = folder / INDEX_DIR
    index.mkdir(parents=True)
    episodes = max(2, steps // episode_steps)
    shard = f"{name}-train.tfrecord-00000-of-00001"
    (folder / shard).touch()
    (folder / "card.yaml").write_text(_CARD.format(name=name))
    (folder / "features.json").write_text(json.dumps(_FEATURES))
    splits = [{"name": "train", "shardLengths": [str(episodes)]}]
    info = {"name": name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    _write_steps(index / STEPS, episodes * episode_steps, episode_steps, seed)
    numbers = np.arange(episodes, dtype=np.int64)
    table = {
        "@shard": np.zeros(episodes, np.int64),
        "@offset": numbers * 1000,
        "@length": np.full(episodes, 1000),
        "@first_step": numbers * episode_steps,
        "@num_steps": np.full(episodes, episode_steps),
    }
    batch = pa.record_batch([pa.array(column) for column in table.values()], names=list(table))
    with pa.ipc.new_file(str(index / EPISODES), batch.schema) as writer:
        writer.write_batch(batch)
    store = open_store(str(folder))
    shards = shard_table(store, read_dataset_info(store))
    meta = {
        "format_version": FORMAT_VERSION,
        "dataset": name,
        "version": "1.0.0",
        "file_format": "tfrecord",
        "dataset_dir": str(folder.resolve()),
        "num_steps": episodes * episode_steps,
        "num_episodes": episodes,
        "crc_verified": True,
        "feature_hash": feature_hash(store),
        "splits": {"train": episodes},
        "shards": [entry | {"episodes": episodes} for entry in shards],
    }
    (index / META).write_text(json.dumps(meta))
    return folder


def _write_steps(path: Path, steps: int, episode_steps: int, seed: int) -> None:
    """Batches of whole episodes with random actions and a gripper that opens and closes."""
    rng = np.random.default_rng(seed)
    rows = min(steps, BATCH_ROWS // episode_steps * episode_steps)
    actions = rng.normal(size=(rows, 7)).astype(np.float32)
    actions[:, 6] = rng.random(rows) < 0.5
    values = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), 7)
    batch = pa.record_batch([values], names=["action"])
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        for start in range(0, steps, rows):
            writer.write_batch(batch.slice(0, min(rows, steps - start)))


def simulate_mixture(
    root: Path, *, datasets: int = 30, steps: int = 100_000_000, episode_steps: int = 100
) -> dict[str, Part]:
    """Simulate datasets of equal size with `steps` steps together; gives their mixture."""
    names = [f"simulated_{i:02d}" for i in range(datasets)]
    for i, name in enumerate(names):
        size = steps // datasets
        simulate_dataset(root, name, steps=size, episode_steps=episode_steps, seed=i)
    return {f"{name}/1.0.0": Part(weight=1.0 + i % 3) for i, name in enumerate(names)}


@dataclass(frozen=True)
class Start:
    """One start of a mixture in a fresh process.

    Attributes:
        steps: of all datasets.
        seconds: to open the mixture, have its statistics and Gaussian fits, and draw a batch of
            2,048 frames; without the imports.
        private_mib: memory of the process itself that this added.
        mapped_mib: pages of files that it touched; the system may take them back at any time.
    """

    steps: int
    seconds: float
    private_mib: float
    mapped_mib: float


def start_once(root: Path, parts: dict[str, Part]) -> Start:
    """Start the mixture in this process."""
    private, mapped = _resident()
    began = time.perf_counter()
    opened = open_mixture(parts, root=root, reading=Reading(card=None))
    statistics = {dataset.name: dataset_statistics(dataset) for dataset in opened.datasets}
    MixtureActions(opened.datasets, statistics, opened.weights).gaussians()
    sampler = Sampler(0, opened.weights, [len(d) for d in opened.datasets], batch=2048)
    sampler.batch(1000)
    seconds = time.perf_counter() - began
    now_private, now_mapped = _resident()
    steps = sum(len(dataset) for dataset in opened.datasets)
    return Start(steps, seconds, now_private - private, now_mapped - mapped)


def measure_start(root: Path, parts: dict[str, Part]) -> Start:
    """Start the mixture in a fresh process; the first time, statistics are computed."""
    code = (
        "import dataclasses, json, sys; from pathlib import Path\n"
        "from spatialvla_ft.bench.mixture_start import Part, start_once\n"
        "root, parts = sys.argv[1], json.loads(sys.argv[2])\n"
        "start = start_once(Path(root), {n: Part(**p) for n, p in parts.items()})\n"
        "sys.stdout.write(json.dumps(dataclasses.asdict(start)))"
    )
    content = json.dumps({name: part.model_dump(mode="json") for name, part in parts.items()})
    command = [sys.executable, "-c", code, str(root), content]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        how = how_it_ended(done.returncode)
        raise ChildError(f"starting the mixture failed with {how}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return Start(**found)


def _resident() -> tuple[float, float]:
    """(private, file-backed) resident memory of this process, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    private, mapped = (int(sizes[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    return private, mapped
