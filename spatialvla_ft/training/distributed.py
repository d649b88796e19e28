"""Several processes: how they find each other, and what Accelerate is asked to do for them.

`torchrun` and `accelerate launch` start the processes and set the environment; this reads it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from torch import distributed, nn

from .global_batch import process_count
from .recipe import Recipe, RecipeError, Train
from .states import is_sharded


def join(train: Train) -> None:
    """Meet the other processes that the launcher started; alone, nothing happens.

    Accelerate joins CPU processes, and takes DeepSpeed, only when told so; untold, it would leave
    each process to train on its own.

    Raises:
        RecipeError: recipe and launcher do not fit together.
    """
    if PartialState._shared_state:
        return
    _check_launcher(train)
    if process_count() == 1:
        return
    if train.sharding.startswith("zero"):
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(backend="gloo" if trains_on_cpu() else None)
    else:
        PartialState(cpu=trains_on_cpu())


@contextmanager
def main_process_first(train: Train) -> Iterator[None]:
    """The main process goes through alone, then the others; alone, nothing happens.

    Around what fills caches on disk, such as frame indices and statistics: the others find them.
    """
    join(train)
    if process_count() == 1:
        yield
        return
    with PartialState().main_process_first():
        yield


def make_accelerator(recipe: Recipe, trackers: list[Any]) -> Accelerator:
    """Accelerate's view of this process, with the recipe's precision, accumulation and sharding.

    Raises:
        RecipeError: recipe and launcher do not fit together.
    """
    train = recipe.train
    join(train)
    zero = train.sharding.startswith("zero")
    accelerator = Accelerator(
        cpu=trains_on_cpu() and not zero,
        mixed_precision="no" if train.precision == "float32" else train.precision,
        gradient_accumulation_steps=train.gradient_accumulation,
        log_with=trackers,
        project_config=ProjectConfiguration(
            project_dir=str(recipe.output), logging_dir=str(recipe.output)
        ),
        deepspeed_plugin=_deepspeed(train) if zero else None,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    if accelerator.num_processes != process_count():
        raise RuntimeError(
            f"the launcher started {process_count()} processes (WORLD_SIZE), but Accelerate "
            f"joined {accelerator.num_processes}: they would train apart and write to one folder. "
            "Start them as docs/distributed.md shows"
        )
    return accelerator


def wait_for_the_last() -> None:
    """Return once every process has come here; alone, at once.

    A process that ends while gloo's threads still drop the tensors of the last exchange aborts, and
    the launcher then ends the one that writes the result. Waiting lets them finish. A plain barrier
    of gloo would not do: it runs on those threads, and takes the unfinished exchanges with it.
    """
    if process_count() > 1 and distributed.get_backend() == "gloo":
        distributed.monitored_barrier()
    else:
        PartialState().wait_for_everyone()


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """On their device, under autocast where asked, and joined with the other processes'."""
    if is_sharded(model):  # evaluation_mode only means: do not copy it for data parallelism
        model = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        return model, accelerator.prepare_optimizer(optimizer)
    return accelerator.prepare(model, optimizer)


def trains_on_cpu() -> bool:
    """Whether the CPU computes, for want of an accelerator or because that was asked for."""
    return _cpu_is_asked() or not torch.accelerator.is_available()


def _cpu_is_asked() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")


def _check_launcher(train: Train) -> None:
    for plugin in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() == "true":
            raise RecipeError(
                f"the launcher's configuration turns Accelerate's {plugin} on; here the recipe "
                "says so: launch with distributed_type MULTI_GPU (recipes/launch/), and set "
                "train.sharding to fsdp2, zero1 or zero2"
            )
    if train.sharding != "none" and process_count() == 1:
        raise RecipeError(
            f"train.sharding is {train.sharding}, but there is one process: start several "
            "(torchrun --nproc-per-node N; see docs/distributed.md), or set train.sharding=none"
        )
    if train.sharding.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise RecipeError(
            f"train.sharding is {train.sharding}, and DeepSpeed is not installed: `pip install "
            "'spatialvla-ft[deepspeed]'`, or set train.sharding=fsdp2"
        )
    if train.sharding.startswith("zero") and _cpu_is_asked():
        raise RecipeError(
            f"train.sharding is {train.sharding}, and ACCELERATE_USE_CPU is set, with which "
            "Accelerate leaves DeepSpeed out: unset it (without a GPU, set DS_ACCELERATOR=cpu), or "
            "set train.sharding=fsdp2"
        )
    if train.deepspeed and not train.sharding.startswith("zero"):
        raise RecipeError(
            f"train.deepspeed is set, but train.sharding is {train.sharding}; set zero1 or zero2"
        )


def _deepspeed(train: Train) -> DeepSpeedPlugin:
    """DeepSpeed's configuration; the loop keeps optimiser, schedule and clipping as the recipe."""
    config = {
        "train_micro_batch_size_per_gpu": train.batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "gradient_clipping": train.clip_norm,
        "bf16": {"enabled": False},  # autocast does it, so that geometry stays in float32
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": int(train.sharding.removeprefix("zero"))},
    }
    return DeepSpeedPlugin(hf_ds_config=_merged(config, train.deepspeed))


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The first with values of the second, key by key."""
    result = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
