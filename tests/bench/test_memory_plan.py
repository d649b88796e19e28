"""Planned memory against what torch's allocator says of the same steps, really taken."""

from __future__ import annotations

import functools
import json

import pytest
import torch
import yaml
from tiny_world import BINS
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.memory.advice import cheaper_recipes, first_that_fits
from spatialvla_ft.memory.plan import MemoryPlan, measure_memory, plan_memory
from spatialvla_ft.memory.sizes import bench_config
from spatialvla_ft.memory.workloads import config_of, make_inputs
from spatialvla_ft.training.recipe import Recipe, RecipeError
from spatialvla_ft.training.trainable import trainable_part

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def content(**train):
    return {
        "output": "unused",
        "model": {
            "new": {
                "image_size": 64,
                "patch_size": 8,
                "action_chunk_size": 2,
                "bins": list(BINS),
                "vision": VISION,
                "text": TEXT,
                "config": {"depth_source": "sensor"},
            }
        },
        "data": {"datasets": [{"path": "unused"}], "depth": "sensor"},
        "train": {"steps": 2, "batch_size": 8, "learning_rate": 1e-3, **train},
    }


@functools.cache
def planned(precision="float32", accumulation=1, work="train", **train):
    recipe = Recipe.model_validate(
        content(precision=precision, gradient_accumulation=accumulation, **train)
    )
    return recipe, plan_memory(recipe, config_of(recipe), work=work)


