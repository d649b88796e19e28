"""A checkpoint moved to another action grid: its rows interpolated, nothing trained."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..actions.grid import ActionGrid
from ..actions.rebin import rebin
from ..files import appears_whole, even_modes, refuse_used
from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.lora import adapt_to_grid, is_adapter
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..policy.load import load_policy_model
from ..policy.stored import Outputs, run_model
from .checkpoint import write_layout
from .inputs import random_inputs
from .source import find_source

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Resized:
    """What was resized, and how it was checked.

    Attributes:
        out: the new folder.
        source: the checkpoint that was read.
        dtype: of the weights, as stored.
        bins: of the old and of the new grid.
        tokens: action tokens before and after.
        same_edges: whether the new grid cuts where the old one does, so that no row changed.
        head_rows: whether the head has action rows of its own; otherwise it uses the table.
        parameters: of the new checkpoint.
        inputs: what the checks ran on, in words.
        mean_change, max_change: of predicted actions on those inputs, normalised (2 is the whole
            range), by resizing.
    """

    out: Path
    source: Path
    dtype: str
    bins: tuple[tuple[int, ...], tuple[int, ...]]
    tokens: tuple[int, int]
    same_edges: bool
    head_rows: bool
    parameters: int
    inputs: str
    mean_change: float
    max_change: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "out": str(self.out), "source": str(self.source)}


def resize_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    grid: ActionGrid | None = None,
    bins: Sequence[int] | None = None,
    samples: int = 4,
) -> Resized:
    """Interpolate the table, and the head's rows, to another grid and write the checkpoint.

    Tokenizer, configuration and processor grow or shrink along; statistics and intrinsics stay. The
    folder appears only after it was loaded again, passed the canary and gave the answers of the
    model in memory.

    Args:
        source: checkpoint, or a training run that ended in one.
        out: new folder.
        grid: to resize to; of the checkpoint's action space.
        bins: instead of a grid: cut the checkpoint's own distribution into so many bins.
        samples: random inputs of the checks.

    Raises:
        ValueError: an adapter, a grid of another action space or another meaning of zero, `out` in
            use, a model that does not see, or a check that failed.
    """
    out = Path(out)
    refuse_used(out)
    if (grid is None) == (bins is None):
        raise ValueError("give exactly one of a grid and numbers of bins")
    if samples < 1:
        raise ValueError(f"samples is {samples}; at least 1 is needed for the checks")
    folder = find_source(source)
    if is_adapter(folder):
        raise ValueError(
            f"{folder} is an adapter, whose base has other rows: merge it first with "
            f"`spatialvla-ft export {folder} --out DIR`, then resize DIR"
        )
    dtype = stored_dtype(folder)
    processor = SpatialVLAProcessor.from_pretrained(folder)
    old = processor.grid
    new = _new_grid(old, grid, bins)
    model, processor = load_policy_model(folder, dtype=dtype)
    if model.action_head is not None:
        raise ValueError(
            f"{folder} acts by head {model.action_head.kind!r}, which has no tokens: another grid "
            "would change nothing that it does. Resize a checkpoint of grid_tokens"
        )
    inputs = random_inputs(processor, model.config, count=samples)
    tensors = _with_depth(inputs.tensors, model.config)
    before = _actions(processor, model.predict_action(tensors))
    adapt_to_grid(model, old, new)
    processor.set_grid(new)
    outputs = run_model(model, tensors)
    change = np.abs(_actions(processor, outputs.ids) - before)
    tied = model.config.tie_action_head
    with appears_whole(out) as scratch:
        write_layout(model, processor, scratch)
        even_modes(scratch)
        parameters = sum(p.numel() for p in model.parameters())
        del model
        _check(scratch, dtype, new, tensors, outputs)
    return Resized(
        out=out,
        source=folder,
        dtype=str(dtype).removeprefix("torch."),
        bins=(old.bins, new.bins),
        tokens=(old.total, new.total),
        same_edges=new.same_edges(old),
        head_rows=not tied,
        parameters=parameters,
        inputs=inputs.origin,
        mean_change=float(change.mean()),
        max_change=float(change.max()),
    )


def stored_dtype(folder: Path) -> torch.dtype:
    """What the weights are stored as; float32, which holds them all, where they differ."""
    found = set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(str(file), "pt") as opened:
            found |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    return DTYPES.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _new_grid(old: ActionGrid, grid: ActionGrid | None, bins: Sequence[int] | None) -> ActionGrid:
    """The grid to resize to, of the old one's action space."""
    if grid is None:
        assert bins is not None
        return rebin(old, bins)
    if grid.slots != old.slots:
        raise ValueError(
            f"the grid is for actions {grid.action_space.names}, the checkpoint for "
            f"{old.action_space.names}: another action space has to be learnt, with `spatialvla-ft "
            "train` and grid.file"
        )
    if grid.zero_bin != old.zero_bin:
        with_zero = "the grid" if grid.zero_bin else "the checkpoint's grid"
        raise ValueError(
            f"only {with_zero} has zero bins, which need statistics that are symmetric around no "
            "motion: fit a grid of the checkpoint's kind, or adapt with `spatialvla-ft train` and "
            "grid.file, which computes them"
        )
    return grid


def _with_depth(tensors: dict[str, Tensor], config: SpatialVLAConfig) -> dict[str, Tensor]:
    """Prompts that bring depth along: estimating it has no part in what a grid changes."""
    if not config.use_vision_zoe or "depth" in tensors:
        return tensors
    pixels = tensors["pixel_values"]
    shape = (*pixels.shape[:-3], *pixels.shape[-2:])
    return {**tensors, "depth": torch.linspace(0.3, 1.5, math.prod(shape)).reshape(shape)}


def _actions(processor: SpatialVLAProcessor, ids: Tensor) -> np.ndarray:
    """(n, dim) normalised."""
    absolute = ids.cpu().numpy().reshape(-1, processor.grid.tokens)
    return np.asarray(processor.action_tokenizer.decode(absolute), np.float64)


def _check(
    folder: Path,
    dtype: torch.dtype,
    grid: ActionGrid,
    inputs: dict[str, Tensor],
    expected: Outputs,
) -> None:
    """ValueError unless the written folder holds the grid and answers like the model in memory."""
    model, processor = load_policy_model(folder, dtype=dtype)
    found = run_model(model, inputs)
    faults = []
    if processor.grid != grid:
        faults.append(f"its grid is {processor.grid}, not {grid}")
    if not torch.equal(found.ids, expected.ids):
        faults.append(f"{int((found.ids != expected.ids).sum())} predicted tokens differ")
    elif not torch.equal(found.logits, expected.logits):
        worst = float((found.logits - expected.logits).abs().max())
        faults.append(f"logits differ by up to {worst:.2g}")
    if faults:
        raise ValueError(
            f"the written checkpoint, loaded again, is another one ({json.dumps(faults)}): nothing "
            "was kept. This is a fault of the toolkit, please report it"
        )
