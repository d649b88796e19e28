"""Where grids live on disk: grid.json, and the `processor_config.json` of a checkpoint.

The checkpoint layout of one arm is the released one: `action_config` with the bin counts and
`bin_policy` with the edges. Released files know neither `decoding`, `bin_means` nor `zero_bin`, all
inside `action_config`; a file without `decoding` means "midpoint". Readers that know only the
released fields still work. Grids of other action spaces stand whole under `action_grid`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from ..near import near_path
from .axes import AXES, ROTATION_AXES, TRANSLATION_AXES
from .grid import ActionGrid
from .grid_checks import Kind
from .layout import slots_of
from .spaces import ActionSpace, end_effector_delta

_GROUPS = {"translation": TRANSLATION_AXES, "rotation": ROTATION_AXES}


def is_one_arm(grid: ActionGrid) -> bool:
    """Whether the released layout can hold the grid."""
    return grid.slots == slots_of(end_effector_delta())


def grid_to_dict(grid: ActionGrid) -> dict[str, Any]:
    """Everything, as JSON can hold it; `grid_from_dict` gives an equal grid."""
    content = {
        "schema_version": 1,
        "kind": grid.kind,
        "decoding": grid.decoding,
        "bins": list(grid.bins),
        "min_sigma": grid.min_sigma,
        "gaussians": grid.gaussians,
        "edges": {axis: edges.tolist() for axis, edges in grid.edges.items()},
        "means": {axis: means.tolist() for axis, means in grid.means.items()},
    }
    if grid.zero_bin:
        content["zero_bin"] = True
    if not is_one_arm(grid):
        content["token_counts"] = list(grid.counts)
        content["action_space"] = grid.action_space.to_dict()
    return content


def grid_from_dict(values: Mapping[str, Any]) -> ActionGrid:
    """From `grid_to_dict`; ValueError names what is missing or inconsistent."""
    if values.get("schema_version") != 1:
        raise ValueError(
            f"schema_version is {values.get('schema_version')!r}, expected 1; is this a grid "
            "written by `spatialvla-ft grids fit`?"
        )
    missing = [key for key in ("kind", "decoding", "edges", "means") if key not in values]
    if missing:
        raise ValueError(f"the grid lacks {missing}; write it again with `grids fit`")
    space = values.get("action_space")
    grid = ActionGrid(
        values["edges"],
        space=None if space is None else ActionSpace.from_dict(space),
        means=values["means"],
        decoding=values["decoding"],
        kind=values["kind"],
        gaussians=values.get("gaussians"),
        min_sigma=values.get("min_sigma", 0.0),
        zero_bin=values.get("zero_bin", False),
    )
    for key, made in (("bins", grid.bins), ("token_counts", grid.counts)):
        if key in values and tuple(values[key]) != made:
            raise ValueError(f"{key} says {values[key]} but the edges make {list(made)}")
    return grid


def to_processor_config(grid: ActionGrid) -> dict[str, Any]:
    """What a processor_config.json says of its grid.

    The released keys `action_config`, `bin_policy` and `min_sigma` for one arm; else `action_grid`.
    """
    if not is_one_arm(grid):
        return {"action_grid": grid_to_dict(grid)}
    counts = dict(zip(AXES, grid.bins, strict=False))
    action_config: dict[str, Any] = {
        "distribution": grid.kind,
        "num_bins": {
            group: {f"{axis}_bins": counts[axis] for axis in axes}
            for group, axes in _GROUPS.items()
        },
        "use_spherical": True,
        "decoding": grid.decoding,
        "bin_means": {axis: grid.means[axis].tolist() for axis in AXES},
    }
    if grid.zero_bin:
        action_config["zero_bin"] = True
    action_config["num_bins"] |= {"gripper": grid.bins[-1], "total": grid.total}
    return {
        "action_config": action_config,
        "bin_policy": {
            group: {f"{axis}_bins": grid.edges[axis].tolist() for axis in axes}
            for group, axes in _GROUPS.items()
        },
        "min_sigma": grid.min_sigma,
    }


def from_processor_config(config: Mapping[str, Any]) -> ActionGrid:
    """The grid of a parsed processor_config.json, released or ours.

    ValueError if it has no edges, if the counts in `action_config` contradict them, or if its
    translation is not spherical.
    """
    if config.get("action_grid"):
        return grid_from_dict(config["action_grid"])
    policy, action_config = config.get("bin_policy"), config.get("action_config") or {}
    if not policy:
        raise ValueError(
            "the processor config has no bin_policy (bin edges); fit a grid with "
            "`spatialvla-ft grids fit` and save it with the checkpoint"
        )
    if not action_config.get("use_spherical", True):
        raise ValueError(
            "action_config.use_spherical is False; only spherical translation (theta, phi, r) is "
            "supported, so this checkpoint cannot be loaded"
        )
    edges = {}
    for group, axes in _GROUPS.items():
        for axis in axes:
            if f"{axis}_bins" not in (policy.get(group) or {}):
                raise ValueError(f"bin_policy lacks {group}.{axis}_bins; the file is incomplete")
            edges[axis] = policy[group][f"{axis}_bins"]
    kind = action_config.get("distribution", "boundaries")
    if kind not in get_args(Kind):
        raise ValueError(
            f"action_config.distribution is {kind!r}; it must be one of {list(get_args(Kind))}"
        )
    grid = ActionGrid(
        edges,
        means=action_config.get("bin_means"),
        decoding=action_config.get("decoding", "midpoint"),
        kind=kind,
        min_sigma=config.get("min_sigma") or 0.0,
        zero_bin=action_config.get("zero_bin", False),
    )
    _check_counts(action_config.get("num_bins"), grid)
    return grid


def _check_counts(num_bins: Mapping[str, Any] | None, grid: ActionGrid) -> None:
    if num_bins is None:
        return
    counts = dict(zip(AXES, grid.bins, strict=False))
    expected: dict[str, Any] = {"gripper": grid.bins[-1], "total": grid.total}
    given = {key: num_bins[key] for key in expected if key in num_bins}
    for group, axes in _GROUPS.items():
        for axis in axes:
            if f"{axis}_bins" in num_bins.get(group, {}):
                given[f"{group}.{axis}_bins"] = num_bins[group][f"{axis}_bins"]
            expected[f"{group}.{axis}_bins"] = counts[axis]
    wrong = {key: value for key, value in given.items() if value != expected[key]}
    if wrong:
        raise ValueError(
            f"action_config.num_bins says {wrong}, but the edges in bin_policy make "
            f"{ {key: expected[key] for key in wrong} }; correct num_bins or the edges"
        )


def save_grid(grid: ActionGrid, path: Path) -> None:
    """Write a grid.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(grid_to_dict(grid), indent=1) + "\n")


def load_grid(path: Path) -> ActionGrid:
    """Read a grid.json, a processor_config.json, or a checkpoint directory with one of them."""
    if path.is_dir():
        found = [path / name for name in ("grid.json", "processor_config.json")]
        present = [file for file in found if file.is_file()]
        if not present:
            raise ValueError(
                f"{path} holds neither grid.json nor processor_config.json; pass a grid file "
                "written by `spatialvla-ft grids fit` or a checkpoint directory"
            )
        path = present[0]
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist; pass a grid.json or a checkpoint{near_path(path)}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not a grid; see `grids fit`")
    try:
        if {"bin_policy", "action_config", "action_grid"} & values.keys():
            return from_processor_config(values)
        return grid_from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
