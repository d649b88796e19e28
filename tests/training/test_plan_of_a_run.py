"""The plan of a recipe against a run of the training loop itself, checkpoints and all."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState

from spatialvla_ft.memory.plan import allocator_peak, plan_memory
from spatialvla_ft.memory.workloads import config_of
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train

OVERRIDES = ("train.steps=2", "train.batch_size=16", "train.save_every=2", "data.holdout=0")


@pytest.fixture(autouse=True)
def own_accelerator():
    """Accelerate keeps the precision of a process' first run; a second one needs a fresh start."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_needs_what_was_planned(recipe_of, precision):
    recipe = recipe_of("full", overrides=[*OVERRIDES, f"train.precision={precision}"])
    run = build(recipe)
    texts = [text for dataset in run.datasets for text in dataset.instructions()]
    longest = max(len(run.processor.prompt_ids(text)) for text in texts)
    words = longest - run.processor.num_observation_tokens
    plan = plan_memory(recipe, config_of(recipe), prompt_tokens=words)
    held = sum(p.nbytes for p in (*run.model.parameters(), *run.model.buffers()))
    measured = held + allocator_peak(lambda: train(run))
    assert plan.peak == pytest.approx(measured, rel=0.1)
