"""One recorded dataset, a base checkpoint and recipes for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_world import BINS, SIZES, tiny_model, tiny_processor

from spatialvla_ft.training.recipe import load_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "depth"))
import depth_zoo

WRITERS = Path(__file__).parents[1] / "data"
TEXT = {
    **SIZES,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "initializer_range": 0.2,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-identical numbers need a fixed number of threads; recipes would set it for good."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory):
    """The robot dataset of tests/data, written by tfds in a process of its own."""
    root = tmp_path_factory.mktemp("demo")
    code = f"import tfds_write; tfds_write.write('demo', {str(root)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=WRITERS,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return root / "demo" / "1.0.0"


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    processor = tiny_processor()
    tiny_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def seeing_base(tmp_path_factory):
    """A base with a ZoeDepth whose depth is another one in every pixel."""
    folder = tmp_path_factory.mktemp("seeing")
    processor = tiny_processor()
    zoe = depth_zoo.zoedepth().config.to_dict()
    model = tiny_model(processor, depth_source="zoe", vision_zoe_config=zoe)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.vision_zoe_model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_of(demo_data, base, tmp_path):
    """kind ("full" or "lora"), output, overrides -> a checked recipe of six steps."""

    def make(kind, output="out", overrides=()):
        content = {
            "output": str(tmp_path / output),
            "seed": 3,
            "data": {
                "datasets": [{"path": str(demo_data)}],
                "depth": "sensor",
                "holdout": 0.2,
                "workers": 0,
            },
            "train": {
                "steps": 6,
                "batch_size": 2,
                "learning_rate": 0.01,
                "warmup": 0.34,
                "threads": 1,
                "log_every": 1,
                "save_every": 2,
                "validate_every": 100,
                "validate_samples": 4,
                "trackers": ["jsonl"],
            },
        }
        if kind == "full":
            content["model"] = {
                "new": {
                    "image_size": 32,
                    "patch_size": 8,
                    "action_chunk_size": 2,
                    "bins": list(BINS),
                    "vision": {**SIZES, "num_hidden_layers": 0},
                    "text": TEXT,
                    "config": {"depth_source": "sensor", "tie_action_head": True},
                }
            }
            content["train"]["freeze"] = ["language_model.lm_head"]
        else:
            content["model"] = {"base": str(base)}
            content["grid"] = {"fit": "gaussian"}
            content["lora"] = {
                "rank": 4,
                "dropout": 0.1,
                "train_whole": ["spatial_embed_tokens"],
            }
        file = tmp_path / f"{output}.yaml"
        file.write_text(yaml.safe_dump(content))
        return load_recipe(file, overrides)

    return make
