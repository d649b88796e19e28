"""DeepSpeed's ZeRO, stages 1 and 2: its states, in the same form as those of any other run.

Every process holds the weights and a part of the optimiser's states. They are gathered through
DeepSpeed's documented access to single parameters, so a checkpoint written here goes on without
DeepSpeed, and the other way round.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .training_state import TrainingState, check_names, trainable_state

MOMENTS = ("exp_avg", "exp_avg_sq")


def take_zero(
    step: int,
    model: nn.Module,
    optimizer: Any,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> TrainingState:
    """`training_state.take` of a run under ZeRO; every process must call it.

    Args:
        step: completed steps.
        model: without DeepSpeed's engine around it.
        optimizer: DeepSpeed's.
        scheduler: of the learning rate.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    own = trainable_state(model)
    parameters = dict(model.named_parameters())
    steps = torch.tensor(_inner_steps(optimizer))
    state = {
        name: {
            "step": steps.clone(),
            **{m: safe_get_full_optimizer_state(parameters[name], m).cpu() for m in MOMENTS},
        }
        for name in own
    }
    (group,) = optimizer.param_groups
    settings = {key: value for key, value in group.items() if key != "params"}
    weights = {name: tensor.cpu() for name, tensor in own.items()}
    named = {"state": state, "param_groups": [{**settings, "params": list(own)}]}
    return TrainingState(step, weights, named, scheduler.state_dict())


@torch.no_grad()
def put_zero(
    state: TrainingState,
    model: nn.Module,
    optimizer: Any,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """`training_state.put` of a run under ZeRO; every process calls it with the whole state.

    Raises:
        ValueError: the state is of a run that trains other parameters.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    check_names(state.trainable, trainable_state(model))
    _make_states(optimizer, max(float(v["step"]) for v in state.optimizer["state"].values()))
    for name, parameter in model.named_parameters():
        if name not in state.trainable:
            continue
        weights = state.trainable[name].to(parameter)
        parameter.copy_(weights)
        safe_set_full_fp32_param(parameter, weights)
        for moment in MOMENTS:
            value = state.optimizer["state"][name][moment].to(parameter)
            safe_set_full_optimizer_state(parameter, value, moment)
    for group, saved in zip(optimizer.param_groups, state.optimizer["param_groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
    scheduler.load_state_dict(state.scheduler)


def _inner_steps(optimizer: Any) -> float:
    """Steps that the optimiser inside DeepSpeed's has counted."""
    return max((float(v["step"]) for v in optimizer.optimizer.state.values()), default=0.0)


def _make_states(optimizer: Any, steps: float) -> None:
    """Empty moments on this process, as AdamW's first step would make them, known to DeepSpeed."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    inner = optimizer.optimizer
    for parameters, flat in zip(
        optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True
    ):
        count = torch.tensor(steps, dtype=torch.float32, device=flat.device)
        inner.state[flat] = {"step": count, **{m: torch.zeros_like(flat) for m in MOMENTS}}
        lazy_init_hp_params_optimizer_state(parameters, flat, inner.state)
