"""Id by id against the released implementation (tests/golden/actions.npz)."""

from pathlib import Path

import numpy as np
import pytest

from spatialvla_ft.actions import ActionGrid

GOLDEN = Path(__file__).parents[1] / "golden" / "actions.npz"
AXES = ("theta", "phi", "r", "roll", "pitch", "yaw")
GRIDS = ("bridge_sigma0.0", "spatialvla_plus_sigma0.5", "uniform")

# Figures of the released model: means and standard deviations of the normalised actions.
RELEASED = {
    "bridge_sigma0.0": {
        "theta": {"mu": 2.1809353828430176, "sigma": 0.7849347591400146},
        "phi": {"mu": 0.14071796834468842, "sigma": 1.79030179977417},
        "r": {"mu": 0.5538575649261475, "sigma": 0.3001556098461151},
        "roll": {"mu": -0.008261306211352348, "sigma": 0.3131641745567322},
        "pitch": {"mu": 0.08297622203826904, "sigma": 0.3307911157608032},
        "yaw": {"mu": 0.009338612668216228, "sigma": 0.2981548309326172},
    },
    "spatialvla_plus_sigma0.5": {
        "theta": {"mu": 1.8739714125737532, "sigma": 0.779843323370511},
        "phi": {"mu": 0.08796911369129973, "sigma": 1.6921243756107702},
        "r": {"mu": 0.5480865478719801, "sigma": 0.34749763559260854},
        "roll": {"mu": -0.016498618557435858, "sigma": 0.3804899850542066},
        "pitch": {"mu": 0.028462961721089787, "sigma": 0.29912182728829634},
        "yaw": {"mu": -0.004913600039079129, "sigma": 0.39022979006490277},
    },
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as archive:
        return {name: archive[name] for name in archive.files}


def boundaries(golden, name):
    return {axis: golden[f"{name}/{axis}_bins"] for axis in AXES}


@pytest.fixture(params=GRIDS)
def name(request):
    return request.param


@pytest.fixture
def grid(golden, name):
    return ActionGrid.from_boundaries(boundaries(golden, name), decoding="midpoint")


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_gaussian_edges(golden, name):
    min_sigma = 0.5 if name.endswith("0.5") else 0.0
    ours = ActionGrid.from_gaussians(RELEASED[name], min_sigma=min_sigma)
    for axis, edges in boundaries(golden, name).items():
        np.testing.assert_allclose(ours.edges[axis], edges, rtol=0, atol=1e-13, err_msg=axis)
    ids = ours.encode(golden["actions_f32"])
    np.testing.assert_array_equal(ids, golden[f"{name}/ids"])


def test_min_sigma_matters(golden):
    ours = ActionGrid.from_gaussians(RELEASED["spatialvla_plus_sigma0.5"])
    edges = golden["spatialvla_plus_sigma0.5/roll_bins"]
    assert np.abs(ours.edges["roll"] - edges).max() > 0.05


def test_uniform_edges(golden):
    ours = ActionGrid.uniform()
    for axis, edges in boundaries(golden, "uniform").items():
        np.testing.assert_allclose(ours.edges[axis], edges, rtol=0, atol=1e-15, err_msg=axis)
    np.testing.assert_array_equal(ours.encode(golden["actions_f32"]), golden["uniform/ids"])
    np.testing.assert_array_equal(ours.encode(golden["edge_f64"]), golden["uniform/edge_ids"])


def test_ids(golden, grid, name):
    np.testing.assert_array_equal(grid.encode(golden["actions_f32"]), golden[f"{name}/ids"])


def test_ids_one_at_a_time(golden, grid, name):
    """A short chunk may take another path; it must give the same ids."""
    ids = [grid.encode(action[None])[0] for action in golden["actions_f32"]]
    np.testing.assert_array_equal(ids, golden[f"{name}/ids"])


@pytest.mark.parametrize("chunk", [1, 4, 15])
def test_edge_cases(golden, grid, name, chunk):
    rows = golden["edge_f64"]
    ids = np.concatenate([grid.encode(rows[i : i + chunk]) for i in range(0, len(rows), chunk)])
    np.testing.assert_array_equal(ids, golden[f"{name}/edge_ids"])
    np.testing.assert_allclose(grid.decode(ids), golden[f"{name}/edge_decoded"], rtol=0, atol=1e-14)


@pytest.mark.parametrize("chunk", [1, 17])
def test_rotation_at_the_edges_themselves(golden, grid, name, chunk):
    edges = np.stack([golden[f"{name}/{axis}_bins"] for axis in AXES[3:]], axis=1)
    actions = np.concatenate([np.zeros((17, 3)), edges, np.zeros((17, 1))], axis=1)
    ids = np.concatenate([grid.encode(actions[i : i + chunk]) for i in range(0, 17, chunk)])
    np.testing.assert_array_equal(ids[:, 1], golden[f"{name}/rot_edge_ids"])


def test_decodes(golden, grid, name):
    ids = golden[f"{name}/ids"][:500]
    expected = golden[f"{name}/decoded_first500_f64"]
    np.testing.assert_allclose(grid.decode(ids), expected, rtol=0, atol=1e-14)
    one_by_one = np.concatenate([grid.decode(row[None]) for row in ids])
    np.testing.assert_allclose(one_by_one, expected, rtol=0, atol=1e-14)


def test_what_the_released_code_encodes_silently(golden, grid):
    for row in golden["nan_f64"]:
        with pytest.raises(ValueError, match=r"actions\[0, \d\] \(\w+\) is (nan|-?inf)"):
            grid.encode(row[None])
    with pytest.raises(ValueError, match=r"actions\[1, 2\] \(z\) is nan"):
        grid.encode([[0.0] * 7, [0, 0, np.nan, 0, 0, 0, 0]])
