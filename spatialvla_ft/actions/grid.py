"""`ActionGrid`: normalised actions to a few tokens per step and back (paper section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from .axes import F64, like, to_numpy
from .bins import check_min_sigma, gaussian_bins, quantile_bins, uniform_bins
from .codec import I64, SlotCodec
from .grid_checks import Decoding, Kind, check_edges, check_means, check_mode, check_zero
from .layout import (
    Slot,
    axis_ranges,
    check_actions,
    fitted_values,
    per_axis,
    slot_totals,
    slots_of,
    some_actions,
    zero_axes,
)
from .quantiles import Weighted, bin_means, bin_sums
from .spaces import ActionSpace, end_effector_delta

_BLOCK = 8192  # rows per pass, so that temporaries stay in the cache
_FEW = 8  # up to so many rows, plain Python beats the overhead of NumPy calls


class ActionGrid:
    """Bins of every axis of an action space, and the token ids that they make.

    One arm, the default space, has bins of theta, phi, r, roll, pitch, yaw and the gripper, and
    three tokens per action. With n_a bins on axis a, relative ids are: translation (theta * n_phi +
    phi) * n_r + r; rotation T + (roll * n_pitch + pitch) * n_yaw + yaw with T translation ids;
    gripper T + R (closed) and T + R + 1 (open). The default sizes give 0..4095, 4096..8191, 8192
    and 8193.

    Other spaces have one such slot per group and one per joint (see `layout.py`); the ids of the
    slots follow one another in the order of the action.

    Attributes:
        action_space: what the dimensions are.
        slots: the tokens of an action, in order.
        edges: {axis: (n + 1,) float64} bin edges; theta, phi in radians, the rest normalised.
        means: {axis: (n,) float64} expected value inside each bin.
        midpoints: {axis: (n,) float64}.
        decoding: "mean" or "midpoint", what `decode` uses unless told.
        kind: where the edges come from; "gaussian" in a released checkpoint.
        gaussians: the fits {axis: {"mu", "sigma"}} behind the edges, or None.
        min_sigma: lower limit that was put on every sigma.
        zero_bin: whether the action of no motion decodes to exactly that.
        bins: bins of every axis, and 2 of every gripper, in order.
        counts: token ids of each slot.
        offsets: relative id of each slot's first token.
        total: token ids altogether.
        dim: dimensions of an action.
        tokens: tokens of an action.
    """

    def __init__(
        self,
        edges: Mapping[str, Any],
        *,
        space: ActionSpace | None = None,
        means: Mapping[str, Any] | None = None,
        decoding: Decoding = "mean",
        kind: Kind = "boundaries",
        gaussians: Mapping[str, Mapping[str, float]] | None = None,
        min_sigma: float = 0.0,
        zero_bin: bool = False,
    ) -> None:
        self.action_space = space or end_effector_delta()
        self.slots = slots_of(self.action_space)
        self.edges: dict[str, F64] = check_edges(edges, axis_ranges(self.slots))
        self.decoding: Decoding = check_mode(decoding)
        if kind not in get_args(Kind):
            raise ValueError(f"kind is {kind!r}; it must be one of {list(get_args(Kind))}")
        self.kind: Kind = kind
        self.min_sigma = float(min_sigma)
        self.gaussians = (
            None if gaussians is None else {name: dict(fit) for name, fit in gaussians.items()}
        )
        self.zero_bin = bool(zero_bin)
        self.midpoints: dict[str, F64] = {
            axis: 0.5 * (e[:-1] + e[1:]) for axis, e in self.edges.items()
        }
        if zero_bin:
            _mark_zero(self.midpoints, self.edges, self.slots)
        self.means: dict[str, F64] = (
            dict(self.midpoints) if means is None else check_means(means, self.edges)
        )
        if zero_bin:
            for axis in zero_axes(self.slots):
                check_zero(axis, self.edges[axis], self.means[axis])
        self.bins: tuple[int, ...] = tuple(
            n for slot in self.slots for n in [len(self.edges[a]) - 1 for a in slot.axes] or [2]
        )
        self.counts = slot_totals(self.slots, self.bins)
        *offsets, self.total = accumulate(self.counts, initial=0)
        self.offsets: tuple[int, ...] = tuple(offsets)
        self.dim = self.action_space.dim
        self.tokens = len(self.slots)
        self._codecs = [
            SlotCodec(slot, self.edges, offset)
            for slot, offset in zip(self.slots, self.offsets, strict=True)
        ]
        self._row_encoders = [codec.row_encoder() for codec in self._codecs]
        self._tables: dict[Decoding, list[F64]] = {}
        self._lists: dict[Decoding, list[list[list[float]]]] = {}

    @classmethod
    def from_gaussians(
        cls,
        params: Mapping[str, Mapping[str, float]],
        *,
        space: ActionSpace | None = None,
        bins: Any = None,
        min_sigma: float = 0.0,
        decoding: Decoding = "mean",
        zero_bin: bool = False,
    ) -> ActionGrid:
        """Equal-probability bins of truncated Gaussians, e.g. from `fit_gaussians`.

        Args:
            params: {axis: {"mu", "sigma"}} for every axis; others are kept but not used.
            space: what the actions are; None for one arm.
            bins: counts in the order of the slots; None for 16, 32, 8 of a translation, 16 on each
                axis of a rotation, 2 of a gripper and 256 of a joint.
            min_sigma: every smaller sigma is raised to it (released mixture: 0.5).
            decoding: "mean" decodes to the mean of the truncated Gaussian in the bin.
            zero_bin: represent no motion exactly (see `zero_bins.py`).
        """
        slots = slots_of(space := space or end_effector_delta())
        counts = per_axis(bins, slots)
        check_min_sigma(min_sigma)
        zeros = zero_axes(slots) if zero_bin else ()
        edges, means = {}, {}
        for axis, (low, high) in axis_ranges(slots).items():
            if axis not in params or not {"mu", "sigma"} <= set(params[axis]):
                raise ValueError(
                    f"params lacks {axis!r} with 'mu' and 'sigma'; it has {sorted(params)}. "
                    "Use the result of fit_gaussians"
                )
            mu, sigma = float(params[axis]["mu"]), float(params[axis]["sigma"])
            if sigma < min_sigma:
                sigma = float(min_sigma)
            edges[axis], means[axis] = gaussian_bins(
                mu, sigma, low, high, counts[axis], axis=axis, zero=axis in zeros
            )
        return cls(
            edges,
            space=space,
            means=means,
            decoding=decoding,
            kind="gaussian",
            gaussians=params,
            min_sigma=min_sigma,
            zero_bin=zero_bin,
        )

    @classmethod
    def from_quantiles(
        cls,
        actions: Any,
        *,
        space: ActionSpace | None = None,
        bins: Any = None,
        decoding: Decoding = "mean",
        zero_bin: bool = False,
    ) -> ActionGrid:
        """Bins with equal numbers of the given normalised actions (n, dim); means from the data.

        The directions theta and phi of actions that do not translate at all are left out.
        """
        slots = slots_of(space := space or end_effector_delta())
        counts = per_axis(bins, slots)
        values = fitted_values(some_actions(to_numpy(actions), space), slots)
        zeros = zero_axes(slots) if zero_bin else ()
        edges, means = {}, {}
        for axis, (low, high) in axis_ranges(slots).items():
            edges[axis], means[axis] = quantile_bins(
                Weighted.of(np.clip(values[axis], low, high)),
                low,
                high,
                counts[axis],
                axis=axis,
                zero=axis in zeros,
            )
        return cls(
            edges,
            space=space,
            means=means,
            decoding=decoding,
            kind="quantile",
            zero_bin=zero_bin,
        )

    @classmethod
    def uniform(
        cls,
        *,
        space: ActionSpace | None = None,
        bins: Any = None,
        decoding: Decoding = "mean",
        zero_bin: bool = False,
    ) -> ActionGrid:
        """Bins of equal width on every axis; their means are their midpoints."""
        slots = slots_of(space := space or end_effector_delta())
        counts = per_axis(bins, slots)
        zeros = zero_axes(slots) if zero_bin else ()
        fits = {
            axis: uniform_bins(low, high, counts[axis], axis=axis, zero=axis in zeros)
            for axis, (low, high) in axis_ranges(slots).items()
        }
        edges = {axis: fit[0] for axis, fit in fits.items()}
        return cls(edges, space=space, decoding=decoding, kind="uniform", zero_bin=zero_bin)

    @classmethod
    def from_boundaries(
        cls,
        edges: Mapping[str, Any],
        *,
        space: ActionSpace | None = None,
        means: Mapping[str, Any] | None = None,
        decoding: Decoding = "mean",
        kind: Kind = "boundaries",
    ) -> ActionGrid:
        """Given edges {axis: (n + 1,)}; without `means`, every bin decodes to its midpoint."""
        return cls(edges, space=space, means=means, decoding=decoding, kind=kind)

    def with_means(self, actions: Any) -> ActionGrid:
        """The same bins, decoding to the mean of the given normalised actions (n, dim) in each.

        A bin that none of them is in keeps its mean, and a zero bin stays exactly 0.
        """
        values = fitted_values(some_actions(to_numpy(actions), self.action_space), self.slots)
        return self.with_bin_sums({a: bin_sums(values[a], e) for a, e in self.edges.items()})

    def with_bin_sums(self, sums: Mapping[str, tuple[F64, F64]]) -> ActionGrid:
        """As `with_means`, from the weights and sums {axis: ((n,), (n,))} of `bin_sums`."""
        zeros = zero_axes(self.slots) if self.zero_bin else ()
        means = {}
        for axis, edges in self.edges.items():
            means[axis] = bin_means(*sums[axis], edges, empty=self.means[axis])
            if axis in zeros:
                means[axis][np.digitize(0.0, edges[1:-1])] = 0.0
        return ActionGrid(
            self.edges,
            space=self.action_space,
            means=means,
            decoding="mean",
            kind=self.kind,
            gaussians=self.gaussians,
            min_sigma=self.min_sigma,
            zero_bin=self.zero_bin,
        )

    def encode(self, actions: Any) -> Any:
        """Normalised actions (n, dim), clipped to [-1, 1], to relative ids (n, tokens) int64.

        Columns are the slots: translation, rotation, gripper (open from 0.5) of one arm. NumPy in,
        NumPy out; torch in, torch out. ValueError on NaN, infinity or another width.
        """
        array = to_numpy(actions)
        if array.ndim == 2 and array.shape[1] == self.dim and len(array) <= _FEW:
            few = self._encode_few(array.tolist())
            if few is not None:
                return like(few, actions)
        array = check_actions(array, self.action_space)
        ids = np.empty((len(array), self.tokens), dtype=np.int64)
        buffer = np.empty((self.dim, min(_BLOCK, len(array))))
        for start in range(0, len(array), _BLOCK):
            block = ids[start : start + _BLOCK]
            columns = buffer[:, : len(block)]
            np.clip(array[start : start + _BLOCK].T, -1.0, 1.0, out=columns)
            for index, codec in enumerate(self._codecs):
                codec.encode_columns(columns, block[:, index])
        return like(ids, actions)

    def _encode_few(self, rows: list[list[float]]) -> I64 | None:
        """As the rest of `encode`, action by action; None if a number is not finite."""
        encoders = self._row_encoders
        ids: list[int] = []
        for row in rows:
            if not math.isfinite(sum(row)):
                return None
            clipped = [v if -1.0 <= v <= 1.0 else (1.0 if v > 0 else -1.0) for v in row]
            for encode in encoders:
                ids.append(encode(clipped))  # noqa: PERF401 - a comprehension per row is slower
        return np.array(ids, dtype=np.int64).reshape(-1, self.tokens)

    def decode(self, ids: Any, *, mode: Decoding | None = None) -> Any:
        """Relative token ids (n, tokens) to normalised actions (n, dim) float64.

        Args:
            ids: integer ids, a column per slot; NumPy or torch.
            mode: "mean" or "midpoint"; None takes the grid's `decoding`.

        Returns:
            Translations, rotations, joints in [-1, 1], grippers 0 (closed) or 1 (open).

        Raises:
            ValueError: if an id is not of the type that its slot holds.
        """
        array = to_numpy(ids)
        if array.ndim == 1 and len(array) == self.tokens:
            array = array[None]
        mode = self.decoding if mode is None else check_mode(mode)
        if array.ndim == 2 and len(array) <= _FEW and array.dtype == np.int64:
            few = self._decode_few(array.tolist(), mode)
            if few is not None:
                return like(few, ids)
        self.check_ids(array)
        tables = self._decode_tables(mode)
        actions = np.empty((len(array), self.dim), dtype=np.float64)
        for start in range(0, len(array), _BLOCK):
            block, out = array[start : start + _BLOCK], actions[start : start + _BLOCK]
            for index, (slot, table) in enumerate(zip(self.slots, tables, strict=True)):
                relative = block[:, index] - self.offsets[index]
                out[:, slot.start : slot.stop] = table[relative]
        return like(actions, ids)

    def _decode_few(self, rows: list[list[int]], mode: Decoding) -> F64 | None:
        """As the rest of `decode`, action by action; None if an id is wrong."""
        if mode not in self._lists:
            self._lists[mode] = [table.tolist() for table in self._decode_tables(mode)]
        slots = list(zip(self.offsets, self.counts, self._lists[mode], strict=True))
        actions: list[float] = []
        for row in rows:
            if len(row) != len(slots):
                return None
            for index, (offset, count, values) in zip(row, slots, strict=False):
                if not 0 <= index - offset < count:
                    return None
                actions += values[index - offset]
        return np.array(actions, dtype=np.float64).reshape(-1, self.dim)

    def check_ids(self, ids: NDArray[Any], *, begin: int = 0) -> None:
        """ValueError unless `ids` are integers (n, tokens), each of its slot's type.

        `begin` is the id of the first action token: 0 for relative ids.
        """
        width = self.tokens
        if ids.ndim != 2 or ids.shape[1] != width or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"ids must be integers of shape (n, {width}) for "
                f"{', '.join(slot.name for slot in self.slots)}; got {ids.dtype} {ids.shape}. "
                f"Reshape generated ids (B, {width} * chunk) to (B * chunk, {width})"
            )
        if not len(ids):
            return
        limits = [begin + offset for offset in (*self.offsets, self.total)]
        for column, slot in enumerate(self.slots):
            low, high = limits[column], limits[column + 1]
            if ids[:, column].min() >= low and ids[:, column].max() < high:
                continue
            row = int(np.flatnonzero((ids[:, column] < low) | (ids[:, column] >= high))[0])
            raise ValueError(
                f"ids[{row}, {column}] is {int(ids[row, column])}, no {slot.name} id; those are "
                f"{low}..{high - 1}, counted with the first action token as {begin}. Generate with "
                "each step restricted to its token type (predict_action does)"
            )

    def _decode_tables(self, mode: Decoding) -> list[F64]:
        """Per slot, (ids, dim) of what every id decodes to."""
        if mode not in self._tables:
            centres = self.means if mode == "mean" else self.midpoints
            self._tables[mode] = [codec.table(centres) for codec in self._codecs]
        return self._tables[mode]

    def same_edges(self, other: ActionGrid) -> bool:
        """Whether both have the same slots, and cut every axis at exactly the same values."""
        return self.slots == other.slots and all(
            np.array_equal(self.edges[axis], other.edges[axis]) for axis in self.edges
        )

    def __eq__(self, other: object) -> bool:
        """Same slots, edges, means and decoding: the same ids and the same actions."""
        if not isinstance(other, ActionGrid):
            return NotImplemented
        return (
            self.decoding == other.decoding
            and self.zero_bin == other.zero_bin
            and self.same_edges(other)
            and all(np.array_equal(self.means[axis], other.means[axis]) for axis in self.means)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        slots = "" if self.tokens == 3 else f"slots={[slot.name for slot in self.slots]}, "
        return (
            f"ActionGrid({slots}kind={self.kind!r}, bins={self.bins}, decoding={self.decoding!r})"
        )


def _mark_zero(midpoints: dict[str, F64], edges: dict[str, F64], slots: Sequence[Slot]) -> None:
    """Let the bins of no motion decode to 0 in midpoint mode too: [0, eps] of a length."""
    for axis in zero_axes(slots):
        midpoints[axis][np.digitize(0.0, edges[axis][1:-1])] = 0.0
