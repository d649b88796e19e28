"""`spatialvla-ft bench train-step`: a LoRA step, with and without activation checkpointing.

Samples per second, and the share of the machine's matrix-product speed that the step's arithmetic
reaches (model FLOPs utilisation: recomputed activations do not count as work done).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..memory.sizes import bench_inputs, bench_model, check_size
from ..memory.tensor_bytes import TensorBytes
from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.lora import attach_lora
from ..models.memory import checkpoint_activations
from .figures import Report, Work, count_flops, in_turns, measure_machine
from .heads import add_steps

BATCH = {"tiny": 4, "100m": 4, "4b": 32}
RANK = 32
LEARNING_RATE = 5e-4


def bench_train_step(size: str, *, device: str = "cpu", rounds: int = 3) -> Report:
    """Forward, backward, clipping and AdamW of the adapters; depth is given.

    Args:
        size: of the model; decides on the batch too.
        device: cpu or cuda.
        rounds: timed steps of each kind, taken in turns.
    """
    check_size(size, device)
    batch = BATCH[size]
    model = bench_model(size, device=device)
    dtype = model.dtype
    machine = measure_machine(device, dtype, rounds=rounds)
    inputs = training_inputs(model.config, batch, device=device)
    peft_model = attach_lora(model, rank=RANK)
    peft_model.train()
    adapters = [p for p in peft_model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(adapters, lr=LEARNING_RATE, weight_decay=0.0)
    step = adapter_step(peft_model, optimiser, adapters, inputs)
    report = Report(
        "train-step",
        {
            "size": size,
            "batch": batch,
            "rank": RANK,
            "dtype": str(dtype).removeprefix("torch."),
            "device": machine.device,
            "threads": machine.threads,
            "rounds": rounds,
        },
    )
    trained = sum(p.numel() for p in adapters)
    report.add("trained", trained / 1e6, "M", "parameters of the adapters")
    step()  # the optimiser's state exists from here on
    flops = count_flops(step)
    report.add("arithmetic", flops / 1e12, "TFLOP", "one step: matrix products and convolutions")
    _measure(report, "plain", step, device, rounds, batch, flops / machine.flops)
    add_steps(
        report,
        peft_model,
        model,
        inputs,
        batch=batch,
        rounds=rounds,
        device=device,
        learning_rate=LEARNING_RATE,
    )
    checkpoint_activations(model)
    _measure(report, "checkpointing", step, device, rounds, batch, flops / machine.flops)
    for what, unit in (("step", "x"), ("peak", "x")):
        ratio = report[f"checkpointing {what}"].value / report[f"plain {what}"].value
        report.add(f"{what} ratio", ratio, unit, "checkpointing / plain")
    report.add("product", machine.flops / 1e12, "TFLOP/s", "a big matrix product, the same run")
    if size != "4b":
        report.add(
            "4b on a GPU", None, "samples/s", "batch 32; needs a GPU: --size 4b --device cuda"
        )
    report.notes.append("depth is given; ZoeDepth adds its forward pass, see `bench depth`")
    return report


def training_inputs(config: SpatialVLAConfig, batch: int, *, device: str) -> dict[str, Tensor]:
    """`batch` prompts with a chunk of actions each, as the collator makes them."""
    one = bench_inputs(config, device="cpu")
    generator = torch.Generator().manual_seed(1)
    slots = config.action_slots * config.action_chunk_size
    ids = [torch.randint(s.start, s.stop, (batch, 1), generator=generator) for s in slots]
    actions = torch.cat(ids, dim=1) + config.action_token_begin_idx
    end = torch.full((batch, 1), config.eos_token_id)
    suffix = torch.cat((actions, end), dim=1)
    rows: dict[str, Tensor] = {n: t.repeat(batch, *[1] * (t.ndim - 1)) for n, t in one.items()}
    rows["pixel_values"] = torch.rand(rows["pixel_values"].shape, generator=generator)
    prompt = rows["input_ids"]
    rows["labels"] = torch.cat((torch.full_like(prompt, config.ignore_index), suffix), dim=1)
    rows["input_ids"] = torch.cat((prompt, suffix), dim=1)
    rows["attention_mask"] = torch.ones_like(rows["input_ids"])
    rows["token_type_ids"] = torch.cat((torch.zeros_like(prompt), torch.ones_like(suffix)), dim=1)
    return {name: tensor.to(device) for name, tensor in rows.items()}


def adapter_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    adapters: list[nn.Parameter],
    inputs: dict[str, Tensor],
) -> Work:
    """A step on one batch: forward, backward, clipping, the optimiser's turn."""

    def step() -> Any:
        model(**inputs, logits_to_keep="labels").loss.backward()
        nn.utils.clip_grad_norm_(adapters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def _measure(
    report: Report, kind: str, step: Work, device: str, rounds: int, batch: int, least: float
) -> None:
    times = in_turns({kind: step}, rounds=rounds, device=device)[kind]
    report.figures.append(times.figure(f"{kind} step", "forward, backward, clipping, AdamW"))
    report.add(f"{kind} rate", batch / times.median, "samples/s", "at the median step")
    share = 100 * least / times.median
    report.add(f"{kind} utilisation", share, "%", "the step's arithmetic at the product's speed")
    report.add(f"{kind} peak", peak_of(step, device) / 2**20, "MiB", "tensors made by one step")


def peak_of(step: Work, device: str) -> int:
    """Most bytes of tensors that a step makes and holds at once."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with TensorBytes() as count:
        step()
    return count.peak
