"""Probability over an action space that is cut into cells, and back to an action.

A group of an action, such as a translation, is a point in a small box. `VoxelGrid` lays a regular
lattice over the box, padded so that a target at its edge has cells on both sides; `Scattered` takes
any cells, such as those of an action grid in polar coordinates. Both make a soft target around a
recorded point, p(cell) ~ exp(-|cell - point|^2 / (2 sigma^2)), both give cross entropy with it, and
both turn logits back into a point.

On a lattice the target is a product of one vector per axis, and so is a window about the best cell:
neither is ever written out as a volume. Everything is float32, whatever type the logits have.

Shape letters: n points, d axes (1 to 3), C cells, X, Y, Z cells along an axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..actions.grid import ActionGrid

Mode = Literal["local", "argmax", "expectation"]
"""`argmax` is the best cell's centre; `expectation` the mean of all, which lies between two modes;
`local` the mean of the cells near the best one, which does not."""

WINDOW = 2.5
"""Half side of the window of `local`, in sigmas: 99 % of a soft target lies in it."""
WINDOW_CELLS = 2
"""The same in cells, where there is no sigma: 5 cells a side."""


def in_float32(work: Callable[..., Any]) -> Callable[..., Any]:
    """Also under autocast, which would have the sums over cells in bfloat16."""

    @wraps(work)
    def exact(self: Any, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(logits.device.type, enabled=False):
            return work(self, logits.float(), *args, **kwargs)

    return exact


class Cells(Protocol):
    """Cells of a group of action numbers, as a head uses them."""

    size: int
    dim: int

    def points(self) -> Float64[np.ndarray, "C d"]:
        """Centre of every cell, in the order of the logits."""
        ...

    def soft_target(
        self, logits: Float[Tensor, "n C"], points: Float[Tensor, "n d"], sigma: float
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """(cross entropy with the soft target of the points, entropy of that target), nats."""
        ...

    def read(
        self, logits: Float[Tensor, "n C"], mode: Mode, reach: float | None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """(points, standard deviation of the whole distribution along each axis)."""
        ...


@dataclass(frozen=True, init=False)
class VoxelGrid:
    """A regular lattice over a box of normalised action numbers.

    Attributes:
        bins: cells along each axis.
        low, high: the box, before padding.
        pad: what is added on both sides of an axis that is not periodic; 2 sigma and more keep a
            target at the edge from being pulled inside.
        periodic: axes whose `low` and `high` are the same place, such as a full turn.
    """

    bins: tuple[int, ...] = (48, 48, 24)
    low: float = -1.0
    high: float = 1.0
    pad: float = 0.0
    periodic: tuple[bool, ...] = (False, False, False)

    def __init__(
        self,
        bins: Sequence[int] = (48, 48, 24),
        *,
        low: float = -1.0,
        high: float = 1.0,
        pad: float = 0.0,
        periodic: Sequence[bool] | None = None,
    ) -> None:
        cells = tuple(int(n) if float(n).is_integer() else 0 for n in bins)
        turns = (False,) * len(cells) if periodic is None else tuple(bool(p) for p in periodic)
        if not 1 <= len(cells) <= 3 or min(cells) < 2:
            raise ValueError(f"bins must be 1 to 3 numbers of at least 2, got {tuple(bins)}")
        if len(turns) != len(cells):
            raise ValueError(f"periodic must say one thing per axis, {len(cells)}, got {turns}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low must be below high, got {low} and {high}")
        if not (math.isfinite(pad) and pad >= 0):
            raise ValueError(f"pad must be 0 or more, got {pad}")
        for name, value in (
            ("bins", cells),
            ("low", float(low)),
            ("high", float(high)),
            ("pad", float(pad)),
            ("periodic", turns),
        ):
            object.__setattr__(self, name, value)

    @property
    def dim(self) -> int:
        """Number of axes."""
        return len(self.bins)

    @property
    def size(self) -> int:
        """Number of cells, C."""
        return math.prod(self.bins)

    @property
    def centres(self) -> tuple[Float64[np.ndarray, " X"], ...]:
        """Cell centres along each axis; a periodic axis holds `low` and not `high`."""
        first, last = self.low - self.pad, self.high + self.pad
        return tuple(
            np.linspace(self.low, self.high, n, endpoint=False)
            if turns
            else np.linspace(first, last, n)
            for n, turns in zip(self.bins, self.periodic, strict=True)
        )

    @property
    def steps(self) -> tuple[float, ...]:
        """Distance of neighbouring centres along each axis."""
        return tuple(float(c[1] - c[0]) for c in self.centres)

    # ---------------------------------------------------------------- for anybody

    def encode(self, points: Any, sigma: float) -> Any:
        """Soft targets (n, *bins) float32 that sum to 1; one-hot at the nearest cell for sigma 0.

        Args:
            points: (n, d), tensor or array, as the answer will be.
            sigma: of the Gaussian about each point, in the units of the box.

        Raises:
            ValueError: another shape, not finite, or a negative sigma.
        """
        rows = self._points(points)
        target = self._outer(self._along(rows, _sigma(sigma)))
        return target if isinstance(points, Tensor) else target.numpy()

    def decode(self, logits: Any, mode: Mode = "argmax", *, reach: float | None = None) -> Any:
        """Points (n, d) float32 from logits (n, *bins); see `Mode`.

        Args:
            logits: (n, *bins), tensor or array, as the answer will be.
            mode: how.
            reach: half side of the window of `local`; None takes two cells on each side.

        Raises:
            ValueError: another shape, NaN, or no such mode.
        """
        rows = _tensor(logits)
        if tuple(rows.shape[1:]) != self.bins:
            raise ValueError(f"logits must be (n, {self.bins}), got {tuple(rows.shape)}")
        if bool(torch.isnan(rows).any()):
            raise ValueError(f"logits hold NaN in row {_first_bad(torch.isnan(rows))}")
        best = rows.flatten(1).amax(-1) if len(rows) else rows.flatten(1).sum(-1)
        if bool(torch.isinf(best).any()):
            row = _first_bad(torch.isinf(best)[:, None])
            raise ValueError(f"logits of row {row} have no best cell: the greatest is {best[row]}")
        points, _ = self.read(rows.flatten(1), mode, reach)
        return points if isinstance(logits, Tensor) else points.numpy()

    # ---------------------------------------------------------------- for a head

    def points(self) -> Float64[np.ndarray, "C d"]:
        """Centre of every cell, in the order of the logits."""
        return np.stack(np.meshgrid(*self.centres, indexing="ij"), -1).reshape(-1, self.dim)

    @in_float32
    def soft_target(
        self, logits: Float[Tensor, "n C"], points: Float[Tensor, "n d"], sigma: float
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """(cross entropy with the soft target of the points, entropy of that target), nats."""
        axes = self._along(points.float(), sigma)
        told = logits.view(-1, *self.bins)
        for along in reversed(axes):  # the last axis first: what is left shrinks the fastest
            told = torch.einsum("n...x,nx->n...", told, along)
        entropy = sum(torch.special.entr(along).sum(-1) for along in axes)
        return logits.logsumexp(-1) - told, entropy

    @in_float32
    def read(
        self, logits: Float[Tensor, "n C"], mode: Mode, reach: float | None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """(points, standard deviation of the whole distribution along each axis)."""
        check_mode(mode)
        chance = logits.softmax(-1)
        centres = self._tensors(chance.device)
        best = self._centres_of(chance.argmax(-1), centres)
        volume = chance.view(-1, *self.bins)
        sides = [_marginal(volume, axis) for axis in range(self.dim)]
        pairs = list(enumerate(zip(sides, centres, strict=True)))
        means = torch.stack([self._mean(a, side, c) for a, (side, c) in pairs], -1)
        spread = torch.stack([self._spread(a, s, c, means[:, a]) for a, (s, c) in pairs], -1)
        if mode == "argmax":
            return best, spread
        if mode == "expectation":
            return means, spread
        near = [
            (self._apart(a, c, best[:, a : a + 1]).abs() <= self._reach(a, reach)).float()
            for a, (_, c) in pairs
        ]
        found = []
        for axis, (_, centre) in pairs:
            side = self._windowed(volume, near, axis)
            away = self._apart(axis, centre, best[:, axis : axis + 1])
            found.append(best[:, axis] + (side * away).sum(-1) / side.sum(-1))
        return self._home(torch.stack(found, -1)), spread

    # ---------------------------------------------------------------- along one axis

    def _tensors(self, device: torch.device) -> list[Tensor]:
        return [torch.as_tensor(c, dtype=torch.float32, device=device) for c in self.centres]

    def _points(self, points: Any) -> Float[Tensor, "n d"]:
        rows = _tensor(points).float()
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"points must be (n, {self.dim}), got {tuple(rows.shape)}")
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"points are not finite in row {_first_bad(~torch.isfinite(rows))}")
        return rows

    def _apart(self, axis: int, centres: Tensor, points: Float[Tensor, "n 1"]) -> Tensor:
        """(n, X) from the points to the centres, the short way round on a periodic axis."""
        away = centres - points
        if not self.periodic[axis]:
            return away
        period = self.high - self.low
        return torch.remainder(away + period / 2, period) - period / 2

    def _along(self, points: Tensor, sigma: float) -> list[Float[Tensor, "n X"]]:
        """The factors of the soft target."""
        found = []
        for axis, centres in enumerate(self._tensors(points.device)):
            squared = self._apart(axis, centres, points[:, axis : axis + 1]).square()
            if sigma == 0:
                found.append(torch.zeros_like(squared).scatter_(1, squared.argmin(1, True), 1.0))
            else:
                found.append((-squared / (2 * sigma**2)).softmax(-1))
        return found

    @staticmethod
    def _outer(axes: Sequence[Tensor]) -> Tensor:
        product = axes[0]
        for along in axes[1:]:
            product = product[..., None] * along.view(
                len(along), *(1,) * (product.ndim - 1), along.shape[1]
            )
        return product

    def _centres_of(self, cells: Tensor, centres: Sequence[Tensor]) -> Float[Tensor, "n d"]:
        index = torch.unravel_index(cells, self.bins)
        return torch.stack([c[i] for c, i in zip(centres, index, strict=True)], -1)

    def _mean(self, axis: int, side: Tensor, centres: Tensor) -> Float[Tensor, " n"]:
        if not self.periodic[axis]:
            return side @ centres
        turn = 2 * math.pi / (self.high - self.low)
        angle = (centres - self.low) * turn
        around = torch.atan2(side @ angle.sin(), side @ angle.cos())
        return self._wrapped(around / turn + self.low)

    def _spread(self, axis: int, side: Tensor, centres: Tensor, mean: Tensor) -> Tensor:
        away = self._apart(axis, centres, mean[:, None])
        return (side * away.square()).sum(-1).clamp_min(0).sqrt()

    def _reach(self, axis: int, reach: float | None) -> float:
        """Never less than one cell: a best cell alone would be `argmax`."""
        step = self.steps[axis]
        return (WINDOW_CELLS * step if reach is None else max(reach, step)) + 1e-5 * step

    def _windowed(self, volume: Tensor, near: Sequence[Tensor], axis: int) -> Float[Tensor, "n X"]:
        """Probability along an axis of what lies inside the window."""
        kept = volume
        for other in range(self.dim - 1, -1, -1):
            if other > axis:
                kept = torch.einsum("n...x,nx->n...", kept, near[other])
        for other in range(axis):
            kept = torch.einsum("nx...,nx->n...", kept, near[other])
        return kept * near[axis]

    def _home(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Back into [low, high) on periodic axes."""
        if not any(self.periodic):
            return points
        turns = torch.tensor(self.periodic, device=points.device)
        return torch.where(turns, self._wrapped(points), points)

    def _wrapped(self, points: Tensor) -> Tensor:
        """Into [low, high); what is a hair below low would be rounded to high."""
        found = torch.remainder(points - self.low, self.high - self.low) + self.low
        return torch.where(found < self.high, found, self.low)


