"""How much memory a recipe needs, before it runs.

The real model takes two real steps on fake tensors, and live bytes are counted on the way: what is
counted is what torch would allocate, with every copy that a layer, autocast or the optimiser makes,
and nothing has to be kept in line with the model by hand.

Not in the count: workspace inside kernels, what the allocator rounds up and fragments, the context
of a GPU (about half a GiB), NCCL, and the processes that load data. `MARGIN` leaves room for them.
Kernels are those of the CPU; those of a GPU make the same outputs. On a CPU the process can show
nearly twice as much resident memory, because the C library keeps freed blocks.

What torch's own allocator says of the highest use of memory: the check on every other count.
"""

from __future__ import annotations

import copy
import gc
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.profiler import ProfilerActivity, profile

from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..training.recipe import Recipe
from ..training.trainable import trainable_part
from .fake_values import RealIntegers, fake_module
from .tensor_bytes import TensorBytes
from .workloads import make_inputs, predictions, training_steps


def allocator_peak(work: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """Bytes that `work` needs at once, on top of what is allocated when it begins.

    Every allocation counts, the workspace of kernels included. On a CPU the profiler's record of
    allocations is added up, on a GPU the allocator is asked.

    Args:
        work: called once, without arguments.
        device: whose allocator.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        raise ValueError(f"device {device} has no allocator record here; use 'cpu' or 'cuda'")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        work()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


PROMPT_TOKENS = 24
MARGIN = 0.9
"""Share of a GPU's memory that tensors may take."""

PARTS = (
    "parameters",
    "gradients",
    "optimiser",
    "activations",
    "depth",
    "logits",
    "cache",
    "inputs",
    "communication",
)
Sharding = Literal["none", "fsdp"]
Work = Literal["train", "predict"]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one GPU at the worst moment.

    Attributes:
        at_peak: bytes by part; their sum is `peak`. "depth" is what the depth estimator needs while
            it runs, "logits" the head's output and the loss, "communication" what several GPUs need
            to exchange.
        trainable: bytes of the parameters that are trained.
        total: bytes of all parameters of the model, before they are divided among GPUs.
        largest_layer: bytes of the largest layer, which a sharded run gathers whole.
    """

    at_peak: dict[str, int] = field(repr=False)
    trainable: int
    total: int
    largest_layer: int

    @property
    def peak(self) -> int:
        """Most tensor bytes alive at once."""
        return sum(self.at_peak.values())

    def fits(self, memory: int) -> bool:
        """Whether a GPU of so many bytes is enough, with a margin for what is not counted."""
        return self.peak <= MARGIN * memory

    def on_gpus(self, count: int, sharding: Sharding) -> MemoryPlan:
        """The plan for one of several GPUs, the batch of each as before.

        Copies ("none") add buckets as large as the gradients, in which they are summed. Shards
        divide parameters, gradients and optimiser states, and hold two layers whole, the one that
        computes and the next one. This part is arithmetic, not a count.
        """
        if count < 1 or sharding not in ("none", "fsdp"):
            raise ValueError(
                f"gpus must be at least 1 and sharding 'none' or 'fsdp', got {count}, {sharding!r}"
            )
        if count == 1:
            return self
        parts = dict(self.at_peak)
        if sharding == "none":
            parts["communication"] = self.trainable
        else:
            for name in ("parameters", "gradients", "optimiser"):
                if name in parts:
                    parts[name] = -(-parts[name] // count)
            parts["communication"] = 2 * self.largest_layer
        return MemoryPlan(parts, self.trainable, self.total, self.largest_layer)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "peak_bytes": self.peak,
            "parts": self.at_peak,
            "parameter_bytes": self.total,
            "trainable_bytes": self.trainable,
        }


def plan_memory(
    recipe: Recipe,
    config: SpatialVLAConfig,
    *,
    work: Work = "train",
    prompt_tokens: int = PROMPT_TOKENS,
) -> MemoryPlan:
    """The peak of training by a recipe, or of predictions of its batch, on one GPU.

    Args:
        recipe: batch size, precision, adapters, what is frozen, accumulation.
        config: sizes, from `config_of`.
        work: "train", or "predict" for predicting actions of `train.batch_size` prompts at once.
        prompt_tokens: length of the instructions.
    """
    if recipe.model.quantisation is not None:
        raise ValueError(
            "four-bit layers are not counted; plan with model.quantisation=null, which gives an "
            "upper bound"
        )
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = fake_module(lambda: _model(recipe, config, work), mode)
    with mode, RealIntegers():
        inputs = _inputs(recipe, config, work, prompt_tokens)
        with TensorBytes(parameters=model, inputs=inputs) as count:
            if work == "train":
                with _parts_named(count, model):
                    training_steps(model, recipe, inputs)()
            else:
                predictions(model, inputs, lambda: _first_is_over(count, model))()
    parameters = list(model.parameters())
    layers = [
        sum(p.nbytes for p in layer.parameters())
        for layer in model.modules()
        if type(layer).__name__ in SpatialVLAForConditionalGeneration._no_split_modules
    ]
    at_peak = Counter(count.at_peak)
    at_peak["activations"] += at_peak.pop("other", 0)
    return MemoryPlan(
        at_peak={name: at_peak[name] for name in PARTS if at_peak[name]},
        trainable=sum(p.nbytes for p in parameters if p.requires_grad),
        total=sum(p.nbytes for p in parameters),
        largest_layer=max(layers, default=0),
    )


@dataclass(frozen=True)
class Measurement:
    """What the same work took in truth, on the CPU.

    Attributes:
        peak: bytes of the model and its inputs, and the highest sum of what torch's allocator gave
            out on top of them.
        resident: by how much the process' own peak of resident memory grew from before the model
            was made, by the system's account; None where it had been higher before.
    """

    peak: int
    resident: int | None


def measure_memory(
    recipe: Recipe,
    config: SpatialVLAConfig,
    *,
    work: Work = "train",
    prompt_tokens: int = PROMPT_TOKENS,
) -> Measurement:
    """Do the work of `plan_memory` with real tensors; arguments as there."""
    gc.collect()
    before = _resident()
    highest = _highest_resident()
    model = _model(recipe, config, work)
    inputs = _inputs(recipe, config, work, prompt_tokens)
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), *inputs.values()))
    if work == "train":
        peak = allocator_peak(training_steps(model, recipe, inputs))
    else:
        peak = allocator_peak(predictions(model, inputs))
    reached = _highest_resident()
    return Measurement(held + peak, reached - before if reached > highest else None)


def _model(recipe: Recipe, config: SpatialVLAConfig, work: Work) -> nn.Module:
    model = SpatialVLAForConditionalGeneration(copy.deepcopy(config))
    return trainable_part(recipe, model) if work == "train" else model


def _inputs(
    recipe: Recipe, config: SpatialVLAConfig, work: Work, prompt_tokens: int
) -> dict[str, Tensor]:
    return make_inputs(
        config,
        recipe.train.batch_size,
        prompt_tokens,
        depth=recipe.data.depth.source != "estimate",
        actions=work == "train",
    )


@contextmanager
def _parts_named(count: TensorBytes, model: nn.Module) -> Iterator[None]:
    """While it lasts, storages count under the part of the work that makes them."""

    def now(category: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            count.category = category

        return hook

    def stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        count.tag("optimiser", [list(state.values()) for state in optimizer.state.values()])
        count.category = "activations"

    handles = [
        register_optimizer_step_pre_hook(now("optimiser")),
        register_optimizer_step_post_hook(stepped),
    ]
    handles += [
        parameter.register_post_accumulate_grad_hook(
            lambda parameter: count.tag("gradients", parameter.grad)
        )
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    inner = next(m for m in model.modules() if isinstance(m, SpatialVLAForConditionalGeneration))
    handles.append(inner.register_forward_hook(now("activations")))
    handles.append(inner.language_model.model.register_forward_hook(now("logits")))
    if hasattr(inner, "vision_zoe_model"):
        handles.append(inner.vision_zoe_model.register_forward_pre_hook(now("depth")))
        handles.append(inner.vision_zoe_model.register_forward_hook(now("activations")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_is_over(count: TensorBytes, model: nn.Module) -> None:
    """The second prediction, with the first one's cache in its place, is the one that counts."""
    count.tag("cache", vars(model).get("_last_cache"))
    count.reset_peak()


def _highest_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
