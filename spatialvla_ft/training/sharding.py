"""FSDP2: every process keeps a share of the weights, gradients and optimiser states.

PyTorch's `fully_shard` is called directly, on GPUs and on CPUs alike: what the tests prove on two
CPU processes is what runs on a cluster. (Accelerate's own FSDP plugin falls back to plain data
parallelism on a CPU without a word.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
from .training_state import TrainingState, check_names, trainable_state


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
