"""What `grids` commands are given: normalised actions, Gaussian fits, numbers of bins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialvla_ft.near import near_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from spatialvla_ft.actions.fit import GridKind
    from spatialvla_ft.actions.grid import ActionGrid
    from spatialvla_ft.actions.normalise import ActionStatistics
    from spatialvla_ft.actions.spaces import ActionSpace
    from spatialvla_ft.data.stats.fits import MixtureActions
    from spatialvla_ft.data.stats.scan import Tell


@dataclass(frozen=True)
class GridActions:
    """Normalised actions that a grid is fitted to.

    Attributes:
        name: of the dataset, the mixture or the file.
        space: what the actions are.
        count: how many there are.
        sample: (n, dim) of them, to measure errors on.
        sampled: whether those were drawn at random, or are all.
        statistics: of the dataset; None of a file or a mixture.
        source: the actions themselves, read block by block unless they are a file's.
    """

    name: str
    space: ActionSpace
    count: int
    sample: NDArray[np.float64]
    sampled: bool
    statistics: ActionStatistics | None
    source: NDArray[np.float64] | MixtureActions

    def fit(
        self, kind: GridKind, *, bins: tuple[int, ...] | None, min_sigma: float, zero_bin: bool
    ) -> ActionGrid:
        """A grid of these actions."""
        from spatialvla_ft.actions.fit import fit_grid
        from spatialvla_ft.actions.spaces import NormalisedActions
        from spatialvla_ft.data.stats.fits import MixtureActions

        if isinstance(self.source, MixtureActions):
            return self.source.grid(kind, bins=bins, min_sigma=min_sigma, zero_bin=zero_bin)
        return fit_grid(
            kind,
            NormalisedActions(self.source),  # type: ignore[arg-type]
            space=self.space,
            bins=bins,
            min_sigma=min_sigma,
            zero_bin=zero_bin,
        )


def read_actions(
    source: str, *, card: Path | None, split: str, zero_bin: bool = False
) -> GridActions:
    """From a dataset (raw actions, normalised here) or a .npy/.npz (normalised, one arm).

    For a grid with zero bins the dataset's statistics are made symmetric, so that 0 is 0.

    Args:
        source: as `open_dataset` takes it, or a file.
        card: of the dataset; its own if not given.
        split: of the dataset.
        zero_bin: whether the grid is to have zero bins.

    Raises:
        ValueError: names the file, what is wrong with it and the cure.
    """
    from spatialvla_ft.actions.spaces import end_effector_delta
    from spatialvla_ft.data import open_dataset
    from spatialvla_ft.data.stats.fits import MixtureActions
    from spatialvla_ft.data.stats.statistics import dataset_statistics

    if "://" not in source and not Path(source).is_dir():
        rows = _from_file(Path(source))
        space = end_effector_delta()
        return GridActions(Path(source).name, space, len(rows), rows, False, None, rows)
    dataset = open_dataset(source, card=card, split=split)
    actions = MixtureActions([dataset], {dataset.name: dataset_statistics(dataset)}, [1.0])
    if zero_bin:
        actions = actions.symmetric()
    return of_actions(dataset.name, actions, actions.statistics[dataset.name])


def read_mixture(
    name: str,
    *,
    file: Path | None,
    root: Path | None,
    exclude: list[str],
    workers: int,
    zero_bin: bool = False,
    tell: Tell,
) -> GridActions:
    """The actions of a mixture as they are drawn, each dataset normalised by itself."""
    from spatialvla_ft.data.stats.scan import open_mixture_actions

    actions = open_mixture_actions(name, file, root, exclude, workers, tell=tell).actions
    return of_actions(name, actions.symmetric() if zero_bin else actions, None)


def of_actions(
    name: str, actions: MixtureActions, statistics: ActionStatistics | None
) -> GridActions:
    """Of an opened dataset with its statistics, or of a mixture."""
    from spatialvla_ft.data.stats.fits import sample_actions

    drawn = zip(actions.datasets, actions.shares, strict=True)
    count = sum(int(dataset.episode_lengths.sum()) for dataset, share in drawn if share > 0)
    sample = sample_actions(actions)
    return GridActions(
        name=name,
        space=actions.space,
        count=count,
        sample=sample.astype("float64"),
        sampled=not actions.draws_evenly or len(sample) < count,
        statistics=statistics,
        source=actions,
    )


def read_gaussians(source: Path, name: str | None = None) -> dict[str, dict[str, float]]:
    """{axis: {mu, sigma}} from a YAML or JSON file that holds one fit, or several by name.

    ValueError names the file, what is wrong with it and the cure.
    """
    import yaml

    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{source} does not exist; give a YAML or JSON file of fits{near_path(source)}"
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is neither YAML nor JSON: {error}") from None
    fits = content.get("gaussians", content) if isinstance(content, dict) else None
    if not isinstance(fits, dict) or not all(isinstance(value, dict) for value in fits.values()):
        raise ValueError(
            f"{source} must hold {{axis: {{mu, sigma}}}} for x, y, z, theta, phi, r, roll, pitch "
            "and yaw, or such fits by name"
        )
    if "theta" in fits:
        if name is not None:
            raise ValueError(f"{source} holds one fit without a name; leave out {name!r}")
        return fits
    if name is None and len(fits) == 1:
        return next(iter(fits.values()))
    if name not in fits:
        what = "holds several fits" if name is None else f"has no fit called {name!r}"
        raise ValueError(f"{source} {what}; name one of {sorted(fits)} (--gaussians-of)")
    found: dict[str, dict[str, float]] = fits[name]
    return found


def read_bins(bins: str) -> tuple[int, ...]:
    """Counts from the value of --bins, e.g. "16,32,8,16,16,16,2"."""
    try:
        return tuple(int(n) for n in bins.split(","))
    except ValueError:
        raise ValueError(
            f"--bins is {bins!r}; give whole numbers with commas, e.g. 16,32,8,16,16,16,2"
        ) from None


def _from_file(source: Path) -> NDArray[np.float64]:
    import numpy as np

    from spatialvla_ft.actions.layout import check_actions
    from spatialvla_ft.actions.spaces import end_effector_delta

    if source.suffix not in (".npy", ".npz"):
        raise ValueError(
            f"{source} is neither a dataset directory nor a .npy or .npz file of normalised "
            "actions (n, 7)"
            + ("" if source.exists() else f"; it does not exist{near_path(source)}")
        )
    try:
        loaded = np.load(source, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(
            f"{source} does not exist; give a dataset directory or a file{near_path(source)}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{source} cannot be read as NumPy data: {error}") from None
    if source.suffix == ".npz":
        with loaded:
            key = "actions" if "actions" in loaded.files else loaded.files[0]
            if key != "actions" and len(loaded.files) != 1:
                raise ValueError(
                    f"{source} has arrays {loaded.files[:8]} but none called 'actions'; save the "
                    "normalised actions under that name"
                )
            loaded = loaded[key]
    space = end_effector_delta()
    try:
        actions = check_actions(loaded, space)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if len(actions) == 0:
        raise ValueError(f"{source} has no actions")
    low, high = -1.0 - 1e-6, 1.0 + 1e-6
    outside = (actions < low) | (actions > high)
    if outside.any():
        row, column = (int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"{source}: actions[{row}, {column}] ({space.names[column]}) is "
            f"{actions[row, column]:g}, outside [-1, 1]; a file must hold NORMALISED actions. Give "
            "the dataset directory instead, and they are normalised by its statistics"
        )
    return actions


def grid_report(grid: ActionGrid, given: GridActions) -> dict[str, Any]:
    """Fits and losses; an error in robot units is the normalised one times (q99 - q01) / 2."""
    import numpy as np

    from spatialvla_ft.actions.reconstruction import reconstruct

    result = reconstruct(grid, given.sample)
    errors: dict[str, dict[str, Any]] = {}
    for index, (name, error) in enumerate(result.by_dimension().items()):
        errors[name] = {"rmse": error["rmse"], "max": error["max"]}
        if given.statistics is not None:
            scale = 1.0
            if given.statistics.mask[index]:
                scale = float(given.statistics.q99[index] - given.statistics.q01[index]) / 2
            errors[name] |= {
                "rmse_robot": error["rmse"] * scale,
                "max_robot": error["max"] * scale,
                "unit": given.space.units[index],
            }
    return {
        "source": given.name,
        "num_actions": given.count,
        "num_measured": len(given.sample),
        "sampled": given.sampled,
        "kind": grid.kind,
        "bins": list(grid.bins),
        "num_tokens": grid.total,
        "tokens": {
            slot.name: {"used": len(np.unique(result.ids[:, index])), "of": count}
            for index, (slot, count) in enumerate(zip(grid.slots, grid.counts, strict=True))
        },
        "zero_bin": grid.zero_bin,
        "decoding": grid.decoding,
        "min_sigma": grid.min_sigma,
        "gaussians": grid.gaussians,
        "axes": list(grid.edges),
        "reconstruction": errors,
    }
