"""`spatialvla-ft bench train-logits`: logits where the labels are, beside the full matrix.

A training sample has about 284 tokens and 13 labels; the released vocabulary has 265,347 rows. The
head and the loss are timed and their tensors counted as the model computes them, with the rest of
the model left out (it has no memory at all: it stays on the meta device).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..memory.sizes import SIZES, bench_config, check_size, default_dtype
from ..memory.tensor_bytes import TensorBytes
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from .figures import Report, Work, in_turns

TOKENS, LABELS = 284, 13
VOCABULARY = SIZES["4b"]["text_config"]["vocab_size"]
Rows = Literal["labels", "all"]


def bench_train_logits(size: str, *, device: str = "cpu", rounds: int = 3) -> Report:
    """Forward and backward of head and loss for one sample, at the real vocabulary.

    Args:
        size: decides on the hidden size: 64, 512 or the real 2304. On a CPU the real one runs in
            bfloat16 (about 4 GiB).
        device: cpu or cuda.
        rounds: timed ones.
    """
    check_size("tiny" if size == "4b" else size, device)
    half = size == "4b" or device == "cuda"
    model = _head_only(size, device, torch.bfloat16 if half else torch.float32)
    width = model.config.text_config.hidden_size
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((1, TOKENS, width), generator=generator).to(device, model.dtype)
    labels = torch.full((1, TOKENS), -100)
    labels[:, -LABELS:] = torch.randint(
        model.config.action_token_begin_idx, VOCABULARY, (1, LABELS), generator=generator
    )
    labels = labels.to(device)
    report = Report(
        "train-logits",
        {
            "hidden_size": width,
            "vocabulary": VOCABULARY,
            "tokens": TOKENS,
            "labels": LABELS,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": device,
            "threads": torch.get_num_threads(),
            "rounds": rounds,
        },
    )
    for head in ("frozen", "trained"):
        model.language_model.lm_head.requires_grad_(head == "trained")
        works = {rows: _step(model, hidden, labels, rows) for rows in ("labels", "all")}
        times = in_turns(works, rounds=rounds, device=device)
        peaks = {rows: _peak(work) for rows, work in works.items()}
        for rows, words in (("labels", "logits of 13 rows"), ("all", "logits of 284 rows")):
            what = f"head and loss, forward and backward, head {head}, {words}"
            report.figures.append(times[rows].figure(f"{head}, {rows}", what))
            report.add(f"{head}, {rows}, peak", peaks[rows] / 2**20, "MiB", f"tensors made: {what}")
        pace = times["all"].median / times["labels"].median
        report.add(f"{head}, time ratio", pace, "x", "all rows / label rows")
        bytes_ratio = peaks["all"] / peaks["labels"]
        report.add(f"{head}, bytes ratio", bytes_ratio, "x", "all rows / label rows")
    if size != "4b":
        report.notes.append(
            f"the hidden size is {width} instead of 2304; the vocabulary is the real one"
        )
    return report


def _head_only(size: str, device: str, dtype: torch.dtype) -> SpatialVLAForConditionalGeneration:
    config = bench_config(size)
    config.text_config.vocab_size = VOCABULARY
    config.action_token_begin_idx = VOCABULARY - config.spatial_token_num
    with default_dtype(dtype), torch.device("meta"):
        model = SpatialVLAForConditionalGeneration(config)
    head = model.language_model.lm_head.to_empty(device=device)
    torch.nn.init.normal_(head.weight, std=0.02)
    return model


def _step(
    model: SpatialVLAForConditionalGeneration, hidden: Tensor, labels: Tensor, rows: Rows
) -> Work:
    def step() -> None:
        leaf = hidden.detach().requires_grad_()
        keep = "labels" if rows == "labels" else 0
        loss, logits = model.grid_tokens.loss_and_logits(leaf, labels, keep)
        del logits
        loss.backward()
        model.language_model.lm_head.weight.grad = None

    return step


def _peak(work: Work) -> int:
    with TensorBytes() as count:
        work()
    return count.peak
