"""The grid that training and `grids fit` make: bins of a kind, decoding to the data's means."""

from __future__ import annotations

from typing import Any, Literal

from .gaussians import fit_gaussians, with_widths
from .grid import ActionGrid
from .spaces import ActionSpace, NormalisedActions

GridKind = Literal["uniform", "gaussian", "quantile"]
KINDS: tuple[GridKind, ...] = ("uniform", "gaussian", "quantile")


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
    fits = with_widths(fit_gaussians(actions, space), min_sigma)
    return ActionGrid.from_gaussians(fits, min_sigma=min_sigma, **common).with_means(actions)
