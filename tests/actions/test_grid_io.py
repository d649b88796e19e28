import copy
import json

import numpy as np
import pytest

from spatialvla_ft.actions import ActionGrid, fit_gaussians
from spatialvla_ft.actions.grid_io import (
    from_processor_config,
    grid_from_dict,
    grid_to_dict,
    load_grid,
    save_grid,
    to_processor_config,
)

ACTIONS = np.random.default_rng(0).normal(0, 0.3, (500, 7)).clip(-1, 1)
BINS = (5, 7, 3, 4, 6, 2, 2)


@pytest.fixture
def released(golden_checkpoint):
    return json.loads((golden_checkpoint / "processor_config.json").read_text())


@pytest.fixture(params=["gaussian", "quantile", "uniform"])
def grid(request):
    if request.param == "gaussian":
        return ActionGrid.from_gaussians(fit_gaussians(ACTIONS), bins=BINS, min_sigma=0.25)
    if request.param == "quantile":
        return ActionGrid.from_quantiles(ACTIONS, bins=BINS)
    return ActionGrid.uniform(bins=BINS, decoding="midpoint")


def test_released_checkpoint(released, golden_dir):
    grid = from_processor_config(released)
    assert grid.decoding == "midpoint"  # what a file without the field means
    assert (grid.kind, grid.total) == ("gaussian", 8194)
    with np.load(golden_dir / "actions.npz") as golden:
        ids = golden["spatialvla_plus_sigma0.5/ids"]
        np.testing.assert_array_equal(grid.encode(golden["actions_f32"]), ids)
        np.testing.assert_allclose(
            grid.decode(ids[:500]),
            golden["spatialvla_plus_sigma0.5/decoded_first500_f64"],
            atol=1e-14,
        )


def test_our_layout_contains_the_released_one(released):
    ours = to_processor_config(from_processor_config(released))
    assert ours["bin_policy"] == released["bin_policy"]
    assert released["action_config"].items() <= ours["action_config"].items()
    assert set(ours["action_config"]) - set(released["action_config"]) == {"decoding", "bin_means"}


def test_processor_config_round_trip(grid):
    again = from_processor_config(json.loads(json.dumps(to_processor_config(grid))))
    assert again == grid
    assert (again.kind, again.min_sigma) == (grid.kind, grid.min_sigma)


def test_dict_round_trip(grid):
    again = grid_from_dict(json.loads(json.dumps(grid_to_dict(grid))))
    assert again == grid
    assert again.gaussians == grid.gaussians
    assert again != ActionGrid.uniform()


def test_files(grid, tmp_path, golden_checkpoint):
    save_grid(grid, tmp_path / "grid.json")
    assert load_grid(tmp_path / "grid.json") == grid
    assert load_grid(tmp_path) == grid
    assert load_grid(golden_checkpoint).total == 8194


def test_file_errors(tmp_path):
    with pytest.raises(ValueError, match=r"neither grid\.json nor processor_config\.json"):
        load_grid(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        load_grid(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json is not JSON"):
        load_grid(tmp_path / "bad.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json: schema_version is None"):
        load_grid(tmp_path / "other.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json holds a list"):
        load_grid(tmp_path / "list.json")


def edit(config, path, value):
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    node = config
    for key in parents:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("bin_policy", None, "no bin_policy"),
        ("bin_policy.translation.phi_bins", None, "lacks translation.phi_bins"),
        ("action_config.num_bins.translation.r_bins", 9, r"translation.r_bins': 9.*r_bins': 8"),
        ("action_config.num_bins.total", 1, "'total': 1.*'total': 8194"),
        ("action_config.use_spherical", False, "use_spherical is False"),
        ("action_config.distribution", "normal", "'normal'; it must be one of"),
        ("action_config.decoding", "median", "decoding is 'median'"),
    ],
)
def test_processor_config_refuses(released, path, value, message):
    with pytest.raises(ValueError, match=message):
        from_processor_config(edit(released, path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("edges", None, r"lacks \['edges'\]"),
        ("schema_version", 2, "schema_version is 2"),
        ("bins", [1, 2], r"bins says \[1, 2\]"),
        ("kind", "magic", "kind is 'magic'"),
    ],
)
def test_dict_refuses(grid, path, value, message):
    with pytest.raises(ValueError, match=message):
        grid_from_dict(edit(grid_to_dict(grid), path, value))
