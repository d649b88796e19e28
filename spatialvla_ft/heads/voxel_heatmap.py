"""ActionMap: a heatmap over the action space for every step (showlab, 2026).

A translation is a joint probability over the cells of a box of x, y, z, a rotation one over roll,
pitch, yaw, a joint one over its own line, a gripper a logit. Targets are soft, about the recorded
action, so that neighbouring cells learn together, and the answer is read about the best cell, so
that of two good ways one is taken rather than what lies between them.

A full map of 48 x 48 x 24 cells from 1,024 features holds 57 M parameters. `maps: low_rank` makes a
map's logits a sum of R products of one curve per axis instead: at the same sizes and R = 32 there
are 4 M. What that costs in accuracy is in `docs/benchmarks.md`.

Shape letters as in `parallel.py`; C cells, n = B * K rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..actions.grid_io import grid_from_dict
from ..actions.layout import Slot
from .parallel import ParallelHead, mean_of
from .protocol import HeadSizes, Prediction
from .voxels import WINDOW, Cells, VoxelGrid, cells_of_grid

Maps = Literal["full", "low_rank"]

DEFAULT_BINS = {"translation": (32, 32, 16), "rotation": (16, 16, 16)}
LINE_BINS = 256
SQUEEZE = {"translation": 4, "rotation": 8}
"""A full map is made of W / 4 features for a translation, W / 8 for a rotation, as published."""


class VoxelHeatmap(ParallelHead):
    """Heatmaps over the action space, in the place of tokens.

    Args:
        sizes: what it must fit.
        bins: {"translation": (32, 32, 16), "rotation": (16, 16, 16), "joint": (256,)}, or a part.
        sigma: of the soft targets, normalised; 0 for one-hot targets.
        pad: what the boxes have beyond [-1, 1] on either side; None for 2.5 sigma.
        periodic: names of numbers that come round, whose normalised range is a full turn.
        cells: None for even cells; a grid (`grid_to_dict`) for the cells of its tokens.
        maps: "full" or "low_rank".
        rank: R of low-rank maps.
        width, blocks: of the trunk.
    """

    kind: ClassVar[str] = "voxel_heatmap"
    has_maps: ClassVar[bool] = True
    modes: ClassVar[tuple[str, ...]] = ("local", "argmax", "expectation")

    def __init__(
        self,
        sizes: HeadSizes,
        bins: Mapping[str, Sequence[int]] | None = None,
        sigma: float = 0.1,
        pad: float | None = None,
        periodic: Sequence[str] = (),
        cells: Mapping[str, Any] | None = None,
        maps: Maps = "full",
        rank: int = 32,
        width: int | None = None,
        blocks: int = 2,
    ) -> None:
        super().__init__(sizes, width, blocks)
        if not sigma >= 0:
            raise ValueError(f"sigma must be 0 or more, got {sigma}")
        if maps not in ("full", "low_rank"):
            raise ValueError(f"maps is {maps!r}; it must be 'full' or 'low_rank'")
        unknown = sorted(set(periodic) - set(sizes.space.names))
        if unknown:
            raise ValueError(f"periodic names {unknown}; an action has {list(sizes.space.names)}")
        odd = sorted(set(bins or {}) - {"translation", "rotation", "joint"})
        if odd:
            raise ValueError(f"bins names {odd}; it knows translation, rotation and joint")
        self.sigma = float(sigma)
        self.pad = WINDOW * self.sigma if pad is None else pad
        self.mapped: list[Slot] = [slot for slot in self.slots if slot.shape != "switch"]
        idle = {"bins": bins, "periodic": periodic, "maps": maps != "full"}
        if cells is not None and any(idle.values()):
            names = [name for name, value in idle.items() if value]
            raise ValueError(f"cells say themselves where they lie: leave out {', '.join(names)}")
        grid = None if cells is None else grid_from_dict(cells)
        if grid is not None and grid.slots != self.slots:
            raise ValueError(
                f"cells are of a grid for actions {grid.action_space.names}, the head is for "
                f"{sizes.space.names}"
            )
        self.cells: list[Cells] = [
            self._even(slot, bins or {}, periodic)
            if grid is None
            else cells_of_grid(grid, slot.start, slot.stop)
            for slot in self.mapped
        ]
        self.outs = nn.ModuleDict(
            {
                slot.name: _map_of(slot, cells, self.width, maps, rank)
                for slot, cells in zip(self.mapped, self.cells, strict=True)
            }
        )
        self.gripper = nn.Linear(self.width, len(self.grippers)) if self.grippers else None

    def _even(
        self, slot: Slot, bins: Mapping[str, Sequence[int]], periodic: Sequence[str]
    ) -> VoxelGrid:
        names = self.sizes.space.names[slot.start : slot.stop]
        default = DEFAULT_BINS.get(slot.role, (LINE_BINS,)) if slot.dim == 3 else (LINE_BINS,)
        asked = tuple(bins.get(slot.role if slot.dim == 3 else "joint", default))
        if len(asked) != slot.dim:
            raise ValueError(f"bins of {slot.name} must be {slot.dim} numbers, got {asked}")
        return VoxelGrid(asked, pad=self.pad, periodic=[name in periodic for name in names])

    def logits(self, hidden: Float[Tensor, "B R D"]) -> tuple[dict[str, Tensor], Tensor]:
        """({slot: (n, C)}, (B, K, G) of the grippers), float32 for what follows."""
        features = self.features(hidden)
        grippers = features[..., :0] if self.gripper is None else self.gripper(features)
        maps = {name: out(features.flatten(0, 1)).float() for name, out in self.outs.items()}
        return maps, grippers.float()

    def loss(
        self,
        hidden: Float[Tensor, "B R D"],
        actions: Float[Tensor, "B K A"],
        valid: Bool[Tensor, "B K A"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Cross entropy of every map plus that of the grippers; metrics tell what is left of it.

        A soft target has an entropy that no map can get below: `kl/SLOT` is without it.
        """
        maps, grippers = self.logits(hidden)
        loss, metrics = self.gripper_loss(grippers, actions, valid)
        for slot, cells in zip(self.mapped, self.cells, strict=True):
            where = slice(slot.start, slot.stop)
            points = actions[..., where].flatten(0, 1).float()
            counts = None if valid is None else valid[..., where].all(-1).flatten()
            if counts is not None:  # what does not count may hold anything
                points = torch.where(counts[:, None], points, 0.0)
            cross, entropy = cells.soft_target(maps[slot.name], points, self.sigma)
            loss = loss + mean_of(cross, counts)
            metrics[f"kl/{slot.name}"] = mean_of(cross - entropy, counts).detach()
        return loss, metrics

    def raw(self, hidden: Float[Tensor, "B R D"]) -> Float[Tensor, "B n"]:
        """Logarithms of all probabilities, and the grippers' logits."""
        maps, grippers = self.logits(hidden)
        found = [m.log_softmax(-1).view(len(hidden), -1) for m in maps.values()]
        return torch.cat([*found, grippers.flatten(1)], -1)

    def predict(
        self, hidden: Float[Tensor, "B R D"], mode: str | None = None, *, maps: bool = False
    ) -> Prediction:
        """Actions by `local` (default), `argmax` or `expectation`, and one standard deviation.

        Args:
            hidden: of the placeholders.
            mode: how the maps are read.
            maps: also give the probabilities, (B, K, X, Y, Z) or (B, K, C) of scattered cells.
        """
        logits, grippers = self.logits(hidden)
        batch, chunk = len(hidden), self.sizes.chunk
        moves, spread, chances = [], [], {}
        reach = WINDOW * self.sigma if self.sigma else None
        for slot, cells in zip(self.mapped, self.cells, strict=True):
            own = logits[slot.name]
            points, apart = cells.read(own, mode or self.modes[0], reach)  # type: ignore[arg-type]
            moves.append(points.view(batch, chunk, -1))
            spread.append(apart.view(batch, chunk, -1))
            if maps:
                shape = cells.bins if isinstance(cells, VoxelGrid) else (cells.size,)
                chances[slot.name] = own.softmax(-1).view(batch, chunk, *shape)
        none = grippers.new_empty(batch, chunk, 0)
        return Prediction(
            self.whole(torch.cat([none, *moves], -1), grippers),
            self.whole_spread(torch.cat([none, *spread], -1), grippers),
            chances if maps else None,
        )


