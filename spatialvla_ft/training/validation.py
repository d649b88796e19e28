"""Loss and accuracy on held-out episodes during training."""

from __future__ import annotations

import torch
from torch import nn

from .metrics import token_accuracy
from .run import Run


@torch.no_grad()
def validate(run: Run, model: nn.Module, count: int) -> dict[str, float]:
    """Loss and token accuracy on held-out episodes, on the same evenly spaced frames each time."""
    model.eval()
    device = next(model.parameters()).device
    totals: dict[str, float] = {}
    batches = 0
    for dataset in run.heldout:
        frames = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long().tolist()
        for start in range(0, len(frames), run.recipe.train.batch_size):
            chosen = frames[start : start + run.recipe.train.batch_size]
            batch = run.collate([run.sample(dataset, i) for i in chosen])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            outputs = model(**batch, logits_to_keep="labels")
            labels = batch["labels"][:, 1:]
            values = {
                "loss": float(outputs.loss),
                **token_accuracy(
                    outputs.logits,
                    labels[labels != -100],
                    run.spatialvla.config,
                    run.processor.grid.slots,
                ),
            }
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value
            batches += 1
    return {f"validation/{name}": total / batches for name, total in totals.items()}
