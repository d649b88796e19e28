"""Every head on one backbone: what a chunk costs, and what a training step costs, beside tokens.

The heads are those of `HEADS` with their defaults, each with random weights; their work does not
depend on values. Shape letters: B batch, K actions of a chunk, A numbers of an action.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..heads.protocol import ActionHead
from ..heads.registry import DEFAULT, HEADS, build_head
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from .figures import Report, Times, Work, in_turns

VARIANTS = {"voxel_heatmap, low rank": {"kind": "voxel_heatmap", "maps": "low_rank"}}
"""Settings that change what a head costs."""


def other_heads(model: SpatialVLAForConditionalGeneration, seed: int = 0) -> dict[str, ActionHead]:
    """One of each kind that is not made of tokens, for one arm and the model's chunk."""
    asked = {kind: {"kind": kind} for kind in HEADS if kind != DEFAULT} | VARIANTS
    size, chunk = model.config.text_config.hidden_size, model.config.action_chunk_size
    torch.manual_seed(seed)
    found = {}
    for name, settings in asked.items():
        head = build_head(settings, size, chunk)
        assert head is not None
        found[name] = head.to(model.device, model.dtype).eval()
    return found


@contextmanager
def wearing(
    model: SpatialVLAForConditionalGeneration, head: ActionHead | None
) -> Iterator[SpatialVLAForConditionalGeneration]:
    """The model with another head, for a while."""
    before, model.action_head = model.action_head, head
    try:
        yield model
    finally:
        model.action_head = before


def add_chunks(
    report: Report,
    model: SpatialVLAForConditionalGeneration,
    inputs: dict[str, Tensor],
    *,
    rounds: int,
    device: str,
) -> None:
    """Chunks per second of each head, depth given, and how many times that of grid tokens.

    Args:
        report: to add to.
        model: with grid tokens.
        inputs: a prompt with depth.
        rounds: timed ones, in turns.
        device: cpu or cuda.
    """

    def predicting(head: ActionHead) -> Work:
        def work() -> None:
            with wearing(model, head):
                model.predict_actions(inputs)

        return work

    heads = other_heads(model)
    works: dict[str, Work] = {DEFAULT: lambda: model.predict_action(inputs)}
    works |= {name: predicting(head) for name, head in heads.items()}
    times = in_turns(works, rounds=rounds, device=device)
    tokens = times[DEFAULT]
    for name, own in times.items():
        count = 0 if name == DEFAULT else _count(heads[name])
        words = "its tables are the model's" if name == DEFAULT else f"{count / 1e6:.1f} M"
        report.figures.append(own.figure(f"chunk by {name}", f"depth given; head: {words}"))
        report.add(f"chunk rate of {name}", 1 / own.median, "Hz", "chunks per second")
        if name != DEFAULT:
            pairs = zip(tokens.seconds, own.seconds, strict=True)
            ratio = Times(tuple(a / b for a, b in pairs)).median
            report.add(f"{name} / {DEFAULT}", ratio, "x", "chunks per second, round by round")


def add_steps(
    report: Report,
    peft_model: nn.Module,
    model: SpatialVLAForConditionalGeneration,
    inputs: dict[str, Tensor],
    *,
    batch: int,
    rounds: int,
    device: str,
    learning_rate: float,
) -> None:
    """A LoRA step with each head trained whole.

    Args:
        report: to add to.
        peft_model: adapters on the backbone of `model`.
        model: with grid tokens.
        inputs: of a batch with labels, as the collator makes it.
        batch: samples.
        rounds: timed ones, in turns.
        device: cpu or cuda.
        learning_rate: of AdamW.
    """
    prompt = prompts_of(inputs)
    works: dict[str, Work] = {DEFAULT: _step(peft_model, model, None, inputs, learning_rate)}
    for name, head in other_heads(model).items():
        shape = (batch, head.sizes.chunk, head.sizes.space.dim)
        actions = torch.rand(shape, device=model.device) * 2 - 1
        works[name] = _step(
            peft_model, model, head.train(), {**prompt, "actions": actions}, learning_rate
        )
    for work in works.values():
        work()  # the optimisers' states exist from here on
    times = in_turns(works, rounds=rounds, device=device)
    for name, own in times.items():
        report.figures.append(own.figure(f"step of {name}", "adapters, and the head trained whole"))
        report.add(f"rate of {name}", batch / own.median, "samples/s", "at the median step")


def prompts_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The prompts of a batch that has action tokens behind them, all equally long."""
    count = int((inputs["token_type_ids"][0] == 0).sum())
    names = ("input_ids", "attention_mask", "token_type_ids")
    cut = {name: inputs[name][:, :count] for name in names}
    return {**{n: t for n, t in inputs.items() if n != "labels"}, **cut}


def _step(
    peft_model: nn.Module,
    model: SpatialVLAForConditionalGeneration,
    head: ActionHead | None,
    inputs: dict[str, Tensor],
    learning_rate: float,
) -> Work:
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    trained += [] if head is None else list(head.parameters())
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)

    def step() -> None:
        with wearing(model, head):
            peft_model(**inputs, logits_to_keep="labels").loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def _count(head: nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())
