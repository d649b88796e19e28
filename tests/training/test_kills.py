"""Runs that are killed, stopped or out of disk space end as the unbroken one, bit by bit."""

from __future__ import annotations

import errno
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from crash_driver import parts

from spatialvla_ft import files as durable
from spatialvla_ft.training import checkpoints

SETTINGS = {
    "steps": 4,
    "gradient_accumulation": 2,
    "warmup": 0.25,
    "validate_every": 2,
    "keep_best": 1,
    "keep_last": 1,
}
LEARNT = ("loss", "learning_rate", "grad_norm", "accuracy/", "l1/", "validation/")


class Driver:
    """Runs the command line in forks of a process that has imported everything."""

    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("crash_driver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": ":".join(sys.path),
                "OMP_NUM_THREADS": "1",
                "PYTHONDONTWRITEBYTECODE": "1",  # half a cache file would outlive the test
            },
        )

    def ask(self, **request):
        log = self.folder / "log"
        log.write_text("")
        self.process.stdin.write(json.dumps({"log": str(log), **request}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer.get("status"), answer.get("ticks"), log.read_text()

    def __call__(self, recipe, *arguments, **request):
        """`spatialvla-ft train` on a recipe: exit status, file operations, what it printed."""
        argv = ["train", str(file_of(recipe)), "--json", *arguments]
        return self.ask(argv=argv, watch=str(recipe.output), **request)


def file_of(recipe):
    return recipe.output.parent / f"{recipe.output.name}.yaml"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    made = Driver(tmp_path_factory.mktemp("driver"))
    yield made
    made.process.communicate(timeout=300)


@pytest.fixture
def demanding(recipe_of):
    """A recipe with all that could leave a trace: dropout, augmentation, accumulation, held out."""

    def make(kind, output):
        recipe = recipe_of("lora" if kind == "lora" else "full", output)
        file = file_of(recipe)
        content = yaml.safe_load(file.read_text())
        content["train"] |= SETTINGS
        content["data"]["augment"] = {"crop_area": 0.8, "hue": 0.1}
        if kind == "only":
            content["train"].pop("freeze")
            content["train"]["only"] = ["spatial_embed_tokens", "position_embedding_3d"]
        file.write_text(yaml.safe_dump(content))
        return recipe

    return make


def curve(recipe):
    lines = [json.loads(x) for x in (recipe.output / "metrics.jsonl").read_text().splitlines()]
    of_step = [(x["step"], {k: v for k, v in x.items() if k.startswith(LEARNT)}) for x in lines]
    assert all(values for _, values in of_step)
    return of_step


def trained(recipe):
    """Bytes of what was trained, and the steps that were kept."""
    found = {p.name: p.read_bytes() for p in (recipe.output / "final").glob("*.safetensors")}
    kept = [p.name for p in checkpoints.all_checkpoints(recipe.output / "checkpoints")]
    return found, kept


def same(recipe, whole):
    assert curve(recipe) == curve(whole)
    assert trained(recipe) == trained(whole)
    left = [p.name for p in recipe.output.rglob(".*") if p.name != ".lock"]
    assert left == []


def workers(number):
    return f"data.workers={number}"


@pytest.fixture
def whole(driver, demanding, request):
    """The unbroken run, and its file operations."""
    kind = request.param
    recipe = demanding(kind, "whole")
    driver.ask(warm=str(file_of(recipe)))
    status, ticks, log = driver(recipe)
    assert status == 0, log
    assert len(curve(recipe)) == 6
    return kind, recipe, ticks


@pytest.mark.parametrize("whole", ["full", "lora", "only"], indirect=True)
def test_killed_at_random_operations(driver, demanding, whole):
    """Three kills in one run, the most in the middle of writing; other workers each time."""
    kind, recipe, ticks = whole
    cut, chance = demanding(kind, "cut"), random.Random(kind)
    for attempt in range(3):
        at = chance.randrange(5, len(ticks) // 2)
        status, _, log = driver(cut, workers(attempt % 2), at=at)
        assert status == -signal.SIGKILL, log
    status, _, log = driver(cut, workers(1))
    assert status == 0, log
    same(cut, recipe)


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["full", "lora", "only"], indirect=True)
def test_killed_at_every_operation(driver, demanding, whole):
    kind, recipe, ticks = whole
    for at in range(len(ticks)):
        cut = demanding(kind, f"cut-{at}")
        assert driver(cut, workers(at % 2), at=at)[0] == -signal.SIGKILL
        status, _, log = driver(cut, workers(1 - at % 2))
        assert status == 0, log
        same(cut, recipe)


@pytest.mark.parametrize("whole", ["lora"], indirect=True)
def test_killed_while_the_result_is_written(driver, demanding, whole):
    kind, recipe, _ = whole
    cut = demanding(kind, "cut")
    assert driver(cut, name="trained.json")[0] == -signal.SIGKILL
    assert not (cut.output / "final").exists()
    assert driver(cut)[0] == 0
    same(cut, recipe)


@pytest.mark.parametrize("whole", ["lora"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop(driver, demanding, whole, number):
    """The whole process group gets the signal, as from SLURM, while step 1 writes its metrics."""
    kind, recipe, _ = whole
    cut = demanding(kind, "cut")
    status, _, log = driver(cut, workers(2), name="metrics.jsonl", signal=number)
    assert status == 75, log
    assert f"stopped by {number.name} after step 1 of 4" in log
    assert "Traceback" not in log
    assert [p.name for p in checkpoints.all_checkpoints(cut.output / "checkpoints")] == [
        "step-00000001"
    ]
    status, _, log = driver(cut)
    assert status == 0, log
    same(cut, recipe)


@pytest.mark.parametrize("whole", ["full"], indirect=True)
def test_a_full_disk(driver, demanding, whole):
    """Files cannot grow, then every sort of operation fails once; each time the run goes on."""
    kind, recipe, _ = whole
    cut = demanding(kind, "cut")
    status, _, log = driver(cut, fsize=20_000)
    assert status == 1
    assert "Traceback" not in log
    assert "cannot write the checkpoint of step 2" in log
    assert "There is no checkpoint yet: the same command starts from the beginning" in log
    for name, what, step in (
        (".step-00000004.writing", "checkpoint of step 4", 2),
        ("metrics.jsonl", "metrics", 2),
        ("model.safetensors", "result", 4),
    ):
        status, _, log = driver(cut, name=name, errno=errno.ENOSPC)
        assert (status, "Traceback" in log) == (1, False), log
        assert f"cannot write the {what} to {cut.output}: [Errno 28]" in log
        assert f"The last checkpoint is that of step {step}, {cut.output}/checkpoints/step-0" in log
        assert not (cut.output / "final").exists()
    status, _, log = driver(cut)
    assert status == 0, log
    same(cut, recipe)


def expected_weights():
    """Weights of the toy model after every step, by the rule of AdamW written out in NumPy."""
    model, _, _ = parts()
    values = [model.weight.detach().double().numpy(), model.bias.detach().double().numpy()]
    moments = [[np.zeros_like(v), np.zeros_like(v)] for v in values]
    steps, rate = {}, 0.1
    for step in (1, 2, 3):
        output = values[0].sum(1) + values[1]
        gradients = [np.outer(2 * output, np.ones(3)), 2 * output]
        for value, gradient, moment in zip(values, gradients, moments, strict=True):
            moment[0] = 0.9 * moment[0] + 0.1 * gradient
            moment[1] = 0.999 * moment[1] + 0.001 * gradient**2
            first, second = moment[0] / (1 - 0.9**step), moment[1] / (1 - 0.999**step)
            value -= rate * 0.01 * value + rate * first / (np.sqrt(second) + 1e-8)
        steps[step], rate = values[0].copy(), rate / 2
    return steps


def kept(folder):
    return [checkpoints.step_of(place) for place in checkpoints.all_checkpoints(folder)]


def test_every_operation_may_be_the_last(driver, tmp_path):
    """Whatever file operation a kill falls on, the newest checkpoint is whole and right."""
    _, ticks, _ = driver.ask(watch=str(tmp_path / "whole"))
    assert kept(tmp_path / "whole") == [2, 3]
    expected, seen = expected_weights(), []
    for at in range(len(ticks)):
        folder = tmp_path / str(at)
        assert driver.ask(watch=str(folder), at=at)[0] == -signal.SIGKILL
        place, damaged = checkpoints.newest(folder)
        assert damaged == []
        seen.append(0 if place is None else checkpoints.step_of(place))
        if place is not None:
            state, content = checkpoints.load(place)
            assert content["validation"] == {1: 0.3, 2: 0.1, 3: 0.2}[state.step]
            np.testing.assert_allclose(state.trainable["weight"], expected[state.step], atol=1e-6)
        durable.clean(folder)
        assert list(folder.glob(".*")) == []
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2, 3}


def test_every_operation_may_fail(driver, tmp_path):
    """The earlier checkpoint stays, the message tells of it, and nothing half done is left."""
    _, ticks, _ = driver.ask(watch=str(tmp_path / "whole"))
    failed = 0
    for at in range(len(ticks)):
        folder = tmp_path / str(at)
        status, _, log = driver.ask(watch=str(folder), at=at, errno=errno.ENOSPC)
        place, damaged = checkpoints.newest(folder)
        assert damaged == []
        assert not folder.exists() or list(folder.glob(".*.replaced")) == []
        if status == 0:  # an old checkpoint that could not be deleted is no reason to stop
            assert kept(folder)[-1] == 3
            continue
        failed += 1
        assert f"[Errno {errno.ENOSPC}]" in log
        assert "cannot write the checkpoint of step" in log
        assert ("There is no checkpoint yet" if place is None else f"{place}: the same") in log
    assert failed > len(ticks) // 2
