"""`ActionGrid`: normalised actions to three tokens per step and back (paper section 3.2)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from .arrays import like, to_numpy
from .axes import (
    AXES,
    DEFAULT_BINS,
    F64,
    RANGES,
    ROTATION_AXES,
    TRANSLATION_AXES,
    axis_values,
    check_actions,
    check_bins,
)
from .gaussians import truncated_gaussian_edges, truncated_gaussian_means
from .grid_checks import Decoding, Kind, check_edges, check_means, check_mode
from .lookup import BinLookup
from .quantiles import conditional_means, quantile_edges

I64 = NDArray[np.int64]

SLOTS = ("translation", "rotation", "gripper")
_BLOCK = 8192  # rows per pass, so that temporaries stay in the cache
_FEW = 8  # up to so many rows, plain Python beats the overhead of NumPy calls


class ActionGrid:
    """Bins of theta, phi, r, roll, pitch, yaw and the gripper; three token ids per action.

    With n_a bins on axis a, relative ids are: translation (theta * n_phi + phi) * n_r + r; rotation
    T + (roll * n_pitch + pitch) * n_yaw + yaw with T translation ids; gripper T + R (closed) and
    T + R + 1 (open). The default sizes give 0..4095, 4096..8191, 8192 and 8193.

    Attributes:
        edges: {axis: (n + 1,) float64} bin edges; theta, phi in radians, the rest normalised.
        means: {axis: (n,) float64} expected value inside each bin.
        midpoints: {axis: (n,) float64}.
        decoding: "mean" or "midpoint", what `decode` uses unless told.
        kind: where the edges come from; "gaussian" in a released checkpoint.
        gaussians: the fits {axis: {"mu", "sigma"}} behind the edges, or None.
        min_sigma: lower limit that was put on every sigma.
    """

    def __init__(
        self,
        edges: Mapping[str, Any],
        *,
        means: Mapping[str, Any] | None = None,
        decoding: Decoding = "mean",
        kind: Kind = "boundaries",
        gaussians: Mapping[str, Mapping[str, float]] | None = None,
        min_sigma: float = 0.0,
    ) -> None:
        self.edges: dict[str, F64] = check_edges(edges)
        self.decoding: Decoding = check_mode(decoding)
        if kind not in get_args(Kind):
            raise ValueError(f"kind is {kind!r}; it must be one of {list(get_args(Kind))}")
        self.kind: Kind = kind
        self.min_sigma = float(min_sigma)
        self.gaussians = (
            None if gaussians is None else {name: dict(fit) for name, fit in gaussians.items()}
        )
        self.midpoints: dict[str, F64] = {
            axis: 0.5 * (e[:-1] + e[1:]) for axis, e in self.edges.items()
        }
        self.means: dict[str, F64] = (
            dict(self.midpoints) if means is None else check_means(means, self.edges)
        )
        self.bins: tuple[int, ...] = (*(len(self.edges[a]) - 1 for a in AXES), 2)
        self.num_translation: int = math.prod(self.bins[:3])
        self.num_rotation: int = math.prod(self.bins[3:6])
        self.total: int = self.num_translation + self.num_rotation + 2
        self.offsets = (0, self.num_translation, self.num_translation + self.num_rotation)
        self._inner = tuple(self.edges[axis][1:-1].tolist() for axis in AXES)
        self._lookup = {axis: BinLookup.of(e) for axis, e in self.edges.items()}
        self._tables: dict[Decoding, tuple[F64, F64]] = {}

    @classmethod
    def from_gaussians(
        cls,
        params: Mapping[str, Mapping[str, float]],
        *,
        bins: Any = DEFAULT_BINS,
        min_sigma: float = 0.0,
        decoding: Decoding = "mean",
    ) -> ActionGrid:
        """Equal-probability bins of truncated Gaussians, e.g. from `fit_gaussians`.

        Args:
            params: {axis: {"mu", "sigma"}} for theta, phi, r, roll, pitch, yaw; others are kept
                but not used.
            bins: counts for theta, phi, r, roll, pitch, yaw, gripper.
            min_sigma: every smaller sigma is raised to it (released mixture: 0.5).
            decoding: "mean" decodes to the mean of the truncated Gaussian in the bin.
        """
        counts = check_bins(bins)
        if not (math.isfinite(min_sigma) and min_sigma >= 0):
            raise ValueError(f"min_sigma is {min_sigma}; it must be finite and at least 0")
        edges, means = {}, {}
        for axis, n in zip(AXES, counts[:6], strict=True):
            if axis not in params or not {"mu", "sigma"} <= set(params[axis]):
                raise ValueError(
                    f"params lacks {axis!r} with 'mu' and 'sigma'; it has {sorted(params)}. "
                    "Use the result of fit_gaussians"
                )
            mu, sigma = float(params[axis]["mu"]), float(params[axis]["sigma"])
            if sigma < min_sigma:
                sigma = float(min_sigma)
            edges[axis] = truncated_gaussian_edges(mu, sigma, *RANGES[axis], n, axis=axis)
            means[axis] = truncated_gaussian_means(mu, sigma, edges[axis])
        return cls(
            edges,
            means=means,
            decoding=decoding,
            kind="gaussian",
            gaussians=params,
            min_sigma=min_sigma,
        )

    @classmethod
    def from_quantiles(
        cls, actions: Any, *, bins: Any = DEFAULT_BINS, decoding: Decoding = "mean"
    ) -> ActionGrid:
        """Bins with equal numbers of the given normalised actions (n, 7); means from the data.

        The directions theta and phi of actions that do not translate at all are left out.
        """
        counts = check_bins(bins)
        array = check_actions(to_numpy(actions))
        if len(array) == 0:
            raise ValueError("actions has no rows; quantiles need at least one action")
        values = axis_values(np.clip(array, -1.0, 1.0))
        moving = values["r"] > 0
        edges, means = {}, {}
        for axis, n in zip(AXES, counts[:6], strict=True):
            column = values[axis][moving] if axis in ("theta", "phi") else values[axis]
            edges[axis] = quantile_edges(column, *RANGES[axis], n)
            means[axis] = conditional_means(column, edges[axis])
        return cls(edges, means=means, decoding=decoding, kind="quantile")

    @classmethod
    def uniform(cls, *, bins: Any = DEFAULT_BINS, decoding: Decoding = "mean") -> ActionGrid:
        """Bins of equal width on every axis; their means are their midpoints."""
        counts = check_bins(bins)
        edges = {
            axis: np.linspace(*RANGES[axis], n + 1)
            for axis, n in zip(AXES, counts[:6], strict=True)
        }
        return cls(edges, decoding=decoding, kind="uniform")

    @classmethod
    def from_boundaries(
        cls,
        edges: Mapping[str, Any],
        *,
        means: Mapping[str, Any] | None = None,
        decoding: Decoding = "mean",
        kind: Kind = "boundaries",
    ) -> ActionGrid:
        """Given edges {axis: (n + 1,)}; without `means`, every bin decodes to its midpoint."""
        return cls(edges, means=means, decoding=decoding, kind=kind)

    def encode(self, actions: Any) -> Any:
        """Normalised actions (n, 7), clipped to [-1, 1], to relative token ids (n, 3) int64.

        Columns are translation, rotation, gripper (open from 0.5). NumPy in, NumPy out; torch in,
        torch out. ValueError on NaN, infinity or a width other than 7.
        """
        array = to_numpy(actions)
        if array.ndim == 2 and array.shape[1] == 7 and len(array) <= _FEW:
            few = self._encode_few(array.tolist())
            if few is not None:
                return like(few, actions)
        array = check_actions(array)
        ids = np.empty((len(array), 3), dtype=np.int64)
        for start in range(0, len(array), _BLOCK):
            self._encode_block(array[start : start + _BLOCK], ids[start : start + _BLOCK])
        return like(ids, actions)

    def _encode_few(self, rows: list[list[float]]) -> I64 | None:
        """As `_encode_block`, action by action; None if a number is not finite."""
        at_theta, at_phi, at_r, at_roll, at_pitch, at_yaw = self._inner
        _, n_phi, n_r, _, n_pitch, n_yaw, _ = self.bins
        _, rotation_id, closed_id = self.offsets
        ids = []
        for row in rows:
            if not math.isfinite(sum(row)):
                return None
            x, y, z, roll, pitch, yaw, gripper = [
                v if -1.0 <= v <= 1.0 else (1.0 if v > 0 else -1.0) for v in row
            ]
            rho2 = x * x + y * y
            theta = bisect_right(at_theta, math.atan2(math.sqrt(rho2), z))
            phi = bisect_right(at_phi, math.atan2(y, x))
            r = bisect_right(at_r, math.sqrt(rho2 + z * z))
            rotation = bisect_right(at_roll, roll) * n_pitch + bisect_right(at_pitch, pitch)
            ids.append(
                (
                    (theta * n_phi + phi) * n_r + r,
                    rotation * n_yaw + bisect_right(at_yaw, yaw) + rotation_id,
                    closed_id + (gripper >= 0.5),
                )
            )
        return np.array(ids, dtype=np.int64).reshape(-1, 3)

    def _encode_block(self, actions: F64, ids: I64) -> None:
        columns = np.clip(actions.T, -1.0, 1.0)
        values = axis_values(columns.T)
        found = [self._lookup[axis](values[axis]) for axis in AXES]
        _, n_phi, n_r, _, n_pitch, n_yaw, _ = self.bins
        ids[:, 0] = (found[0] * n_phi + found[1]) * n_r + found[2]
        ids[:, 1] = (found[3] * n_pitch + found[4]) * n_yaw + found[5] + self.offsets[1]
        ids[:, 2] = (columns[6] >= 0.5) + self.offsets[2]

    def decode(self, ids: Any, *, mode: Decoding | None = None) -> Any:
        """Relative token ids (n, 3) to normalised actions (n, 7) float64.

        Args:
            ids: integer ids, columns translation, rotation, gripper; NumPy or torch.
            mode: "mean" or "midpoint"; None takes the grid's `decoding`.

        Returns:
            x, y, z in [-1, 1], roll, pitch, yaw in [-1, 1], gripper 0 (closed) or 1 (open).

        Raises:
            ValueError: if an id is not of the type that its slot holds.
        """
        array = to_numpy(ids)
        if array.ndim == 1 and len(array) == 3:
            array = array[None]
        self.check_ids(array)
        xyz, rotation = self._decode_tables(self.decoding if mode is None else check_mode(mode))
        actions = np.empty((len(array), 7), dtype=np.float64)
        for start in range(0, len(array), _BLOCK):
            block, out = array[start : start + _BLOCK], actions[start : start + _BLOCK]
            out[:, :3] = xyz[block[:, 0]]
            out[:, 3:6] = rotation[block[:, 1] - self.offsets[1]]
            out[:, 6] = block[:, 2] - self.offsets[2]
        return like(actions, ids)

    def check_ids(self, ids: NDArray[Any], *, begin: int = 0) -> None:
        """ValueError unless `ids` are integers (n, 3), each of its slot's type.

        `begin` is the id of the first action token: 0 for relative ids.
        """
        if ids.ndim != 2 or ids.shape[1] != 3 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"ids must be integers of shape (n, 3) for {', '.join(SLOTS)}; got {ids.dtype} "
                f"{ids.shape}. Reshape generated ids (B, 3 * chunk) to (B * chunk, 3)"
            )
        if not len(ids):
            return
        limits = [begin + offset for offset in (*self.offsets, self.total)]
        at_rotation, at_gripper = limits[1:3]
        if len(ids) <= _FEW and all(
            begin <= a < at_rotation <= b < at_gripper <= c < limits[3] for a, b, c in ids.tolist()
        ):
            return
        for column, slot in enumerate(SLOTS):
            low, high = limits[column], limits[column + 1]
            if ids[:, column].min() >= low and ids[:, column].max() < high:
                continue
            row = int(np.flatnonzero((ids[:, column] < low) | (ids[:, column] >= high))[0])
            raise ValueError(
                f"ids[{row}, {column}] is {int(ids[row, column])}, no {slot} id; those are "
                f"{low}..{high - 1}, counted with the first action token as {begin}. Generate with "
                "each step restricted to its token type (predict_action does)"
            )

    def _decode_tables(self, mode: Decoding) -> tuple[F64, F64]:
        """((T, 3) xyz, (R, 3) rotation) of every translation and rotation id."""
        if mode not in self._tables:
            centres = self.means if mode == "mean" else self.midpoints
            theta, phi, r = np.meshgrid(*(centres[a] for a in TRANSLATION_AXES), indexing="ij")
            xyz = np.stack(
                [
                    r * np.sin(theta) * np.cos(phi),
                    r * np.sin(theta) * np.sin(phi),
                    r * np.cos(theta),
                ],
                axis=-1,
            ).reshape(-1, 3)
            rotation = np.stack(
                np.meshgrid(*(centres[a] for a in ROTATION_AXES), indexing="ij"), axis=-1
            ).reshape(-1, 3)
            self._tables[mode] = (np.clip(xyz, -1.0, 1.0), rotation)
        return self._tables[mode]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it; `from_dict` gives an equal grid."""
        return {
            "schema_version": 1,
            "kind": self.kind,
            "decoding": self.decoding,
            "bins": list(self.bins),
            "min_sigma": self.min_sigma,
            "gaussians": self.gaussians,
            "edges": {axis: self.edges[axis].tolist() for axis in AXES},
            "means": {axis: self.means[axis].tolist() for axis in AXES},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ActionGrid:
        """From `to_dict`; ValueError names what is missing or inconsistent."""
        if values.get("schema_version") != 1:
            raise ValueError(
                f"schema_version is {values.get('schema_version')!r}, expected 1; is this a grid "
                "written by `spatialvla-ft grids fit`?"
            )
        missing = [key for key in ("kind", "decoding", "edges", "means") if key not in values]
        if missing:
            raise ValueError(f"the grid lacks {missing}; write it again with `grids fit`")
        grid = cls(
            values["edges"],
            means=values["means"],
            decoding=values["decoding"],
            kind=values["kind"],
            gaussians=values.get("gaussians"),
            min_sigma=values.get("min_sigma", 0.0),
        )
        if "bins" in values and tuple(values["bins"]) != grid.bins:
            raise ValueError(f"bins says {values['bins']} but the edges make {list(grid.bins)}")
        return grid

    def same_edges(self, other: ActionGrid) -> bool:
        """Whether both cut every axis at exactly the same values."""
        return all(np.array_equal(self.edges[axis], other.edges[axis]) for axis in AXES)

    def __eq__(self, other: object) -> bool:
        """Same edges, means and decoding: the same ids and the same actions."""
        if not isinstance(other, ActionGrid):
            return NotImplemented
        return (
            self.decoding == other.decoding
            and self.same_edges(other)
            and all(np.array_equal(self.means[axis], other.means[axis]) for axis in AXES)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ActionGrid(kind={self.kind!r}, bins={self.bins}, decoding={self.decoding!r})"
