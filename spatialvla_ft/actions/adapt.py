"""Spatial embedding adaptation: carry learned token embeddings to a new grid (paper section 3.4).

The embeddings of the old grid are values of a field at the bins' midpoints, (theta, phi, r) for
translation and (roll, pitch, yaw) for rotation. The new rows are that field, interpolated linearly
on every axis, at the new midpoints.

Every slot of the new grid learns from the old slot that means the same: of the same name (an arm's
own translation, joint 3 from joint 3), else the first of the same role (both arms' translations
from a single arm's). A joint has only its own name: joint 2 knows nothing of joint 5.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .axes import F64
from .grid import ActionGrid
from .layout import Slot

if TYPE_CHECKING:
    import torch


def adapt_embeddings(
    table: Any, old_grid: ActionGrid, new_grid: ActionGrid, *, fresh: Any = None
) -> Any:
    """Rows of a token table (embeddings or lm_head) for the bins of another grid.

    phi is periodic with 2 pi; the other axes take their outermost midpoint's value beyond it.
    Gripper rows are copied. Grids with the same edges give the table back bit by bit.

    Args:
        table: (old_grid.total, d), a torch tensor or a NumPy array, any float dtype.
        old_grid: the grid whose relative ids number the rows of `table`.
        new_grid: the grid to adapt to; its bins may be more, fewer or elsewhere, and its action
            space another one.
        fresh: (new_grid.total, d) first rows for slots that the old grid has nothing for.

    Returns:
        (new_grid.total, d), new, of the kind, device and dtype of `table`; computed in float32
        (float64 for a float64 table).

    Raises:
        ValueError: if `table` has other than one row per id of `old_grid`, or a slot is new and
            `fresh` is not given.
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
    parts = []
    for index, slot in enumerate(new_grid.slots):
        source = counterpart(slot, old_grid)
        if source is None:
            if fresh is None:
                raise ValueError(
                    f"the old grid has no slot for {slot.name!r} (it has "
                    f"{[old.name for old in old_grid.slots]}); pass first rows as fresh="
                )
            first = new_grid.offsets[index]
            rows = torch.as_tensor(fresh)[first : first + new_grid.counts[index]]
            parts.append(rows.to(device=tensor.device, dtype=tensor.dtype))
            continue
        first = old_grid.offsets[source]
        rows = tensor[first : first + old_grid.counts[source]]
        if slot.shape != "switch":
            old_slot = old_grid.slots[source]
            rows = _interpolate(rows, old_slot, old_grid, slot, new_grid)
        parts.append(rows)
    result = torch.cat(parts)
    return result if isinstance(table, torch.Tensor) else result.numpy()


def counterpart(slot: Slot, grid: ActionGrid) -> int | None:
    """Index of the slot of `grid` that means the same as `slot`; None if there is none."""
    alike = [
        index
        for index, old in enumerate(grid.slots)
        if (old.role, old.shape, old.dim) == (slot.role, slot.shape, slot.dim)
    ]
    named = [index for index in alike if grid.slots[index].name == slot.name]
    if named:
        return named[0]
    return alike[0] if alike and slot.role != "joint" else None


def _interpolate(
    rows: torch.Tensor, old_slot: Slot, old_grid: ActionGrid, slot: Slot, grid: ActionGrid
) -> torch.Tensor:
    """Rows of a slot, the last axis fastest, to the midpoints of another slot.

    Bit by bit the same where no edge differs.
    """
    import torch

    pairs = list(zip(old_slot.axes, slot.axes, strict=True))
    if all(np.array_equal(old_grid.edges[old], grid.edges[new]) for old, new in pairs):
        return rows
    wide = rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
    field = wide.reshape(*(len(old_grid.midpoints[old]) for old, _ in pairs), rows.shape[-1])
    for dim, (old, new) in enumerate(pairs):
        periodic = slot.shape == "sphere" and dim == 1
        low, high, weight = _neighbours(
            old_grid.midpoints[old],
            grid.midpoints[new],
            period=2 * math.pi if periodic else None,
        )
        shape = [1] * field.ndim
        shape[dim] = -1
        w = torch.as_tensor(weight, dtype=field.dtype, device=field.device).reshape(shape)
        lower = field.index_select(dim, torch.as_tensor(low, device=field.device))
        upper = field.index_select(dim, torch.as_tensor(high, device=field.device))
        field = lower * (1 - w) + upper * w
    return field.reshape(-1, rows.shape[-1]).to(rows.dtype)


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