CASES = {
    "full": {},
    "bf16, accumulated": {"precision": "bf16", "accumulation": 3},
    "recomputed": {"activation_checkpointing": True},
    "predict": {"work": "predict"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_within_a_tenth_of_the_truth(case):
    recipe, plan = planned(**CASES[case])
    measured = measure_memory(recipe, config_of(recipe), work=CASES[case].get("work", "train"))
    assert plan.peak == pytest.approx(measured.peak, rel=0.1)


def test_an_adapter_s_plan_is_within_a_tenth_of_the_truth(golden_checkpoint):
    """From a checkpoint's config.json alone; its ZoeDepth is left out, for speed."""
    fields = content()
    fields["model"] = {"base": str(golden_checkpoint), "overrides": {"depth_source": "sensor"}}
    fields["lora"] = {"rank": 8, "train_whole": ["spatial_embed_tokens"]}
    recipe = Recipe.model_validate(fields)
    config = config_of(recipe)
    plan = plan_memory(recipe, config)
    assert plan.peak == pytest.approx(measure_memory(recipe, config).peak, rel=0.1)
    assert plan.trainable < 0.3 * plan.total


def test_parts_are_what_adamw_needs():
    """Accumulation: gradients are alive at the peak, and states are two numbers per weight."""
    _, plan = planned(precision="bf16", accumulation=3)
    parts = plan.at_peak
    assert plan.trainable == plan.total
    assert parts["parameters"] >= plan.total
    assert parts["gradients"] == pytest.approx(plan.total, rel=0.02)
    assert parts["optimiser"] == pytest.approx(2 * plan.total, rel=0.01)
    assert sum(parts.values()) == plan.peak


def test_a_larger_batch_adds_activations_only():
    _, small = planned()
    _, large = planned(batch_size=16)
    assert large.at_peak["parameters"] == small.at_peak["parameters"]
    assert large.at_peak["activations"] == pytest.approx(2 * small.at_peak["activations"], rel=0.15)


def test_recomputing_needs_less():
    assert planned(activation_checkpointing=True)[1].peak < 0.8 * planned()[1].peak


def test_half_precision_halves_activations_and_adds_copies_of_weights():
    _, full = planned(batch_size=16)
    _, half = planned(batch_size=16, precision="bf16")
    assert half.at_peak["parameters"] == full.at_peak["parameters"]
    saved = full.at_peak["activations"] - half.at_peak["activations"]
    assert 0.1 < saved / full.at_peak["activations"] < 0.5


def test_the_cache_is_counted():
    """2 (keys, values) x layers x batch x heads x tokens x width x 4 bytes; 128 tokens of room."""
    _, plan = planned(work="predict")
    assert plan.at_peak["cache"] == 2 * 2 * 8 * 2 * 128 * 16 * 4


def test_the_released_size_is_planned_without_its_weights():
    """4 B parameters; only the layout is checked here, since a whole plan takes a minute."""
    fields = content()
    fields["model"] = {"base": "somewhere/else"}
    fields["lora"] = {"rank": 32}
    config = config_of(Recipe.model_validate(fields), "4b")
    assert config.text_config.vocab_size == 265347
    assert config.to_dict() == bench_config("4b").to_dict()
    with pytest.raises(RecipeError, match="--sizes released"):
        config_of(Recipe.model_validate(fields))


PLAN = MemoryPlan(
    {"parameters": 1000, "gradients": 300, "optimiser": 601, "activations": 50}, 300, 1000, 70
)


def test_shards_divide_what_is_kept():
    sharded = PLAN.on_gpus(4, "fsdp").at_peak
    assert sharded == {
        "parameters": 250,
        "gradients": 75,
        "optimiser": 151,
        "activations": 50,
        "communication": 140,
    }
    assert PLAN.on_gpus(4, "none").at_peak["communication"] == 300
    assert PLAN.on_gpus(1, "fsdp") == PLAN
    with pytest.raises(ValueError, match="'none' or 'fsdp'"):
        PLAN.on_gpus(2, "zero")


def test_a_tenth_is_left_free():
    assert PLAN.peak == 1951
    assert PLAN.fits(2168)
    assert not PLAN.fits(2167)


def test_advice_keeps_the_samples_of_a_step():
    recipe = Recipe.model_validate(content(gradient_accumulation=2))
    seen = list(cheaper_recipes(recipe))
    assert seen[0][0] == ["train.activation_checkpointing=true"]
    assert seen[1][0][1:] == ["train.batch_size=4", "train.gradient_accumulation=4"]
    for overrides, cheaper in seen:
        train = cheaper.train
        assert train.batch_size * train.gradient_accumulation == 16
        assert f"train.batch_size={train.batch_size}" in overrides or train.batch_size == 8
    assert seen[-1][1].train.precision == "bf16"
    assert recipe.train.batch_size == 8, "the recipe itself stays"


def test_advice_is_the_first_change_that_fits():
    recipe, plan = planned()
    _, recomputed = planned(activation_checkpointing=True)
    memory = int(recomputed.peak / 0.9) + 1
    assert not plan.fits(memory)
    found = first_that_fits(recipe, config_of(recipe), memory, prompt_tokens=24)
    assert found == (["train.activation_checkpointing=true"], recomputed)
    small = Recipe.model_validate(content(batch_size=1, precision="bf16"))
    assert first_that_fits(small, config_of(small), plan.total, prompt_tokens=24) is None


def test_recomputed_gradients_are_the_same():
    results = []
    for checkpointed in (False, True):
        recipe = Recipe.model_validate(content(activation_checkpointing=checkpointed))
        torch.manual_seed(0)
        from spatialvla_ft import SpatialVLAForConditionalGeneration

        config = config_of(recipe)
        model = trainable_part(recipe, SpatialVLAForConditionalGeneration(config)).train()
        torch.manual_seed(1)
        inputs = make_inputs(config, 2, 5, depth=True, actions=True)
        loss = model(**inputs, logits_to_keep="labels").loss
        loss.backward()
        assert model.is_gradient_checkpointing == checkpointed
        results.append((loss.detach(), [p.grad for p in model.parameters()]))
    (loss, gradients), (again, recomputed) = results
    torch.testing.assert_close(again, loss, rtol=0, atol=0)
    assert sum(g is not None for g in gradients) > 30
    for one, other in zip(gradients, recomputed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-8)


def test_the_command_reports_and_refuses(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content()))
    plan = ["plan-memory", str(file), "--json"]
    enough = CliRunner().invoke(app, [*plan, "--gpu-memory", "1GiB"])
    assert enough.exit_code == 0, enough.output
    report = json.loads(enough.stdout)
    assert report["fits"]
    assert report["peak_bytes"] == sum(report["parts"].values()) == planned()[1].peak
    little = CliRunner().invoke(app, [*plan, "--gpu-memory", "1MiB", "--work", "predict"])
    assert little.exit_code == 1
    assert not json.loads(little.stdout)["fits"]
    unclear = CliRunner().invoke(app, [*plan, "--gpu-memory", "80"])
    assert unclear.exit_code == 1
    assert "80GiB" in unclear.stderr
