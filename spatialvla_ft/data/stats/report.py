"""What `data stats --json` prints, of a dataset and of a mixture (docs/statistics.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spatialvla_ft.actions.fit import Gaussians
from spatialvla_ft.actions.normalise import ActionStatistics
from spatialvla_ft.actions.spaces import ActionSpace
from spatialvla_ft.data.samples import SampleDataset
from spatialvla_ft.data.stats.fits import QuantileFit
from spatialvla_ft.data.stats.scan import Scan

SCHEMA_VERSION = 1


def fit_report(
    source: Mapping[str, Any],
    datasets: Sequence[SampleDataset],
    scans: Mapping[str, Scan],
    shares: Sequence[float],
    excluded: Sequence[str],
    drawn: tuple[ActionStatistics, Gaussians, QuantileFit],
) -> dict[str, Any]:
    """The report as JSON can hold it.

    Args:
        source: what was asked for.
        datasets: the dataset, or the parts of the mixture.
        scans: {dataset: what a scan found}.
        shares: of the draws; they add up to 1.
        excluded: datasets that the fits of the whole leave out.
        drawn: statistics, Gaussian and quantile fit of all normalised actions, as they are drawn.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "source": dict(source),
        "excluded_from_fits": list(excluded),
        "datasets": {
            dataset.name: {
                "share": share,
                "dropped": {what: list(counts) for what, counts in dataset.dropped.items()},
                "statistics": _statistics(
                    scans[dataset.name].statistics, dataset.action_space, robot=True
                ),
                "fits": _fits(scans[dataset.name].gaussians, scans[dataset.name].quantiles),
            }
            for dataset, share in zip(datasets, shares, strict=True)
        },
        "as_drawn": {
            "statistics": _statistics(drawn[0], datasets[0].action_space, robot=False),
            "fits": _fits(*drawn[1:]),
        },
    }


def checkpoint_layout(scans: Mapping[str, Scan]) -> dict[str, Any]:
    """{dataset: statistics} as `processor_config.json` of a checkpoint holds them."""
    return {name: scan.statistics.to_dict() for name, scan in scans.items()}


def _statistics(found: ActionStatistics, space: ActionSpace, *, robot: bool) -> dict[str, Any]:
    """Numbers by dimension; quantiles are exact, see `actions/summaries.py`."""
    plain = found.by_quantiles()
    content = plain.to_dict()["action"]
    names = ("mean", "std", "min", "max", "q01", "q99")
    dimensions = {
        name: {
            "unit": space.units[i] if robot else "normalised",
            "normalised": bool(found.mask[i]),
            "constant": bool(found.constant[i]),
            "degenerate": bool(plain.degenerate[i]),
            "widened": bool(found.widened[i]),
            "range": [float(found.q01[i]), float(found.q99[i])] if found.mask[i] else None,
            **{key: content[key][i] for key in names},
        }
        for i, name in enumerate(space.names)
    }
    return {
        "count": found.num_transitions,
        "episodes": found.num_trajectories,
        "quantile_error": 0.0,
        "dimensions": dimensions,
    }


def _fits(gaussians: Gaussians, quantiles: QuantileFit) -> dict[str, Any]:
    return {
        "gaussian": gaussians,
        "quantile": {
            axis: {"edges": edges.tolist(), "error": quantiles.error[axis]}
            for axis, edges in quantiles.grid.edges.items()
        },
    }
