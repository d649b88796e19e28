"""Measure what keeping the depth of pictures saves an adaptation, side by side in one run.

    spatialvla-ft data record --robot robot_b --task touch --episodes 12 --image-size 128 --out data
    python tools/measure_kept_depth.py data/robot_b_touch/1.0.0 --out kept_depth.json

A small base of random weights sees 224 x 224 through a ZoeDepth of random weights at 384 pixels and
is adapted with `recipes/adapt_lora.yaml`, without augmentation so that the losses can be compared.
Depth kept and depth in every pass take turns. Random weights change no time, and the losses agree
because the depth does, whatever it is worth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from spatialvla_ft.actions import ActionGrid
from spatialvla_ft.data import open_dataset
from spatialvla_ft.memory.sizes import SIZES
from spatialvla_ft.models.small import small_model, small_processor
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.preflight.report import preflight
from spatialvla_ft.training.recipe import load_recipe

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "adapt_lora.yaml"
WAYS = {"kept": "estimate", "every pass": "{source: estimate, cache: never}"}
BATCH = 8


@dataclass(frozen=True)
class Measured:
    """One training.

    Attributes:
        way: of `WAYS`.
        seconds: from the first step's depth to the last step, held-out steps included.
        rate: samples per second of the steps alone, the median of the logged ones.
        losses: of every step.
        cache_bytes: on disk.
    """

    way: str
    seconds: float
    rate: float
    losses: list[float]
    cache_bytes: int


def write_base(dataset: Path, folder: Path) -> None:
    """A base that knows the dataset's words."""
    texts = sorted(open_dataset(dataset, card=None).instructions())
    grid = ActionGrid.uniform(bins=(16, 32, 8, 16, 16, 16, 2))
    processor = small_processor(texts, grid, image_size=224, patch_size=14, action_chunk_size=4)
    size = SIZES["tiny"]
    text = {name: value for name, value in size["text_config"].items() if name != "vocab_size"}
    model = small_model(
        processor,
        patch_size=14,
        vision=size["vision_config"],
        text=text,
        vision_zoe_config=size["vision_zoe_config"],
    )
    for parameter in model.vision_zoe_model.parameters():
        if parameter.ndim > 1:  # of unit gain: else the depth would be the same in every pixel
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def measure(
    way: str, dataset: Path, base: Path, output: Path, steps: int, episodes: int | None
) -> Measured:
    """Adapt once."""
    overrides = [f"output={output}", f"model.base={base}", f"data.datasets.0.path={dataset}"]
    overrides += [f"data.depth={WAYS[way]}", "data.augment=null", "data.workers=1"]
    overrides += [f"train.steps={steps}", f"train.global_batch={BATCH}", "train.log_every=1"]
    overrides += ["train.precision=float32", f"train.validate_every={steps // 2}"]
    overrides += ["train.validate_samples=4", f"train.save_every={steps}", "data.holdout=0.2"]
    overrides += [] if episodes is None else [f"data.datasets.0.episodes={episodes}"]
    run = build(load_recipe(RECIPE, overrides))
    report = preflight(run)
    began = time.perf_counter()
    train(run, report=report)
    seconds = time.perf_counter() - began
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [line for line in map(json.loads, lines) if "loss" in line]
    found = Measured(
        way,
        seconds,
        median(line["samples_per_second"] for line in logged),
        [line["loss"] for line in logged],
        0 if run.depth is None else run.depth.cache.size().bytes,
    )
    print(f"{way}: {seconds:.1f} s, {found.rate:.2f} samples/s; {report.plan['depth']}")
    shutil.rmtree(output)
    return found


def main() -> None:
    """Take turns, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--episodes", type=int, help="use only so many")
    asked = parser.parse_args()
    found: dict[str, list[Measured]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        write_base(asked.dataset, base)
        for _ in range(asked.rounds):
            for way, done in found.items():
                where = (asked.dataset, base, Path(place) / "run")
                done.append(measure(way, *where, asked.steps, asked.episodes))
            asked.out.write_text(json.dumps(report(found), indent=1) + "\n", encoding="utf-8")
    shown = {name: value for name, value in report(found).items() if name != "runs"}
    print(json.dumps(shown, indent=1))


def report(found: dict[str, list[Measured]]) -> dict[str, Any]:
    """Ratios of runs that followed one another, and how far their losses are apart."""
    pairs = list(zip(*(found[way] for way in WAYS), strict=True))
    losses = np.array([[one.losses for one in pair] for pair in pairs])
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": version("torch"),
        "threads": torch.get_num_threads(),
        "batch": BATCH,
        "rate, kept over every pass": [kept.rate / every.rate for kept, every in pairs],
        "seconds, every pass over kept": [every.seconds / kept.seconds for kept, every in pairs],
        "greatest relative difference of a loss": float(
            np.abs(losses[:, 0] / losses[:, 1] - 1).max()
        ),
        "runs": [asdict(one) for done in found.values() for one in done],
    }


if __name__ == "__main__":
    main()
