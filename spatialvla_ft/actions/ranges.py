"""A range for dimensions that seldom move, so that their motion is not clipped away.

The released code takes the 1 % and 99 % quantiles of a dimension for its range. Of one that rests
in 99 of 100 steps both are the resting value, perhaps with the noise of a sensor around it: then
every motion decodes to rest. What clipping costs is measured as a share of the dimension's motion,
the sum of all distances from rest (the median). Dense motion loses a few percent, heavy tails
included; a dimension that loses more than `CLIPPED` gets a range that is symmetric about rest.

Single steps must not decide, since a glitch would take the resolution away from ordinary motion:
the few steps farthest out are counted no farther out than the one next to them, and the wider range
goes no farther than twice there. Only where the quantiles hold nothing but noise, the range goes to
the farthest step, however few there are: no resolution is lost. See
docs/decisions/0018-rare-motion.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float64

from .normalise import EPSILON, ActionStatistics
from .summaries import Block

CLIPPED = 0.2
"""Share of a dimension's motion that clipping may cost before its range is widened."""
QUARTILES = (0.25, 0.5, 0.75)
TINY = {"m": 1e-4, "rad": 1e-3}
"""Width of q01..q99, by unit, that is noise rather than motion."""


def tails(rows: int) -> tuple[float, float]:
    """Quantiles at which the tails end: on either side 2 steps and 1 in 1,000 are left out."""
    outside = min(2 + rows // 1000, (rows - 1) // 2)
    share = outside / max(rows - 1, 1)
    return share, 1 - share


def keep_motion(
    known: ActionStatistics,
    quartiles: Float64[np.ndarray, "3 dim"],
    ends: Float64[np.ndarray, "2 dim"],
    blocks: Callable[[], Iterable[Block]],
    units: Sequence[str] | None = None,
) -> ActionStatistics:
    """The statistics with a wider range in dimensions whose motion the quantiles clip away.

    Args:
        known: with the 1 % and 99 % quantiles as range.
        quartiles: `QUARTILES` of every dimension.
        ends: quantiles at `tails`.
        blocks: all actions once more; read only where the quantiles alone do not settle it.
        units: of the dimensions, which say what is noise; None where they are not known.
    """
    rest = quartiles[1]
    far = np.maximum(known.max - rest, rest - known.min)
    robust = np.maximum(ends[1] - rest, rest - ends[0])
    noise = noise_widths(units or [""] * known.dim)
    flat = known.mask & (known.q99 - known.q01 < noise) & (far > 3 * noise)
    flat |= known.degenerate
    doubtful = known.mask & ~flat & (_at_most(known, quartiles, robust) > CLIPPED)
    wide = np.zeros(known.dim, bool)
    if doubtful.any():
        wide = doubtful & (clipped_motion(known, rest, robust, blocks()) > CLIPPED)
    half = np.where(flat, far, np.where(wide, np.minimum(far, 2 * robust), 0.0))
    if not (half > 0).any():
        return known
    return replace(
        known,
        q01=np.where(half > 0, rest - half, known.q01),
        q99=np.where(half > 0, rest + half, known.q99),
        quantiles=np.stack([known.q01, known.q99]),
    )


def noise_widths(units: Sequence[str]) -> Float64[np.ndarray, " dim"]:
    """(dim,) width of q01..q99 below which it holds noise alone; 0 of units that say nothing."""
    return np.array([TINY.get(unit, 0.0) for unit in units])


def clipped_motion(
    known: ActionStatistics,
    rest: Float64[np.ndarray, " dim"],
    reach: Float64[np.ndarray, " dim"],
    blocks: Iterable[Block],
) -> Float64[np.ndarray, " dim"]:
    """(dim,) share of the motion that clipping to q01..q99 takes away, 0 where nothing moves.

    Args:
        known: whose range clips.
        rest: from where motion is counted.
        reach: farther out, nothing counts more.
        blocks: (rows, dim) actions and what a row weighs.
    """
    whole, left = np.zeros(known.dim), np.zeros(known.dim)
    for values, weight in blocks:
        wide = values.astype(np.float64)
        motion = np.minimum(np.abs(wide - rest), reach)
        clipped = np.abs(np.clip(wide, known.q01, known.q99) - rest)
        whole += weight * motion.sum(axis=0)
        left += weight * np.minimum(motion, clipped).sum(axis=0)
    return np.asarray(1 - np.divide(left, whole, out=np.ones_like(whole), where=whole > 0))


def lost_dimensions(
    known: ActionStatistics, actions: Float64[np.ndarray, "n dim"]
) -> Bool[np.ndarray, " dim"]:
    """(dim,) dimensions that lose more than `CLIPPED` of their motion to their range.

    Args:
        known: statistics in use, perhaps of a released checkpoint.
        actions: in the robot's units.
    """
    lost = known.degenerate
    if len(actions):
        rest = np.median(actions, axis=0)
        low, high = np.quantile(actions, tails(len(actions)), axis=0)
        reach = np.maximum(high - rest, rest - low)
        lost = lost | (clipped_motion(known, rest, reach, [(actions, 1.0)]) > CLIPPED)
    return np.asarray(lost & known.mask & ~known.constant)


def _at_most(
    known: ActionStatistics,
    quartiles: Float64[np.ndarray, "3 dim"],
    reach: Float64[np.ndarray, " dim"],
) -> Float64[np.ndarray, " dim"]:
    """(dim,) the most that clipping can cost, from quantiles alone."""
    low, rest, high = quartiles
    # What lies beyond the quartiles moves at least as far as they do.
    beyond = 0.01 + 1 / max(known.num_transitions, 1)  # of the steps, on either side
    lost = np.clip(reach - (known.q99 - rest), 0, None) + np.clip(
        reach - (rest - known.q01), 0, None
    )
    lost *= beyond
    kept = 0.25 * (high - low)
    return np.asarray(np.divide(lost, lost + kept, out=np.zeros_like(lost), where=lost > EPSILON))


def widened_words(known: ActionStatistics, names: Sequence[str], units: Sequence[str]) -> list[str]:
    """A sentence about each dimension whose range was widened."""
    if known.quantiles is None:
        return []
    low, high = known.quantiles
    return [
        f"{names[i]} seldom moves: its range is {known.q01[i]:.3g} to {known.q99[i]:.3g}"
        f"{short_unit(units[i])}, since q01..q99 ({low[i]:.3g} to {high[i]:.3g}) would clip the "
        "motion away"
        for i in np.flatnonzero(known.widened).tolist()
    ]


def lost_words(
    known: ActionStatistics,
    lost: Bool[np.ndarray, " dim"],
    names: Sequence[str],
    units: Sequence[str],
) -> list[str]:
    """A sentence about each dimension that decodes to less than the data move.

    Args:
        known: statistics in use.
        lost: which, from `lost_dimensions`, or `known.degenerate`.
        names: of the dimensions.
        units: of the dimensions.
    """
    words = []
    for i in np.flatnonzero(lost).tolist():
        low, high, unit = known.q01[i], known.q99[i], short_unit(units[i])
        to = f"{low:.3g}" if high - low <= EPSILON else f"{low:.3g} to {high:.3g}"
        words.append(f"every {names[i]} decodes to {to}{unit}; the data reach {known.reach[i]:.3g}")
    return words


def short_unit(unit: str) -> str:
    """A unit behind a number; none where it is a sentence."""
    return f" {unit}" if 0 < len(unit) < 5 else ""