class Scattered:
    """Cells anywhere in the box of a group, by their centres.

    Args:
        centres: (C, d), normalised.
    """

    def __init__(self, centres: Any) -> None:
        rows = np.asarray(centres, np.float64)
        if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
            raise ValueError(f"centres must be (C, d) finite numbers, 2 or more, got {rows.shape}")
        self.centres = rows
        self.size, self.dim = rows.shape

    def points(self) -> Float64[np.ndarray, "C d"]:
        """Centre of every cell, in the order of the logits."""
        return self.centres

    def _tensor(self, device: torch.device) -> Float[Tensor, "C d"]:
        return torch.as_tensor(self.centres, dtype=torch.float32, device=device)

    @in_float32
    def soft_target(
        self, logits: Float[Tensor, "n C"], points: Float[Tensor, "n d"], sigma: float
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """(cross entropy with the soft target of the points, entropy of that target), nats."""
        # By differences: of squares that are subtracted, near cells keep no digit.
        squared = torch.cdist(
            points.float(),
            self._tensor(logits.device),
            compute_mode="donot_use_mm_for_euclid_dist",
        ).square()
        if sigma == 0:
            target = torch.zeros_like(squared).scatter_(1, squared.argmin(1, True), 1.0)
        else:
            target = (-squared / (2 * sigma**2)).softmax(-1)
        told = (logits * target).sum(-1)
        return logits.logsumexp(-1) - told, torch.special.entr(target).sum(-1)

    @in_float32
    def read(
        self, logits: Float[Tensor, "n C"], mode: Mode, reach: float | None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """(points, standard deviation of the whole distribution along each axis)."""
        check_mode(mode)
        chance, centres = logits.softmax(-1), self._tensor(logits.device)
        best = centres[chance.argmax(-1)]
        mean = chance @ centres
        spread = (chance @ centres.square() - mean.square()).clamp_min(0).sqrt()
        if mode != "local":
            return best if mode == "argmax" else mean, spread
        apart = (best[:, None] - centres).abs().amax(-1)
        near = chance * (apart <= (0.0 if reach is None else reach))
        return near @ centres / near.sum(-1, keepdim=True), spread


def cells_of_grid(grid: ActionGrid, start: int, stop: int) -> Scattered:
    """The cells of an action grid's slot, e.g. those of theta, phi and r, as points of the action.

    Args:
        grid: of the action space.
        start: the slot's first number of an action.
        stop: the number after its last.
    """
    found = [i for i, slot in enumerate(grid.slots) if (slot.start, slot.stop) == (start, stop)]
    if not found:
        raise ValueError(f"the grid has no slot for numbers {start} to {stop - 1} of an action")
    slot = found[0]
    ids = np.tile(np.array(grid.offsets)[None], (grid.counts[slot], 1))
    ids[:, slot] += np.arange(grid.counts[slot])
    return Scattered(np.asarray(grid.decode(ids))[:, start:stop])


def check_mode(mode: str) -> None:
    """ValueError for a way to decode that there is not."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}; it must be one of {sorted(get_args(Mode))}")


def _sigma(sigma: float) -> float:
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma must be 0 or more, got {sigma}")
    return float(sigma)


def _tensor(values: Any) -> Tensor:
    """Of arrays of any kind, those that are read-only or run backwards too."""
    return values if isinstance(values, Tensor) else torch.tensor(np.array(values))


def _marginal(volume: Tensor, axis: int) -> Float[Tensor, "n X"]:
    others = [i + 1 for i in range(volume.ndim - 1) if i != axis]
    return volume.sum(others) if others else volume


def _first_bad(bad: Tensor) -> int:
    return int(bad.flatten(1).any(-1).nonzero()[0, 0])
