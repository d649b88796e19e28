"""What each kind of grid loses on given actions: kinds, decodings, zero bins, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from .axes import F64
from .gaussians import fit_gaussians
from .grid import ActionGrid
from .normalise import ActionStatistics, normalise
from .reconstruction import reconstruct
from .spaces import ActionSpace, NormalisedActions, RawActions, end_effector_delta

GridKind = Literal["uniform", "gaussian", "quantile"]
KINDS: tuple[GridKind, ...] = ("uniform", "gaussian", "quantile")


@dataclass(frozen=True)
class Line:
    """One grid on the actions of one source; errors are root mean squares per dimension.

    Attributes:
        source: what the actions are.
        kind: "uniform", "gaussian" or "quantile".
        decoding: "midpoint", "mean" (of the fitted distribution) or "data mean".
        zero_bin: whether no motion has a bin of its own.
        translation, rotation: normalised units.
        translation_mm, rotation_mrad: robot units, None where the source has none.
        still: what the action of no motion comes back as: the largest of its numbers in size,
            normalised.
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


def fit_grid(
    kind: GridKind,
    actions: NormalisedActions,
    *,
    space: ActionSpace | None = None,
    bins: Any = None,
    min_sigma: float = 0.0,
    zero_bin: bool = False,
) -> ActionGrid:
    """A grid of the given kind on normalised actions (n, dim), decoding to the mean of its bins.

    Means are those of the actions, for Gaussian and uniform bins too: the fitted distribution puts
    them elsewhere where it does not fit, such as at a clipped extreme.
    """
    common: dict[str, Any] = {"space": space, "bins": bins, "zero_bin": zero_bin}
    if kind == "quantile":
        return ActionGrid.from_quantiles(actions, **common)
    if kind == "uniform":
        return ActionGrid.uniform(**common).with_means(actions)
    fits = fit_gaussians(actions, space)
    return ActionGrid.from_gaussians(fits, min_sigma=min_sigma, **common).with_means(actions)


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
    space = end_effector_delta()
    for zero_bin in (False, True):
        known = statistics
        if known is not None and zero_bin:
            known = known.symmetric(space.deltas)
        values = actions if known is None else normalise(RawActions(actions), known)
        scale = np.ones(7) if known is None else (known.q99 - known.q01) / 2
        values = np.asarray(values, np.float64)
        half = len(values) // 2
        fitting, trying = NormalisedActions(values[:half]), values[half:]
        for kind in KINDS:
            own = fit_grid(kind, fitting, min_sigma=min_sigma, zero_bin=zero_bin)
            grids = {"data mean": (own, "mean"), "midpoint": (own, "midpoint")}
            if kind == "gaussian":
                fits = fit_gaussians(fitting)
                theirs = ActionGrid.from_gaussians(fits, min_sigma=min_sigma, zero_bin=zero_bin)
                grids["mean"] = (theirs, "mean")
            for decoding, (grid, mode) in sorted(grids.items(), reverse=True):
                result = reconstruct(grid, trying, mode=mode)  # type: ignore[arg-type]
                error = result.decoded - result.actions
                still = _still(known)
                back = grid.decode(grid.encode(still), mode=mode)[0, :6]  # type: ignore[arg-type]
                lost = back if known is None else back - still[0, :6]
                robot = known is not None
                yield Line(
                    source=name,
                    kind=kind,
                    decoding=decoding,
                    zero_bin=zero_bin,
                    translation=_rms(error[:, :3]),
                    rotation=_rms(error[:, 3:6]),
                    translation_mm=_rms(1e3 * (error * scale)[:, :3]) if robot else None,
                    rotation_mrad=_rms(1e3 * (error * scale)[:, 3:6]) if robot else None,
                    still=float(np.abs(lost).max()),
                )


def _still(statistics: ActionStatistics | None) -> F64:
    """(1, 7) the normalised action of a robot that keeps still, gripper closed."""
    raw = np.zeros((1, 7))
    values = raw if statistics is None else normalise(RawActions(raw), statistics)
    return np.asarray(values, np.float64)


def _rms(errors: F64) -> float:
    return float(np.sqrt(np.mean(errors**2)))
