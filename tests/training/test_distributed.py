"""Two processes against one: the same global batches, the same losses, the same result."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from spatialvla_ft.training.build import build
from spatialvla_ft.training.distributed import join
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import RecipeError

CPU = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PROBE = str(Path(__file__).with_name("train_and_probe.py"))
EXACT = {"full": ("train.clip_norm=0.5",), "lora": ("train.clip_norm=0.5", "lora.dropout=0")}
LOSS_TOLERANCE = 2e-5
"""Absolute, on losses of about 9 nats: float32 sums in another order."""


def launch(*command):
    """Two processes under torchrun; what they printed."""
    done = subprocess.run(
        [*LAUNCH, *command], env={**os.environ, **CPU}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def launch_by_environment(*command):
    """Two processes that know of each other by variables alone, as recipes/launch/slurm.sbatch."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **CPU, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, told, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return "".join(out for out, _ in told)


def yaml_of(recipe):
    return str(recipe.output.parent / f"{recipe.output.name}.yaml")


def history(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


def same_course(folder, other):
    """Losses and gradient norms, step by step, and the final weights."""
    one, two = history(folder), history(other)
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=LOSS_TOLERANCE)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-4)
    files = [next((f / "final").glob("*model.safetensors")) for f in (folder, other)]
    first, second = map(load_file, files)
    assert set(first) == set(second)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=2e-4, msg=name)


@pytest.fixture
def alone(recipe_of):
    """kind -> folder of a run of one process with batches of 4."""

    def run(kind):
        recipe = recipe_of(kind, "one", [*EXACT[kind], "train.batch_size=4"])
        train(build(recipe))
        return recipe.output

    return run


@pytest.mark.parametrize(
    ("kind", "start"), [("full", launch_by_environment), ("lora", launch)], ids=["full", "lora"]
)
def test_data_parallel_trains_as_one_process(recipe_of, alone, kind, start):
    """Batch 2 on each of two ranks is batch 4 on one; started as a user would."""
    recipe = recipe_of(kind, "two")
    command = ("-m", "spatialvla_ft_cli", "train", yaml_of(recipe), "--json", *EXACT[kind])
    told = start(*command)
    same_course(alone(kind), recipe.output)
    (line,) = [line for line in told.splitlines() if line.startswith("{")]
    assert json.loads(line)["steps"] == 6  # one of the ranks speaks


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_sharded_training_is_that_of_one_process(recipe_of, alone, kind, tmp_path):
    """FSDP2: parameters are DTensors, half of each on a rank; a power cut at step 5 in between.

    The run of LoRA goes on in one process, that of full training in two sharded ones again.
    """
    recipe = recipe_of(kind, "two")
    overrides = (*EXACT[kind], "train.sharding=fsdp2")
    launch(PROBE, yaml_of(recipe), str(tmp_path / "held"), "5", *overrides)
    ranks = [json.loads((tmp_path / f"held.{rank}").read_text()) for rank in (0, 1)]
    for rank in ranks:
        assert rank["world"] == 2
        assert rank["kinds"] == ["DTensor"]
        assert rank["local"] == pytest.approx(rank["numbers"] / 2, rel=0.02)
    assert sum(rank["local"] for rank in ranks) == ranks[0]["numbers"]
    assert len(history(recipe.output)) == 5
    assert not (recipe.output / "final").exists()
    if kind == "lora":
        again = recipe_of(kind, "two", [*EXACT[kind], "train.batch_size=4"])
        train(build(again))
    else:
        launch(PROBE, yaml_of(recipe), str(tmp_path / "held"), "0", *overrides)
        assert [(tmp_path / f"held.{rank}.end").read_text() for rank in (0, 1)] == ["true"] * 2
    same_course(alone(kind), recipe.output)


@pytest.mark.slow
def test_zero_trains_as_one_process(recipe_of, alone, tmp_path, monkeypatch):
    """DeepSpeed's ZeRO-2 on two CPU processes, cut at step 5; it goes on without DeepSpeed.

    DeepSpeed compiles an operation the first time, which takes minutes.
    """
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setitem(CPU, "ACCELERATE_USE_CPU", "false")  # DeepSpeed says itself where it runs
    recipe = recipe_of("full", "two")
    overrides = (*EXACT["full"], "train.sharding=zero2")
    launch(PROBE, yaml_of(recipe), str(tmp_path / "held"), "3", *overrides)
    launch(PROBE, yaml_of(recipe), str(tmp_path / "held"), "5", *overrides)
    assert len(history(recipe.output)) == 5
    train(build(recipe_of("full", "two", [*EXACT["full"], "train.batch_size=4"])))
    same_course(alone("full"), recipe.output)


@pytest.mark.parametrize("file", ["one_node.yaml", "two_nodes.yaml"])
def test_the_launcher_reads_the_configurations(file):
    """By Accelerate's own reader, which refuses keys that it does not know."""
    path = Path(__file__).parents[2] / "recipes" / "launch" / file
    config = load_config_from_file(str(path))
    assert config.distributed_type == "MULTI_GPU"
    assert config.num_processes == 8 * config.num_machines


@pytest.mark.parametrize(
    ("overrides", "environment", "cure"),
    [
        (["train.sharding=fsdp2"], {}, "torchrun --nproc-per-node"),
        (["train.sharding=fsdp2"], {"ACCELERATE_USE_FSDP": "true"}, "MULTI_GPU"),
        (["train.deepspeed={zero_allow_untested_optimizer: true}"], {}, "set zero1 or zero2"),
    ],
)
def test_recipe_and_launcher_must_fit(recipe_of, monkeypatch, overrides, environment, cure):
    monkeypatch.setattr("accelerate.PartialState._shared_state", {})
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=cure):
        join(recipe_of("full", overrides=overrides).train)
