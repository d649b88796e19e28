"""What a finished run says of itself: its losses, its warnings once more, where things lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

MANY = 12
"""Warnings that are repeated."""


def validation_losses(metrics: Path) -> dict[int, float]:
    """{step: validation loss} of a run, also of before it was continued."""
    if not metrics.is_file():
        return {}
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    found = [(line["step"], line.get("validation/loss")) for line in lines]
    return {step: loss for step, loss in found if loss is not None}


def best_and_last(losses: dict[int, float]) -> dict[str, float]:
    """The lowest validation loss, the last one, and their steps; empty where there is none."""
    if not losses:
        return {}
    best, last = min(losses, key=lambda step: (losses[step], step)), max(losses)
    return {
        "best_validation_loss": losses[best],
        "best_step": best,
        "last_validation_loss": losses[last],
        "last_step": last,
    }


def summary(
    output: Path, result: Path, steps: int, kept: str, warnings: Sequence[str], dataset: str
) -> list[str]:
    """Lines for people.

    Args:
        output: folder of the run.
        result: folder of the trained model.
        steps: of the run.
        kept: "last" or "best", which weights the result holds.
        warnings: everything that was warned of.
        dataset: path of a dataset, for the next command.
    """
    lines = [f"trained {steps:,} steps; {result} holds the {kept} weights"]
    told = best_and_last(validation_losses(output / "metrics.jsonl"))
    if told:
        lines.append(
            f"validation loss: best {told['best_validation_loss']:.3f} at step "
            f"{told['best_step']:,}, last {told['last_validation_loss']:.3f} at step "
            f"{told['last_step']:,}"
        )
    lines += [f"warning: {text}" for text in warnings[-MANY:]]
    if len(warnings) > MANY:
        lines.append(f"and {len(warnings) - MANY} warnings before these")
    lines.append(f"checkpoints, metrics, recipe and pre-flight report: {output}")
    if (output / "tensorboard").is_dir():
        lines.append(f"curves: tensorboard --logdir {output / 'tensorboard'}")
    lines.append(f"next: spatialvla-ft eval open-loop {result} {dataset}")
    return lines
