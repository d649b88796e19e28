"""What training continues from, by parameter name, whatever the number of ranks.

Randomness and data order are functions of (seed, step), so neither needs a state of its own.

FSDP2: every process keeps a share of the weights, gradients and optimiser states.

PyTorch's `fully_shard` is called directly, on GPUs and on CPUs alike: what the tests prove on two
CPU processes is what runs on a cluster. (Accelerate's own FSDP plugin falls back to plain data
parallelism on a CPU without a word.)

DeepSpeed's ZeRO, stages 1 and 2: its states, in the same form as those of any other run.

Every process holds the weights and a part of the optimiser's states. They are gathered through
DeepSpeed's documented access to single parameters, so a checkpoint written here goes on without
DeepSpeed, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration


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


def shard(
    model: nn.Module, spatialvla: SpatialVLAForConditionalGeneration, device: torch.device
) -> None:
    """Spread a model over all processes, in place; its parameters become DTensors.

    Each layer of the language model and of the vision tower is gathered when its turn comes and
    given back after it; everything else (embeddings, head, projector, Ego3D) for the whole step.
    ZoeDepth, which is never trained, stays whole on every process. Gradients are averaged in
    float32; autocast, where it is on, casts weights operation by operation as without sharding.

    Args:
        model: what is trained; may be a peft model around `spatialvla`.
        spatialvla: the SpatialVLA model itself.
        device: where this process computes.
    """
    model.to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in (spatialvla.language_model.model, spatialvla.vision_tower.encoder):
        for layer in part.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    zoe = getattr(spatialvla, "vision_zoe_model", None)
    kept = set() if zoe is None else set(zoe.parameters())
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=kept)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on it."""
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece; of a sharded one every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Whole weights on every process meanwhile, so that each may predict in its own time.

    Nothing happens to a model that is not sharded. Every process must enter and leave; for the
    time it takes each holds all weights, but no gradients.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()


def unshard(model: nn.Module, keep: bool) -> None:
    """Make plain parameters of a sharded model again, in place, on the CPU; for saving only.

    Every process must call it.

    Args:
        model: what `shard` was called on; a model that is not sharded stays as it is.
        keep: whether this process gets the weights; the others are left with empty ones.
    """
    if not is_sharded(model):
        return
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                gathered_values = whole(parameter)
                plain = gathered_values.cpu() if keep else torch.empty(0)
                setattr(module, name, nn.Parameter(plain, parameter.requires_grad))
        if isinstance(module, FSDPModule):
            module.__class__ = next(base for base in type(module).__bases__ if base != FSDPModule)


def take_sharded(
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> TrainingState:
    """`training_state.take` of a sharded run, in the same form; tensors on the main process only.

    Every process must call it.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return TrainingState(
        step,
        get_model_state_dict(model, options=options),
        get_optimizer_state_dict(model, optimizer, options=options),
        scheduler.state_dict(),
    )


def put_sharded(
    state: TrainingState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """`training_state.put` of a sharded run; every process calls it with the whole state.

    Raises:
        ValueError: the state is of a run that trains other parameters.
    """
    check_names(state.trainable, trainable_state(model))
    complete = StateDictOptions(full_state_dict=True)
    weights = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)
    set_model_state_dict(model, dict(state.trainable), options=weights)
    set_optimizer_state_dict(model, optimizer, dict(state.optimizer), options=complete)
    scheduler.load_state_dict(state.scheduler)


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
