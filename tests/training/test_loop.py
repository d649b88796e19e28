"""Training: the schedule, resuming without a trace, and stopping at a loss that is no number."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from released_keys import check_released
from safetensors.torch import load_file

from spatialvla_ft.models.lora import is_adapter
from spatialvla_ft.policy.load import load_policy_model
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train


def history(recipe):
    lines = (recipe.output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(recipe):
    return {line["step"]: line["loss"] for line in history(recipe) if "loss" in line}


def weights(recipe):
    name = "adapter_model" if recipe.lora else "model"
    return load_file(recipe.output / "final" / f"{name}.safetensors")


class PowerCutError(Exception):
    pass


def until(step):
    def on_log(completed, values):
        if completed == step and "loss" in values:
            raise PowerCutError

    return on_log


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_interrupted_run_ends_as_the_unbroken_one(recipe_of, kind):
    """The cut falls at step 5, after the checkpoint of step 4; workers differ as well."""
    whole, cut = recipe_of(kind, "whole"), recipe_of(kind, "cut", ["data.workers=1"])
    train(build(whole))
    with pytest.raises(PowerCutError):
        train(build(cut), on_log=until(5))
    assert list(losses(cut)) == [1, 2, 3, 4, 5]
    assert not (cut.output / "final").exists()
    steps = []
    again = recipe_of(kind, "cut")
    train(build(again), on_log=lambda step, values: steps.append((step, bool(values))))
    assert steps[0] == (4, False)  # that it goes on, before any metrics
    assert {step for step, known in steps if known} == {5, 6}
    assert losses(again) == losses(whole)
    assert len(set(losses(whole).values())) == 6
    assert len(history(again)) == len(history(whole))
    one, other = weights(whole), weights(again)
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_result_is_what_was_trained(recipe_of, kind):
    recipe = recipe_of(kind, overrides=["train.steps=3", "train.warmup=0"])
    run = build(recipe)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    result = train(run)
    moved = {n for n, p in run.model.named_parameters() if not torch.equal(p, before[n])}
    trainable = {n for n, p in run.model.named_parameters() if p.requires_grad}
    # Rows of the vocabulary's tail apart, everything trainable moves and nothing else does.
    assert moved == trainable
    assert is_adapter(result) == (kind == "lora")
    if kind == "full":
        check_released(result, without=("vision_tower.vision_model.encoder.",))
    model, processor = load_policy_model(result)
    batch = run.collate([run.datasets[0][0]])
    with torch.no_grad():
        trained = run.model.eval()(**batch).logits
        torch.testing.assert_close(model(**batch).logits, trained, rtol=0, atol=1e-5)
    assert "demo/1.0.0" in processor.statistics
    assert "demo/1.0.0" in processor.intrinsic_config


@pytest.mark.parametrize("override", ["prefix_mask=causal", "use_vision_zoe=false"])
def test_an_adapter_remembers_how_its_base_was_loaded(recipe_of, override):
    recipe = recipe_of("lora", overrides=["train.steps=2", f"model.overrides.{override}"])
    run = build(recipe)
    model, _ = load_policy_model(train(run))
    name = override.split("=")[0]
    assert getattr(model.config, name) == recipe.model.overrides[name]
    batch = run.collate([run.datasets[0][0]])
    with torch.no_grad():
        trained = run.model.eval()(**batch).logits
        torch.testing.assert_close(model(**batch).logits, trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_schedule_in_closed_form(recipe_of, schedule):
    recipe = recipe_of("full", overrides=["train.steps=8", f"train.schedule={schedule}"])
    train(build(recipe))
    got = [line["learning_rate"] for line in history(recipe) if "loss" in line]
    warm = round(0.34 * 8)
    wanted = []
    for step in range(1, 9):
        if step < warm:
            wanted.append(0.01 * step / warm)
            continue
        share = (step - warm) / (8 - warm)
        falling = {
            "cosine": 0.5 * (1 + math.cos(math.pi * share)),
            "linear": 1 - share,
            "constant": 1.0,
        }
        wanted.append(0.01 * falling[schedule])
    assert got == pytest.approx(wanted, abs=1e-9)


def test_two_half_batches_make_one(recipe_of):
    """Gradient accumulation: the same samples, the same weights up to rounding."""
    one = recipe_of("full", "one", ["train.steps=2", "train.warmup=0", "train.batch_size=4"])
    two = recipe_of(
        "full", "two", ["train.steps=2", "train.warmup=0", "train.gradient_accumulation=2"]
    )
    for recipe in (one, two):
        train(build(recipe))
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)


def test_validation_is_of_held_out_episodes(recipe_of):
    recipe = recipe_of("full", overrides=["train.steps=2", "train.validate_every=1"])
    run = build(recipe)
    (held,) = run.heldout
    assert not set(held.episodes) & set(run.datasets[0].episodes)
    train(run)
    found = [line for line in history(recipe) if "validation/loss" in line]
    assert [line["step"] for line in found] == [1, 2]
    assert {"validation/accuracy/gripper", "validation/accuracy/rotation"} <= set(found[0])


def test_a_loss_that_is_no_number_names_the_samples(recipe_of):
    recipe = recipe_of("full")
    run = build(recipe)
    with torch.no_grad():
        run.model.multi_modal_projector.linear.bias.fill_(float("nan"))
    with pytest.raises(
        FloatingPointError,
        match=r"became nan .*at step 1, which was not taken.*demo/1.0.0 episode \d",
    ):
        train(run)
    assert not (recipe.output / "final").exists()


def test_another_recipe_does_not_resume(recipe_of):
    train(build(recipe_of("full")), on_log=None)
    changed = recipe_of("full", overrides=["train.learning_rate=0.02"])
    with pytest.raises(ValueError, match=r"train.learning_rate: 0.01 in the checkpoint, 0.02 now"):
        train(build(changed))


def test_training_never_imports_tensorflow(recipe_of):
    """All trackers on, in a process of its own; the dataset is read without TensorFlow too.

    The process imported transformers before us, and its Auto classes load the result.
    """
    recipe = recipe_of("full", overrides=["train.steps=1", "train.trackers=[jsonl, tensorboard]"])
    file = recipe.output.parent / "out.yaml"
    code = f"""
import sys
from transformers import AutoConfig, AutoModel, AutoProcessor
from typer.testing import CliRunner
from spatialvla_ft.cli.main import app
arguments = ["train", {str(file)!r}, "train.steps=1", "train.trackers=[jsonl, tensorboard]"]
done = CliRunner().invoke(app, [*arguments, "--json"])
assert done.exit_code == 0, done.output
for auto in (AutoConfig, AutoModel, AutoProcessor):
    found = auto.from_pretrained({str(recipe.output / "final")!r}, trust_remote_code=False)
    assert type(found).__name__.startswith("SpatialVLA")
print(sorted(m for m in sys.modules if m.split(".")[0] in ("tensorflow", "tensorboard")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "[]"
    assert (recipe.output / "final" / "model.safetensors").is_file()
    assert list((recipe.output / "tensorboard").iterdir())
