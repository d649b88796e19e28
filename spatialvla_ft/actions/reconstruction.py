"""What a grid loses: the error between normalised actions and their decoded tokens.

What each kind of grid loses on given actions: kinds, decodings, zero bins, side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from .axes import F64, to_numpy
from .fit import KINDS, NormalisedBlocks, fit_grid_blocks, gaussian_moments, gaussians_of
from .gaussians import with_widths
from .grid import ActionGrid
from .grid_checks import Decoding
from .layout import check_actions
from .normalise import ActionStatistics, normalise, unnormalise
from .spaces import NormalisedActions, RawActions, end_effector_delta


@dataclass(frozen=True)
class Reconstruction:
    """Normalised actions and what is left of them after encoding and decoding.

    Attributes:
        actions: (n, dim) normalised actions, clipped to [-1, 1] as `encode` does.
        decoded: (n, dim) the same, decoded.
        ids: (n, tokens) relative token ids.
        names: of the dimensions.
    """

    actions: F64
    decoded: F64
    ids: np.ndarray[Any, np.dtype[np.int64]]
    names: tuple[str, ...]

    @property
    def rmse(self) -> F64:
        """(dim,) root mean square error per dimension, normalised units."""
        return np.asarray(np.sqrt(np.mean((self.decoded - self.actions) ** 2, axis=0)))

    @property
    def worst(self) -> F64:
        """(dim,) largest absolute error per dimension, normalised units."""
        return np.asarray(np.abs(self.decoded - self.actions).max(axis=0))

    def by_dimension(self) -> dict[str, dict[str, float]]:
        """{dimension: {"rmse", "max"}} in normalised units."""
        return {
            name: {"rmse": float(rmse), "max": float(worst)}
            for name, rmse, worst in zip(self.names, self.rmse, self.worst, strict=True)
        }


def reconstruct(grid: ActionGrid, actions: Any, *, mode: Decoding | None = None) -> Reconstruction:
    """Encode and decode normalised actions (n, dim), n >= 1; `mode` as in `ActionGrid.decode`.

    The gripper is compared with its own value, so a half-open one counts as half an error.
    """
    array = check_actions(to_numpy(actions), grid.action_space)
    if len(array) == 0:
        raise ValueError("actions has no rows; there is nothing to reconstruct")
    clipped = np.clip(array, -1.0, 1.0)
    ids = grid.encode(clipped)
    decoded = grid.decode(ids, mode=mode)
    return Reconstruction(clipped, decoded, ids, grid.action_space.names)


def arm_rmse(grid: ActionGrid, actions: Any) -> float:
    """RMSE of all but the grippers, normalised; of the grippers where there is nothing else."""
    error = reconstruct(grid, actions).rmse
    arm = arm_dimensions(grid)
    return float(np.sqrt(np.mean(error[arm if arm.any() else slice(None)] ** 2)))


def motion_errors(grid: ActionGrid, actions: Any) -> F64:
    """(dim,) mean error as a share of the mean distance from rest (the median); 0 of grippers.

    That counts motion by its size: steps at rest, however many and however exact, hide nothing.
    """
    result = reconstruct(grid, actions)
    error = np.abs(result.decoded - result.actions).mean(axis=0)
    moved = np.abs(result.actions - np.median(result.actions, axis=0)).mean(axis=0)
    arm = arm_dimensions(grid) & (moved > 1e-6)
    return np.asarray(np.divide(error, moved, out=np.zeros_like(error), where=arm))


def fixed_dimensions(grid: ActionGrid) -> tuple[str, ...]:
    """Dimensions that decode to one number, since they have a single bin."""
    names = grid.action_space.names
    return tuple(
        names[slot.start + i]
        for slot in grid.slots
        if slot.shape == "lines"
        for i, axis in enumerate(slot.axes)
        if len(grid.means[axis]) == 1
    )


def arm_dimensions(grid: ActionGrid) -> NDArray[np.bool_]:
    """(dim,) True for all but grippers."""
    groups = grid.action_space.groups
    return np.array([group.role != "gripper" for group in groups for _ in group.names])


@dataclass(frozen=True)
class Line:
    """One grid on the actions of one source; errors are root mean squares per dimension.

    Attributes:
        source: what the actions are.
        kind: "uniform", "gaussian" or "quantile".
        decoding: "midpoint", "mean" (of the fitted distribution) or "data mean".
        zero_bin: whether no motion has a bin of its own.
        translation, rotation: normalised units.
        translation_mm, rotation_mrad: robot units, None where the source has none, or several.
        still: how far a robot moves that should keep still, normalised: its worst dimension, of
            the worst dataset.
    """

    source: str
    kind: str
    decoding: str
    zero_bin: bool
    translation: float
    rotation: float
    translation_mm: float | None
    rotation_mrad: float | None
    still: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def made_up_sources(count: int = 20_000, seed: int = 0) -> dict[str, Float64[np.ndarray, "n 7"]]:
    """Normalised actions that no Gaussian fits: skewed, of two modes, and mostly exactly still."""
    rng = np.random.default_rng(seed)
    skewed = rng.exponential(0.3, (count, 7)) - 0.3
    two_modes = rng.choice([-0.5, 0.5], (count, 7)) + rng.normal(0, 0.1, (count, 7))
    still = rng.normal(0, 0.3, (count, 7))
    still[rng.random(count) < 0.6, :3] = 0.0
    still[:, 3:6][rng.random((count, 3)) < 0.6] = 0.0
    sources = {"skewed": skewed, "two modes": two_modes, "60 % zeros": still}
    for actions in sources.values():
        actions[:, 6] = rng.integers(0, 2, count)
    return {name: np.clip(actions, -1.0, 1.0) for name, actions in sources.items()}


@dataclass(frozen=True)
class Trial:
    """Actions that grids are fitted to, and others that they are tried on.

    Attributes:
        fitting: blocks of normalised actions (n, 7) of one arm with their weights.
        trying: (m, 7) normalised actions.
        statistics: of each dataset that the actions come from; errors are told in the robot's
            units where it is one.
    """

    fitting: NormalisedBlocks
    trying: F64
    statistics: Sequence[ActionStatistics] = ()


def compare_grids(
    name: str, actions: F64, statistics: ActionStatistics | None, *, min_sigma: float = 0.0
) -> Iterator[Line]:
    """All grids of default size, fitted to the first half of the actions, tried on the second.

    Args:
        name: of the source.
        actions: (n, 7) of one arm; in the robot's units if statistics are given, else normalised.
        statistics: of the actions. With a zero bin they are made symmetric.
        min_sigma: for the Gaussian fits.
    """
    half = len(actions) // 2

    def trial(zero_bin: bool) -> Trial:
        known = statistics
        if known is None:
            values = np.asarray(actions, np.float64)
        else:
            if zero_bin:
                known = known.symmetric(end_effector_delta().deltas)
            values = normalise(RawActions(actions.astype(np.float32)), known).astype(np.float64)
        fitting = NormalisedActions(values[:half].astype(np.float32))
        return Trial(
            lambda: iter([(fitting, 1.0)]), values[half:], () if known is None else (known,)
        )

    return compare_trials(name, trial, min_sigma=min_sigma)


def compare_trials(
    name: str, trial: Callable[[bool], Trial], *, min_sigma: float = 0.0
) -> Iterator[Line]:
    """All grids of default size on the actions of one source, block by block.

    Args:
        name: of the source.
        trial: the actions, normalised for grids with a zero bin (True) or without.
        min_sigma: for the Gaussian fits.
    """
    space = end_effector_delta()
    for zero_bin in (False, True):
        given = trial(zero_bin)
        robot = len(given.statistics) == 1
        scale = np.ones(7)
        if robot:
            scale = (given.statistics[0].q99 - given.statistics[0].q01) / 2
        fits = with_widths(gaussians_of(gaussian_moments(given.fitting(), space), space), min_sigma)
        common: dict[str, Any] = {"space": space, "zero_bin": zero_bin}
        for kind in KINDS:
            own = fit_grid_blocks(
                kind, given.fitting, min_sigma=min_sigma, gaussians=fits, **common
            )
            grids: dict[str, tuple[ActionGrid, Decoding]] = {
                "data mean": (own, "mean"),
                "midpoint": (own, "midpoint"),
            }
            if kind == "gaussian":
                theirs = ActionGrid.from_gaussians(fits, min_sigma=min_sigma, zero_bin=zero_bin)
                grids["mean"] = (theirs, "mean")
            for decoding, (grid, mode) in sorted(grids.items(), reverse=True):
                result = reconstruct(grid, given.trying, mode=mode)
                error = result.decoded - result.actions
                yield Line(
                    source=name,
                    kind=kind,
                    decoding=decoding,
                    zero_bin=zero_bin,
                    translation=_rms(error[:, :3]),
                    rotation=_rms(error[:, 3:6]),
                    translation_mm=_rms(1e3 * (error * scale)[:, :3]) if robot else None,
                    rotation_mrad=_rms(1e3 * (error * scale)[:, 3:6]) if robot else None,
                    still=max(_moves(grid, mode, known) for known in given.statistics or (None,)),
                )


def _moves(grid: ActionGrid, mode: Decoding, statistics: ActionStatistics | None) -> float:
    """How far a robot moves that should keep still, normalised units: its worst dimension."""
    if statistics is None:
        return float(np.abs(grid.decode(grid.encode(np.zeros((1, 7))), mode=mode)[0, :6]).max())
    values = normalise(RawActions(np.zeros((1, 7), np.float32)), statistics)
    back = unnormalise(grid.decode(grid.encode(values), mode=mode), statistics)
    scale = (statistics.q99 - statistics.q01) / 2
    return float((np.abs(back) / scale)[0, :6].max())


def _rms(errors: F64) -> float:
    return float(np.sqrt(np.mean(errors**2)))