class LowRankMap(nn.Module):
    """Logits over a lattice as a sum of R products of curves, one along each axis."""

    def __init__(self, width: int, bins: Sequence[int], rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be 1 or more, got {rank}")
        self.bins, self.rank = tuple(bins), rank
        self.curves = nn.ModuleList(nn.Linear(width, rank * n) for n in self.bins)

    def forward(self, x: Float[Tensor, "n W"]) -> Float[Tensor, "n C"]:
        """Logits of every cell."""
        curves = [c(x).unflatten(-1, (self.rank, -1)) for c in self.curves]
        if len(curves) == 1:
            return curves[0].sum(1)
        if len(curves) == 2:
            return torch.einsum("nrx,nry->nxy", *curves).flatten(1)
        x_RX, y_RY, z_RZ = curves
        face = torch.einsum("nrx,nry->nrxy", x_RX, y_RY).flatten(2)
        return torch.bmm(face.transpose(1, 2), z_RZ).flatten(1)


def _map_of(slot: Slot, cells: Cells, width: int, maps: Maps, rank: int) -> nn.Module:
    if maps == "low_rank" and isinstance(cells, VoxelGrid) and cells.dim == 3:
        return LowRankMap(width, cells.bins, rank)
    squeeze = max(1, width // SQUEEZE.get(slot.role, 4))
    return nn.Sequential(nn.Linear(width, squeeze), nn.ReLU(), nn.Linear(squeeze, cells.size))
