"""What training continues from, by parameter name, whatever the number of ranks.

Randomness and data order are functions of (seed, step), so neither needs a state of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TrainingState:
    """Whole tensors and plain values; a sharded run gathers them first.

    Attributes:
        step: completed steps.
        trainable: {name: parameter} of what is trained.
        optimizer: {"state": {name: {...}}, "param_groups": [{"params": [names], ...}]}, the layout
            of `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict`.
        scheduler: its `state_dict`.
    """

    step: int
    trainable: dict[str, Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [*self.trainable.values()]
        for values in self.optimizer["state"].values():
            tensors += [value for value in values.values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in tensors)


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters by name."""
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def take(
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> TrainingState:
    """The state of a run whose parameters are whole on this rank; tensors are not copied."""
    numbered = optimizer.state_dict()
    names = _names(model, optimizer)
    named = {
        "state": {names[number]: values for number, values in numbered["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]}
            for group in numbered["param_groups"]
        ],
    }
    return TrainingState(step, trainable_state(model), named, scheduler.state_dict())


@torch.no_grad()
def put(
    state: TrainingState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Give a run whose parameters are whole on this rank a state, in place.

    Raises:
        ValueError: the state is of a run that trains other parameters.
    """
    put_trainable(state, model)
    names = _names(model, optimizer)
    numbers = {name: number for number, name in enumerate(names)}
    options = {n: group for group in state.optimizer["param_groups"] for n in group["params"]}
    groups, begin = [], 0
    for group in optimizer.param_groups:
        here = range(begin, begin := begin + len(group["params"]))
        groups.append({**options[names[here.start]], "params": list(here)})
    states = {numbers[name]: values for name, values in state.optimizer["state"].items()}
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    scheduler.load_state_dict(state.scheduler)


@torch.no_grad()
def put_trainable(state: TrainingState, model: nn.Module) -> None:
    """Give a model the trained parameters of a state, in place.

    Raises:
        ValueError: other parameters are trainable in it.
    """
    own = trainable_state(model)
    check_names(state.trainable, own)
    for name, parameter in own.items():
        parameter.copy_(state.trainable[name])


def check_names(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Whether two sets of parameters have the same names and shapes.

    Raises:
        ValueError: they do not; some that differ are named.
    """
    differ = sorted(set(saved) ^ set(own))
    differ += [name for name in own if name in saved and saved[name].shape != own[name].shape]
    if differ:
        raise ValueError(
            f"the checkpoint holds other trainable parameters than this run, e.g. {differ[:4]}; "
            "the recipe changed. Use another output folder, or restore the recipe"
        )


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimiser's parameters, in its own numbering."""
    by_parameter = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_parameter[id(p)] for group in optimizer.param_groups for p in group["params"]]
