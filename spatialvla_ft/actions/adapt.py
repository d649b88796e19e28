"""Spatial embedding adaptation: carry learned token embeddings to a new grid (paper section 3.4).

The embeddings of the old grid are values of a field at the bins' midpoints, (theta, phi, r) for
translation and (roll, pitch, yaw) for rotation. The new rows are that field, interpolated
trilinearly, at the new midpoints. On a tensor grid that is one linear interpolation per axis.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .axes import F64, ROTATION_AXES, TRANSLATION_AXES
from .grid import ActionGrid

if TYPE_CHECKING:
    import torch


def adapt_embeddings(table: Any, old_grid: ActionGrid, new_grid: ActionGrid) -> Any:
    """Rows of a token table (embeddings or lm_head) for the bins of another grid.

    phi is periodic with 2 pi; the other axes take their outermost midpoint's value beyond it.
    Gripper rows are copied. Grids with the same edges give the table back bit by bit.

    Args:
        table: (old_grid.total, d), a torch tensor or a NumPy array, any float dtype.
        old_grid: the grid whose relative ids number the rows of `table`.
        new_grid: the grid to adapt to; its bins may be more, fewer or elsewhere.

    Returns:
        (new_grid.total, d), new, of the kind, device and dtype of `table`; computed in float32
        (float64 for a float64 table).

    Raises:
        ValueError: if `table` has other than one row per id of `old_grid`.
    """
    import torch

    tensor = table.detach() if isinstance(table, torch.Tensor) else torch.as_tensor(table)
    if tensor.ndim != 2 or tensor.shape[0] != old_grid.total:
        raise ValueError(
            f"table must have shape ({old_grid.total}, d), one row per id of the old grid with "
            f"bins {old_grid.bins}; got {tuple(tensor.shape)}. Pass the action rows alone"
        )
    if not tensor.is_floating_point():
        raise ValueError(f"table must hold floating-point numbers, got {tensor.dtype}")
    if old_grid.same_edges(new_grid):
        result = tensor.clone()
    else:
        wide = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        start, end = old_grid.offsets[1:]
        parts = [
            _interpolate(wide[:start], TRANSLATION_AXES, old_grid, new_grid).to(tensor.dtype),
            _interpolate(wide[start:end], ROTATION_AXES, old_grid, new_grid).to(tensor.dtype),
            tensor[end:],
        ]
        result = torch.cat(parts)
    return result if isinstance(table, torch.Tensor) else result.numpy()


def _interpolate(
    rows: torch.Tensor, axes: tuple[str, ...], old_grid: ActionGrid, new_grid: ActionGrid
) -> torch.Tensor:
    """Rows (n_a * n_b * n_c, d), the last axis fastest, to the new grid's midpoints."""
    import torch

    field = rows.reshape(*(len(old_grid.midpoints[axis]) for axis in axes), rows.shape[-1])
    for dim, axis in enumerate(axes):
        period = 2 * math.pi if axis == "phi" else None
        low, high, weight = _neighbours(
            old_grid.midpoints[axis], new_grid.midpoints[axis], period=period
        )
        shape = [1] * field.ndim
        shape[dim] = -1
        w = torch.as_tensor(weight, dtype=field.dtype, device=field.device).reshape(shape)
        lower = field.index_select(dim, torch.as_tensor(low, device=field.device))
        upper = field.index_select(dim, torch.as_tensor(high, device=field.device))
        field = lower * (1 - w) + upper * w
    return field.reshape(-1, rows.shape[-1])


def _neighbours(
    old: F64, new: F64, *, period: float | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], F64]:
    """For each new midpoint: the old bins below and above it, and the weight of the upper one."""
    index = np.arange(len(old))
    if period is not None:
        old = np.concatenate([[old[-1] - period], old, [old[0] + period]])
        index = np.concatenate([[index[-1]], index, [index[0]]])
    elif len(old) == 1:
        zeros = np.zeros(len(new), dtype=np.int64)
        return zeros, zeros, np.zeros(len(new))
    low = np.clip(np.searchsorted(old, new, side="right") - 1, 0, len(old) - 2)
    weight = np.clip((new - old[low]) / (old[low + 1] - old[low]), 0.0, 1.0)
    return index[low], index[low + 1], weight
