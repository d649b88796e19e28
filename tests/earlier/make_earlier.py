"""A program that leaves on disk what a user of the present commit would have there.

    PYTHONPATH=.:tests:tests/data:tests/depth python tests/earlier/make_earlier.py FOLDER ARCHIVE

Everything is made by the commands and functions that users call, inside FOLDER (new) and with paths
relative to it, then packed with its times of writing, which indexes and kept figures go by.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import depth_zoo
import numpy as np
import plain_rlds
import torch
import yaml
from PIL import Image
from tiny_world import BINS, SIZES

from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.converters.rlds_to_lerobot import to_lerobot
from spatialvla_ft.data import load_cards, open_dataset
from spatialvla_ft.data.stats.fits import MixtureActions
from spatialvla_ft.data.stats.statistics import dataset_statistics
from spatialvla_ft.models.small import small_model, small_processor
from spatialvla_ft.quickstart.stages import Stage, StageRunner
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import load_recipe

LENGTHS = (5, 3, 6, 4, 5)
HEIGHT, WIDTH = 16, 24
WORDS = ("pick up the red block", "püt it down")
STEPS, CUT = 8, 4
RLDS, LEROBOT = Path("datasets/made/1.0.0"), Path("datasets/made_lerobot")
BASE = {
    "model": {"base": "base"},
    "grid": {"fit": "gaussian"},
    "lora": {"rank": 2, "dropout": 0.1, "train_whole": ["spatial_embed_tokens"]},
}
TRAIN = {
    "steps": STEPS,
    "batch_size": 2,
    "learning_rate": 0.003,
    "warmup": 0.25,
    "threads": 1,
    "log_every": 1,
    "save_every": CUT,
    "validate_every": CUT,
    "validate_samples": 4,
    "trackers": ["jsonl"],
}
HALF = {
    "output": "half",
    "seed": 3,
    **BASE,
    "data": {
        "datasets": [
            {
                "path": str(RLDS),
                "no_ops": {"tolerance": 1e-3},
                "failed": {"key": "failed", "value": 1},
            }
        ],
        "depth": {"source": "estimate", "cache": "depth"},
        "holdout": 0.25,
        "workers": 0,
        "augment": {},
    },
    "train": TRAIN,
}
ADAPT = {
    **HALF,
    "data": {**HALF["data"], "datasets": [{"path": "any"}], "depth": "estimate", "augment": None},
}
ADAPTATION = (
    *("adapt", str(LEROBOT), "--base", "base", "--out", "adapted", "--recipe", "adapt.yaml"),
    *("--accept-errors", "--export", "--json"),
)
QUICK = (
    Stage("all", "say what there is", ("--help",)),
    Stage("grids", "say what there is for grids", ("grids", "--help"), ("all",)),
)
UNREAD = {".png", ".html"}
"""Pictures and pages: that they exist is all that is looked at, so they are packed empty."""


class CutError(Exception):
    """The run was ended from outside."""


def main(folder: Path, archive: Path) -> None:
    """Make everything and pack it."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    write_base(Path("base"))
    write_datasets()
    expected = {"versions": {name: version(name) for name in ("torch", "transformers", "peft")}}
    expected["rlds"] = facts_of(RLDS)
    expected["lerobot"] = facts_of(LEROBOT)
    Path("half.yaml").write_text(yaml.safe_dump(HALF, sort_keys=False))
    Path("adapt.yaml").write_text(yaml.safe_dump(ADAPT, sort_keys=False))
    expected["half"] = leave_half_a_run()
    expected["adaptation"] = ADAPTATION
    call(*ADAPTATION)
    shutil.rmtree("adapted/train/checkpoints")
    StageRunner(Path("quickstart")).run(QUICK)
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    pack(archive)


