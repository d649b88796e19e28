"""The tail of a schedule: the learning rates of a run that goes on where another stopped."""

from __future__ import annotations

import math

import pytest
import torch

from spatialvla_ft.training.recipe import Train
from spatialvla_ft.training.trainable import make_optimizer, make_scheduler

PEAK, WARMUP, TOTAL = 0.02, 0.25, 20


def rates(schedule, start, steps):
    """The learning rate of every step that is taken."""
    train = Train(
        steps=steps,
        batch_size=1,
        learning_rate=PEAK,
        schedule=schedule,
        warmup=WARMUP,
        schedule_start=start,
    )
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([weight], train)
    scheduler = make_scheduler(optimizer, train)
    used = []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
    return used


def in_closed_form(schedule, step):
    warm = WARMUP * TOTAL
    if step < warm:
        return PEAK * step / warm
    share = (step - warm) / (TOTAL - warm)
    falling = {
        "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        "linear": 1 - share,
        "constant": 1.0,
    }
    return PEAK * falling[schedule]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("start", [0, 3, 13, 19])
def test_a_tail_has_the_rates_of_the_whole(schedule, start):
    wanted = [in_closed_form(schedule, step) for step in range(start, TOTAL)]
    assert rates(schedule, start, TOTAL - start) == pytest.approx(wanted, abs=1e-12)
