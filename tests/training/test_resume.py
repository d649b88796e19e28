"""What a continued run may change, what it may not, and what leaves no trace."""

from __future__ import annotations

import json
import logging
import random

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.training import checkpoints, output
from spatialvla_ft.training.build import build
from spatialvla_ft.training.guard import Guard
from spatialvla_ft.training.identity import differences, identity, recipe_identity
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import LossGuard

SHORT = ["train.steps=3", "train.save_every=1"]


class CutError(Exception):
    pass


def losses(recipe):
    lines = (recipe.output / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def cut_after(step):
    def on_log(done, values):
        if done == step + 1:
            raise CutError

    return on_log


def test_draws_from_the_global_generators_change_nothing(recipe_of):
    """Dropout is on; whoever draws between two steps, the next one is seeded anew."""
    plain, drawn = (recipe_of("lora", name, SHORT) for name in ("plain", "drawn"))
    train(build(plain))

    def draw(done, values):
        torch.rand(done)
        np.random.rand(done)
        random.random()

    torch.manual_seed(99)
    train(build(drawn), on_log=draw)
    assert losses(drawn) == losses(plain)


def test_another_split_of_the_global_batch(recipe_of):
    """4 at once, then 2 x 2: the same samples in every step, so the same losses up to rounding."""
    whole = recipe_of("full", "whole", [*SHORT, "train.batch_size=4"])
    cut = recipe_of("full", "cut", [*SHORT, "train.batch_size=4"])
    train(build(whole))
    with pytest.raises(CutError):
        train(build(cut), on_log=cut_after(1))
    train(build(recipe_of("full", "cut", [*SHORT, "train.gradient_accumulation=2"])))
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-4)
    assert losses(cut)[0] == losses(whole)[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.batch_size=3", "global batch: 2 in the checkpoint, 3 now"),
        ("train.steps=9", "train.steps: 3 in the checkpoint, 9 now"),
        ("seed=4", "seed: 3 in the checkpoint, 4 now"),
        ("data.holdout=0.5", "frames.demo/1.0.0: "),
    ],
)
def test_another_run_is_refused_with_both_values(recipe_of, override, words):
    with pytest.raises(CutError):
        train(build(recipe_of("full", overrides=SHORT)), on_log=cut_after(1))
    with pytest.raises(ValueError, match="is of another run") as error:
        train(build(recipe_of("full", overrides=[*SHORT, override])))
    assert words in str(error.value)


def test_statistics_may_differ_in_their_last_bits(recipe_of):
    recipe = recipe_of("full")
    content = identity(build(recipe), 1)
    assert differences(content, json.loads(json.dumps(content))) == []
    (name,) = [n for n in content if n.startswith("statistics.") and n.endswith("action.mean.0")]
    assert differences(content, {**content, name: content[name] * (1 + 1e-12)}) == []
    (line,) = differences(content, {**content, name: content[name] + 0.01})
    assert line.startswith(name)
    assert identity(build(recipe), 2)["global batch"] == 2 * content["global batch"]
    assert set(recipe_identity(recipe)) < set(content)


def test_a_damaged_checkpoint_is_announced_and_the_one_before_taken(recipe_of, caplog):
    whole, cut = recipe_of("full", "whole", SHORT), recipe_of("full", "cut", SHORT)
    train(build(whole))
    with pytest.raises(CutError):
        train(build(cut), on_log=cut_after(2))
    file = cut.output / "checkpoints" / "step-00000002" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        train(build(cut))
    assert f"DAMAGED CHECKPOINT: {file} has" in caplog.text
    assert "going back to step 1" in caplog.text
    assert '"resume/damaged_checkpoints": 1' in (cut.output / "metrics.jsonl").read_text()
    assert losses(cut) == losses(whole)
    assert (cut.output / "checkpoints" / "step-00000002.damaged").is_dir()
    ends = [checkpoints.newest(recipe.output / "checkpoints")[0] for recipe in (whole, cut)]
    one, other = (checkpoints.load(end)[1]["memory"] for end in ends)
    assert one == other
    assert len(one["guard"]["history"]) == 3


def test_all_damaged_is_no_reason_to_start_over(recipe_of):
    recipe = recipe_of("full", overrides=SHORT)
    with pytest.raises(CutError):
        train(build(recipe), on_log=cut_after(1))
    (recipe.output / "checkpoints" / "step-00000001" / "state.json").unlink()
    with pytest.raises(ValueError, match=r"none of .* is sound: .*state.json is missing"):
        train(build(recipe))


def test_the_best_is_kept_and_may_be_the_result(recipe_of, monkeypatch):
    """Validation is made to be best at step 1; asking for the best later rewrites the result."""
    from spatialvla_ft.training import loop

    class Validated(loop.Validation):
        def __call__(self, model, step):
            return {**super().__call__(model, step), "validation/loss": float(step)}

    monkeypatch.setattr(loop, "Validation", Validated)
    settings = [
        "train.steps=3",
        "train.save_every=2",
        "train.validate_every=1",
        "train.keep_last=1",
    ]
    recipe = recipe_of("full", overrides=settings)
    train(build(recipe))
    assert [p.name[-1] for p in checkpoints.all_checkpoints(recipe.output / "checkpoints")] == [
        "1",
        "3",
    ]
    trained = recipe.output / "final" / output.TRAINED
    assert json.loads(trained.read_text())["step"] == 3
    run = build(recipe_of("full", overrides=[*settings, "train.result=best"]))
    train(run)
    told = json.loads(trained.read_text())
    assert (told["step"], told["validation/loss"]) == (1, 1.0)
    state, _ = checkpoints.load(recipe.output / "checkpoints" / "step-00000001")
    own = dict(run.model.named_parameters())
    assert all(torch.equal(own[name], tensor) for name, tensor in state.trainable.items())


def test_a_finished_run_says_so_and_fresh_moves_it_aside(recipe_of):
    recipe = recipe_of("full", overrides=["train.steps=1"])
    file = str(recipe.output.parent / "out.yaml")
    command = ["train", file, "train.steps=1"]
    first = CliRunner().invoke(app, [*command, "--json"])
    assert first.exit_code == 0, first.output
    before = (recipe.output / "metrics.jsonl").read_bytes()
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert "is finished: all 1 steps were trained" in again.output
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert told["finished_before"]
    assert told["loss"] == json.loads(first.stdout)["loss"]
    assert (recipe.output / "metrics.jsonl").read_bytes() == before
    longer = CliRunner().invoke(app, ["train", file, "train.steps=2"])
    assert longer.exit_code == 1
    assert "cannot be made longer or shorter half way" in longer.output
    fresh = CliRunner().invoke(app, [*command, "--fresh", "--json"])
    assert fresh.exit_code == 0, fresh.output
    aside = recipe.output.with_name("out.old-1")
    assert (aside / "metrics.jsonl").read_bytes() == before
    assert losses(recipe) == [told["loss"]]


def test_the_guard_remembers():
    """Cut in the middle of a rise, it stops at the same step."""
    rule = LossGuard()
    course = [1.0 + 0.01 * (i % 7) for i in range(60)] + [50.0] * (rule.steps + 1)
    whole = Guard(rule)
    stop = next(i for i, loss in enumerate(course) if whole.judge([[loss]], 1.0))
    for at in (10, 55, 61):
        first, second = Guard(rule), Guard(rule)
        for loss in course[:at]:
            first.judge([[loss]], 1.0)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        rest = [second.judge([[loss]], 1.0) for loss in course[at : stop + 1]]
        assert [bool(fault) for fault in rest] == [False] * (stop - at) + [True]
