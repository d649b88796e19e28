"""Normalised actions for `grids fit` and `grids plot`: from a dataset, or from a NumPy file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from spatialvla_ft.actions.normalise import ActionStatistics
    from spatialvla_ft.actions.spaces import ActionSpace


@dataclass(frozen=True)
class GridActions:
    """Normalised actions (n, dim) with their name; statistics where the source is a dataset."""

    name: str
    actions: NDArray[np.float64]
    statistics: ActionStatistics | None
    space: ActionSpace


def read_actions(
    source: Path, *, card: Path | None, split: str, zero_bin: bool = False
) -> GridActions:
    """From a dataset directory (raw actions, normalised here) or a .npy/.npz (normalised, one arm).

    For a grid with zero bins the dataset's statistics are made symmetric, so that 0 is 0.

    ValueError names the file, what is wrong with it and the cure.
    """
    from spatialvla_ft.actions.spaces import end_effector_delta

    if source.is_dir():
        return _from_dataset(source, card, split, zero_bin)
    return GridActions(source.name, _from_file(source), None, end_effector_delta())


def read_gaussians(source: Path, name: str | None = None) -> dict[str, dict[str, float]]:
    """{axis: {mu, sigma}} from a YAML or JSON file that holds one fit, or several by name.

    ValueError names the file, what is wrong with it and the cure.
    """
    import yaml

    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{source} does not exist; give a YAML or JSON file of fits") from None
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
    return fits[name]


def _from_dataset(source: Path, card: Path | None, split: str, zero_bin: bool) -> GridActions:
    from spatialvla_ft.actions.normalise import normalise
    from spatialvla_ft.data import open_dataset
    from spatialvla_ft.data.statistics import dataset_statistics

    dataset = open_dataset(source, card=card, split=split)
    space = dataset.action_space
    statistics = dataset_statistics(dataset)
    if zero_bin:
        statistics = statistics.symmetric(space.deltas)
    actions = normalise(dataset.actions(), statistics).astype("float64")
    return GridActions(dataset.name, actions, statistics, space)


def _from_file(source: Path) -> NDArray[np.float64]:
    import numpy as np

    from spatialvla_ft.actions.layout import check_actions
    from spatialvla_ft.actions.spaces import end_effector_delta

    if source.suffix not in (".npy", ".npz"):
        raise ValueError(
            f"{source} is neither a dataset directory nor a .npy or .npz file of normalised "
            "actions (n, 7)" + ("" if source.exists() else "; it does not exist")
        )
    try:
        loaded = np.load(source, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{source} does not exist; give a dataset directory or a file") from None
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
