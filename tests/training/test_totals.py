"""Token accuracy, error in robot units and rates, against loops over single samples."""

from __future__ import annotations

import json
import mmap
from itertools import count

import numpy as np
import pytest
import torch
from tiny_world import CHUNK, NAME, tiny_inputs, tiny_model, tiny_processor

from spatialvla_ft.actions.normalise import ActionStatistics, unnormalise
from spatialvla_ft.actions.spaces import end_effector_delta, two_arms_delta
from spatialvla_ft.policy.cells import of_ids
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.metrics import (
    Totals,
    action_tokens,
    dimension_names,
    plain,
    sample_losses,
)
from spatialvla_ft.training.speed import Meter, peak_flops, resident

SPACE = end_effector_delta()


@pytest.fixture(scope="module")
def seen():
    """(processor, model, batch, output) of three samples whose prompts differ in length."""
    processor = tiny_processor()
    model = tiny_model(processor)
    batch = tiny_inputs(processor, rows=3, with_actions=True)
    batch.pop("actions")
    with torch.no_grad():
        return processor, model, batch, model(**batch, logits_to_keep="labels")


def test_losses_of_samples_make_the_loss_of_the_batch(seen):
    _, model, batch, output = seen
    losses = sample_losses(output.logits, batch["labels"], model.config)
    assert float(losses.mean()) == pytest.approx(float(output.loss), rel=1e-6)
    for i in range(3):
        alone = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        with torch.no_grad():
            assert float(losses[i]) == pytest.approx(float(model(**alone).loss), rel=1e-4)


def test_guesses_are_the_best_of_their_slot(seen):
    processor, model, batch, output = seen
    tokens = action_tokens(output.logits, batch["labels"], model.config)
    begin = processor.action_tokenizer.begin_id
    edges = np.cumsum([0, *processor.grid.counts])
    row = 0
    for i in range(3):
        labels = [t for t in batch["labels"][i].tolist() if t != -100]
        assert tokens.wanted[i].tolist() == labels[:-1]
        for j, _ in enumerate(labels[:-1]):
            low, high = begin + edges[j % 3], begin + edges[j % 3 + 1]
            best = max(range(low, high), key=lambda k, row=row: float(output.logits[row, k]))
            assert int(tokens.guessed[i, j]) == best
            row += 1
        row += 1  # the end of the sequence


def test_totals_of_micro_batches_are_those_of_their_samples(seen):
    """Batches of two and one: a mean of means would be another number."""
    processor, model, batch, output = seen
    tokens = action_tokens(output.logits, batch["labels"], model.config)
    losses = sample_losses(output.logits, batch["labels"], model.config).tolist()
    totals = Totals(processor, SPACE)
    for part in (slice(0, 2), slice(2, 3)):
        totals.add_loss(sum(losses[part]), len(losses[part]))
        few = type(tokens)(tokens.wanted[part], tokens.guessed[part])
        totals.add_tokens(few)
        both = (of_ids(ids, processor.grid, model) for ids in (few.guessed, few.wanted))
        names = [NAME] * len(losses[part])
        totals.add_actions(*(processor.to_robot_units(one, names) for one in both))
    found = totals.metrics()
    assert found["loss"] == pytest.approx(np.mean(losses))
    right = (tokens.wanted == tokens.guessed).numpy().reshape(-1, 3)
    for k, slot in enumerate(("translation", "rotation", "gripper")):
        assert found[f"accuracy/{slot}"] == pytest.approx(right[:, k].mean())
    statistics = ActionStatistics.from_dict(processor.statistics[NAME])
    begin = processor.action_tokenizer.begin_id
    errors = []
    for guess, want in zip(
        tokens.guessed.reshape(-1, 3).numpy(), tokens.wanted.reshape(-1, 3).numpy(), strict=True
    ):
        one, other = (
            unnormalise(processor.grid.decode(ids[None] - begin), statistics)[0]
            for ids in (guess, want)
        )
        errors.append(abs(one - other))
    assert len(errors) == 3 * CHUNK
    names = ["x_m", "y_m", "z_m", "roll_rad", "pitch_rad", "yaw_rad", "gripper"]
    assert [found[f"l1/{name}"] for name in names] == pytest.approx(np.mean(errors, axis=0))