def write_base(folder: Path) -> None:
    """A small base with a ZoeDepth, whose weights take few values so that they pack well."""
    processor = small_processor(
        WORDS, ActionGrid.uniform(bins=BINS), image_size=32, patch_size=8, action_chunk_size=2
    )
    narrow = {**SIZES, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    text = {"num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8}
    model = small_model(
        processor,
        patch_size=8,
        vision={**narrow, "num_hidden_layers": 1},
        text={**narrow, **text, "num_hidden_layers": 1, "initializer_range": 0.3},
        depth_source="zoe",
        vision_zoe_config=depth_zoo.zoedepth().config.to_dict(),
    )
    with torch.no_grad():
        for parameter in model.vision_zoe_model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
            parameter.copy_((4 * parameter).round() / 4)
    model.to(torch.float32).save_pretrained(folder)
    processor.save_pretrained(folder)


def write_datasets() -> None:
    """A robot's demonstrations, as RLDS with its index and as LeRobot."""
    rng = np.random.default_rng(11)
    card = {
        **plain_rlds.CARD,
        "intrinsics": {
            "primary": {"fx": 20, "fy": 21, "cx": 12, "cy": 8, "width": WIDTH, "height": HEIGHT}
        },
        "extrinsics": {"primary": "observation.extrinsics"},
    }
    low = np.array([-0.02, -0.03, -0.01, -0.1, -0.2, -0.3, 0])
    high = np.array([0.03, 0.02, 0.05, 0.2, 0.1, 0.4, 1])
    columns = {
        "observation.image": (
            {
                "pythonClassName": "tensorflow_datasets.features.Image",
                "image": {
                    "shape": {"dimensions": [str(HEIGHT), str(WIDTH), "3"]},
                    "dtype": "uint8",
                    "encodingFormat": "png",
                },
            },
            lambda episode, step: [picture(rng)],
        ),
        "observation.extrinsics": (
            plain_rlds.tensor(4, 4),
            lambda episode, step: [float(v) for v in np.eye(4).ravel()],
        ),
        "action": (plain_rlds.tensor(7), lambda episode, step: action(rng, low, high, step)),
        "failed": (plain_rlds.tensor(), lambda episode, step: [float(episode == 1)]),
        "language_instruction": (
            plain_rlds.TEXT,
            lambda episode, step: [WORDS[episode % 2].encode()],
        ),
    }
    folder = plain_rlds.write(
        Path("datasets"),
        {
            key: plain_rlds.Spec(
                node,
                [
                    [value for step in range(length) for value in make(episode, step)]
                    for episode, length in enumerate(LENGTHS)
                ],
            )
            for key, (node, make) in columns.items()
        },
        episodes=len(LENGTHS),
        card=card,
    )
    whole_seconds(folder)
    dataset = open_dataset(folder, card=None)
    file = folder / "card.yaml"
    to_lerobot(dataset.frame_index, load_cards(file)["made"], file, LEROBOT)
    whole_seconds(LEROBOT)


def picture(rng: np.random.Generator) -> bytes:
    """A PNG of a few soft spots."""
    coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR).save(file, "png")
    return file.getvalue()


def action(rng: np.random.Generator, low: np.ndarray, high: np.ndarray, step: int) -> list[float]:
    """Seven numbers; the third step of every episode keeps still."""
    values = rng.uniform(low, high)
    values[6] = step % 2
    return [float(v) for v in (values * [*[0.0] * 6, 1.0] if step == 2 else values)]


def whole_seconds(folder: Path) -> None:
    """Times of writing that an archive keeps to the last digit."""
    for file in folder.rglob("*"):
        if file.is_file():
            os.utime(file, (file.stat().st_mtime_ns // 10**9,) * 2)


def facts_of(folder: Path) -> dict[str, object]:
    """What opening a dataset says of it, to be compared with later."""
    dataset = open_dataset(folder, card=None, horizon=2)
    sample = dataset[9]
    statistics = dataset_statistics(dataset)
    MixtureActions([dataset], {dataset.name: statistics}, [1.0]).gaussians()
    return {
        "frames": len(dataset),
        "episodes": dataset.store.episode_lengths.tolist(),
        "content": dataset.store.content_hash,
        "picture": int(sample.images["primary"].astype(int).sum()),
        "actions": sample.actions.tolist(),
        "instruction": sample.instruction,
        "mean": statistics.mean.tolist(),
    }


def leave_half_a_run() -> dict[str, object]:
    """A run cut after its checkpoint; what a copy of it reaches is kept beside it."""

    def cut(done: int, values: dict[str, float]) -> None:
        if done == CUT + 1:
            raise CutError

    recipe = load_recipe(Path("half.yaml"))
    with contextlib.suppress(CutError):
        train(build(recipe), on_log=cut)
    shutil.copytree("half", "whole")
    train(build(load_recipe(Path("half.yaml"), ["output=whole"])))
    rows = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    end = Path("whole/checkpoints") / f"step-{STEPS:08d}"
    Path("reached.safetensors").write_bytes((end / "trainable.safetensors").read_bytes())
    shutil.rmtree("whole")
    names = ("loss", "validation/loss")
    return {name: {row["step"]: row[name] for row in rows if name in row} for name in names}


def call(*arguments: str) -> None:
    """A command of the toolkit."""
    subprocess.run([sys.executable, "-m", "spatialvla_ft_cli", *arguments], check=True)


def pack(archive: Path) -> None:
    """One compressed file of the working folder, without its owner."""

    for file in Path().rglob("*"):
        if file.suffix in UNREAD:
            file.write_bytes(b"")

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w:xz", format=tarfile.PAX_FORMAT, preset=9) as file:
        for place in sorted(Path().iterdir()):
            file.add(place, filter=anonymous)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).resolve())
