"""The optimiser and its schedule, as a recipe says."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from .sections import Train


def make_optimizer(parameters: Iterable[nn.Parameter], train: Train) -> torch.optim.Optimizer:
    """AdamW, fused into one kernel."""
    return torch.optim.AdamW(
        parameters,
        lr=train.learning_rate,
        betas=train.betas,
        weight_decay=train.weight_decay,
        fused=True,
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer, train: Train
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then the recipe's course to the last step; or its tail, see `Train`."""
    total = train.schedule_start + train.steps
    whole = get_scheduler(
        "constant_with_warmup" if train.schedule == "constant" else train.schedule,
        optimizer,
        num_warmup_steps=round(train.warmup * total),
        num_training_steps=total,
    )
    if train.schedule_start == 0:
        return whole
    (course,) = whole.lr_lambdas
    return LambdaLR(optimizer, lambda step: course(train.schedule_start + step))