def test_actions_past_the_end_of_an_episode_do_not_count():
    totals = Totals(tiny_processor(), SPACE)
    truth = np.zeros((2, 2, 7))
    guess = np.ones((2, 2, 7))
    guess[1, 1] = 100
    totals.add_actions(guess, truth, np.array([[True, True], [True, False]]))
    assert totals.metrics()["l1/x_m"] == 1
    assert "loss" not in totals.metrics()


def test_dimensions_of_two_arms_keep_their_names():
    names = dimension_names(two_arms_delta())
    assert names[0] == "left_x_m"
    assert names[-1] == "right_gripper"
    assert len(set(names)) == 14


def test_json_has_no_nan():
    assert plain({"a": float("nan"), "b": 1.5, "c": float("inf")}) == {
        "a": None,
        "b": 1.5,
        "c": None,
    }


# -------------------------------------------------------------------- rates


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Some GPU of tomorrow", None),
    ],
)
def test_peaks_are_looked_up_never_guessed(name, wanted):
    assert peak_flops(name, "bf16", tf32=False) == wanted


def test_float32_has_the_peak_of_its_products():
    assert peak_flops("NVIDIA A100-SXM4-40GB", "float32", tf32=True) == 156e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", "float32", tf32=False) == 19.5e12


def test_rates_by_a_clock_of_our_own():
    """Two micro-batches on four ranks; every look at the clock takes a second."""
    ticks = count()
    meter = Meter(torch.device("cpu"), "bf16", 4, clock=lambda: float(next(ticks)))  # 0
    for _ in range(2):
        with meter.waiting():  # 1..2, 3..4
            pass
        mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1]])
        meter.count({"input_ids": mask, "attention_mask": mask})
        with meter.arithmetic():
            torch.ones(3, 5) @ torch.ones(5, 7)
    meter.stepped()
    with meter.paused():  # 5..6
        pass
    values = meter.restart()  # 7, so six seconds of training
    assert values["samples_per_second"] == pytest.approx(2 * 3 * 4 / 6)
    assert values["tokens_per_second"] == pytest.approx(2 * 9 * 4 / 6)
    assert values["steps_per_second"] == pytest.approx(1 / 6)
    assert values["data_wait_share"] == pytest.approx(2 / 6)
    assert values["tflops_per_second"] == pytest.approx(2 * (2 * 3 * 5 * 7) / 6 / 1e12)
    assert "mfu" not in values, "the peak of this CPU is unknown"
    assert meter.restart()["samples_per_second"] == 0


def test_memory_is_that_of_this_process():
    before = resident()
    with mmap.mmap(-1, 64 * 2**20) as ballast:  # the allocator may hand out pages it already has
        ballast.write(bytes(2**20) * 64)
        assert 60 * 2**20 < resident() - before < 200 * 2**20


# -------------------------------------------------------------------- in the loop


def test_accumulated_micro_batches_log_what_one_batch_logs(recipe_of):
    lines = []
    for name, more in (
        ("one", ["train.batch_size=4"]),
        ("two", ["train.gradient_accumulation=2"]),
    ):
        recipe = recipe_of("full", name, ["train.steps=2", "train.warmup=0", *more])
        train(build(recipe))
        text = (recipe.output / "metrics.jsonl").read_text().splitlines()
        lines.append([json.loads(line) for line in text if '"loss"' in line])
    for one, two in zip(*lines, strict=True):
        kinds = {"accuracy/translation", "accuracy/rotation", "accuracy/gripper", "l1/yaw_rad"}
        assert kinds < set(one)
        for name in one:
            if name.startswith(("loss", "accuracy", "l1", "grad_norm")):
                assert two[name] == pytest.approx(one[name], abs=1e-4), name
        assert {"tokens_per_second", "steps_per_second", "memory/host_gib"} < set(one)
        assert one["tflops_per_second"] > 0
