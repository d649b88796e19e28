"""Whether the grid suits the data: what it loses, what its tokens are spent on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import NDArray

from ...actions.fit import KINDS, GridKind, fit_grid
from ...actions.grid import ActionGrid
from ...actions.layout import Slot, per_axis, slot_totals
from ...actions.normalise import ActionStatistics, normalise
from ...actions.ranges import noise_widths
from ...actions.reconstruction import arm_rmse, motion_errors
from ...actions.spaces import ActionSpace, NormalisedActions, RawActions
from ..global_batch import process_count
from ..identity import global_batch
from ..run import Run

ROWS = 20_000
"""Actions that are tried, at most."""
WORSE, LEAST = 1.3, 0.005
"""A grid that loses so many times what a fitted one would, and so much more, is warned of."""
COARSE = 0.25
"""Mean error of a dimension, as a share of its mean motion, that is worth a warning."""


@dataclass(frozen=True)
class GridFacts:
    """The grid of a run on some of its actions.

    Attributes:
        kind: of the bins.
        tokens: number of ids.
        used: {slot: (ids that these actions use, of so many)}.
        loss: RMSE of encoding and decoding, normalised, gripper left out.
        fitted: the same of a grid of the same kind and size, fitted to these actions.
        warnings: what does not suit the data.
    """

    kind: str
    tokens: int
    used: dict[str, tuple[int, int]]
    loss: float
    fitted: float
    warnings: list[str] = field(default_factory=list)


def grid_facts(run: Run, actions: Sequence[RawActions], frames: int) -> GridFacts | None:
    """Try the grid of a run; None where there is nothing to try it on.

    Args:
        run: from `build`.
        actions: some of each dataset, (n, dim) finite numbers in the robot's units.
        frames: steps of all datasets.
    """
    statistics = [
        ActionStatistics.from_dict(run.processor.statistics[d.name]) for d in run.datasets
    ]
    values = _drawn(actions, statistics, run.weights)
    if not len(values):
        return None
    grid = run.processor.grid
    ids = grid.encode(values)
    counted = zip(grid.slots, grid.counts, strict=True)
    used = {slot.name: (len(np.unique(ids[:, i])), n) for i, (slot, n) in enumerate(counted)}
    kind: GridKind = grid.kind if grid.kind in KINDS else "gaussian"  # type: ignore[assignment]
    facts = GridFacts(
        kind=grid.kind,
        tokens=grid.total,
        used=used,
        loss=arm_rmse(grid, values),
        fitted=arm_rmse(fitted_like(grid, kind, values, of_file=run.recipe.grid.file), values),
    )
    facts.warnings.extend(
        [
            *_of_other_data(run, facts, kind),
            *_too_many_tokens(run, facts, frames),
            *coarse_motion(grid, values),
            *noise_words(grid, statistics, run.datasets[0].action_space),
        ]
    )
    return facts


def fitted_like(
    grid: ActionGrid, kind: GridKind, values: NormalisedActions, *, of_file: object = None
) -> ActionGrid:
    """A grid of the same size, fitted to these actions.

    Args:
        grid: whose bins, space and zero bins.
        kind: of the bins.
        values: normalised actions.
        of_file: the grid's file; its least sigma was a choice, that of a base was for other data.
    """
    sigma = grid.min_sigma if kind == "gaussian" and of_file is not None else 0.0
    return fit_grid(
        kind,
        values,
        space=grid.action_space,
        bins=grid.bins,
        min_sigma=sigma,
        zero_bin=grid.zero_bin,
    )


def _drawn(
    actions: Sequence[RawActions], statistics: Sequence[ActionStatistics], weights: Sequence[float]
) -> NormalisedActions:
    """Normalised actions of all datasets, of each as many as its weight says."""
    rng = np.random.default_rng(0)
    parts = []
    for some, known, weight in zip(actions, statistics, weights, strict=True):
        count = min(len(some), round(ROWS * weight / sum(weights)))
        rows = np.sort(rng.choice(np.arange(len(some)), count, replace=False))
        parts.append(normalise(RawActions(some[rows]), known))
    return NormalisedActions(np.concatenate(parts))


def _of_other_data(run: Run, facts: GridFacts, kind: str) -> list[str]:
    asked = run.recipe.grid
    if asked.fit is not None or (asked.file is None and run.recipe.model.new is not None):
        return []  # it was fitted to these data
    if facts.loss < WORSE * facts.fitted or facts.loss < facts.fitted + LEAST:
        return []
    whose = "the base's grid" if asked.file is None else f"the grid in {asked.file}"
    return [
        f"{whose} loses {facts.loss:.3g} of the range of an action (RMSE, normalised), one fitted "
        f"to these data with as many bins {facts.fitted:.3g}: it is of other motion. Set "
        f"grid.fit={kind}"
    ]


def _too_many_tokens(run: Run, facts: GridFacts, frames: int) -> list[str]:
    slots = run.processor.grid.slots
    usual = sum(slot_totals(slots, [n for slot in slots for n in slot.default_bins]))
    if facts.tokens <= max(usual, frames):
        return []
    samples = run.recipe.train.steps * global_batch(run.recipe, process_count())
    most = sum(min(frames, total) for _, total in facts.used.values())
    return [
        f"the grid has {facts.tokens:,} action tokens, and there are {frames:,} recorded steps "
        f"({samples:,} samples in {run.recipe.train.steps:,} steps of training): no more than "
        f"{most:,} tokens can ever be a label, the others keep what they start with. Usual are "
        f"{usual:,}: leave grid.file or grid.bins out, or give fewer bins"
    ]


def coarse_motion(grid: ActionGrid, values: NDArray[np.floating]) -> list[str]:
    """A warning of dimensions whose motion comes back far from what it was, if that can be mended.

    Bins of a fit to all steps can be wide where a robot is seldom, which the error of all steps
    does not show.

    Args:
        grid: in use.
        values: (n, dim) normalised actions.
    """
    if grid.kind == "quantile":
        return []
    own = motion_errors(grid, values)
    if not (own > COARSE).any():
        return []
    other = motion_errors(fitted_like(grid, "quantile", NormalisedActions(values)), values)  # type: ignore[arg-type]
    chosen = np.flatnonzero((own > COARSE) & (other < own / 2))
    if not len(chosen):
        return []
    names = grid.action_space.names
    told = ", ".join(f"{names[i]} by {own[i]:.0%} ({other[i]:.0%})" for i in chosen)
    return [
        f"motion comes back from its tokens off by a large share of its size: {told}; in brackets "
        "with grid.fit=quantile"
    ]


def noise_words(
    grid: ActionGrid, statistics: Sequence[ActionStatistics], space: ActionSpace
) -> list[str]:
    """A warning of bins that are spent on noise, with the override that saves them.

    Args:
        grid: in use.
        statistics: of every dataset; noise is what is noise in all of them.
        space: what the actions are.
    """
    widths = noise_widths(space.units)
    noise = np.all([noise_dimensions(known, widths) for known in statistics], axis=0)
    bins = per_axis(grid.bins, grid.slots)
    least = 3 if grid.zero_bin else 1
    found = []
    for slot in grid.slots:
        if slot.shape != "lines":
            continue
        axes = [
            (axis, slot.start + i)
            for i, axis in enumerate(slot.axes)
            if noise[slot.start + i] and bins[axis] > least
        ]
        if not axes:
            continue
        before = bins.copy()
        bins |= dict.fromkeys([axis for axis, _ in axes], least)
        found.append(_told(slot, axes, statistics, space, before, bins))
    if not found:
        return []
    counts = ",".join(str(n) for n in bins.values())
    return [
        f"{'; '.join(found)}. If the robot does not move so, a grid without them is "
        f"grid.bins={counts} (with grid.fit), or write zeros(1) in the card"
    ]


def noise_dimensions(
    known: ActionStatistics, widths: Float64[np.ndarray, " dim"]
) -> Bool[np.ndarray, " dim"]:
    """(dim,) dimensions that vary, but by no more than noise; `widths` are of `noise_widths`."""
    spread, whole = known.q99 - known.q01, known.max - known.min
    return np.asarray(known.mask & ~known.constant & (spread < widths) & (whole < 3 * widths))


def _told(
    slot: Slot,
    axes: Sequence[tuple[str, int]],
    statistics: Sequence[ActionStatistics],
    space: ActionSpace,
    before: dict[str, int],
    after: dict[str, int],
) -> str:
    """Which axes of a slot are noise, how small it is, and the bins that they take."""
    sizes = [max(float(known.q99[i] - known.q01[i]) for known in statistics) for _, i in axes]
    listed = ", ".join(
        f"{axis} (98 % of the steps within {size:.2g} {space.units[i]})"
        for (axis, i), size in zip(axes, sizes, strict=True)
    )
    taken = " x ".join(str(before[axis]) for axis, _ in axes)
    whole, left = (int(np.prod([b[axis] for axis in slot.axes])) for b in (before, after))
    verb = "are" if len(axes) > 1 else "is"
    return (
        f"{listed} {verb} hardly more than noise and fill{'' if len(axes) > 1 else 's'} {taken} "
        f"bins: {whole:,} {slot.name} tokens, {left:,} without"
    )
