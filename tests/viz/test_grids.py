import numpy as np
import pytest
from PIL import Image

from spatialvla_ft.actions import ActionGrid, fit_gaussians
from spatialvla_ft.viz.grids import plot_grid, save_grid_plot

BINS = (5, 7, 3, 4, 6, 2, 2)


@pytest.fixture(scope="module")
def actions():
    rng = np.random.default_rng(0)
    actions = rng.normal(0, 0.3, (400, 7)).clip(-1, 1)
    actions[:60, :3] = 0.0
    actions[:, 6] = rng.integers(0, 2, 400)
    return actions


def panels(figure):
    return {axes.get_title().split(":")[0]: axes for axes in figure.axes if axes.get_title()}


@pytest.mark.parametrize(
    ("kind", "with_data"),
    [("gaussian", True), ("quantile", True), ("uniform", False), ("boundaries", False)],
)
def test_every_axis_has_a_panel(actions, kind, with_data):
    grid = {
        "gaussian": ActionGrid.from_gaussians(fit_gaussians(actions), bins=BINS),
        "quantile": ActionGrid.from_quantiles(actions, bins=BINS),
        "uniform": ActionGrid.uniform(bins=BINS),
        "boundaries": ActionGrid.from_boundaries(ActionGrid.uniform(bins=BINS).edges),
    }[kind]
    figure = plot_grid(grid, actions if with_data else None, title="Grid of a robot")
    figure.draw_without_rendering()  # layout and text; warnings are errors
    found = panels(figure)
    names = {"theta", "phi", "r", "roll", "pitch", "yaw", "gripper"}
    assert names <= set(found)
    assert any("to tokens and back" in name for name in found) == with_data
    assert "Grid of a robot" in figure.get_suptitle()
    for name in names - {"gripper"}:
        (lines,) = [c for c in found[name].collections if hasattr(c, "get_segments")]
        drawn = [segment[0, 0] for segment in lines.get_segments()]
        np.testing.assert_allclose(drawn, grid.edges[name])


def test_the_curve_is_the_density(actions):
    """It integrates to 1, and each bin of it holds the same mass."""
    fits = fit_gaussians(actions)
    grid = ActionGrid.from_gaussians(fits, min_sigma=0.5)
    for name in ("theta", "roll"):
        x, y = panels(plot_grid(grid))[name].lines[0].get_data()
        cumulative = np.concatenate([[0], np.cumsum(0.5 * (y[1:] + y[:-1]) * np.diff(x))])
        mass = np.diff(np.interp(grid.edges[name], x, cumulative))
        np.testing.assert_allclose(mass, 1 / 16, atol=1e-3)


def test_shown_error_is_the_measured_one(actions):
    grid = ActionGrid.uniform(bins=BINS)
    error = grid.decode(grid.encode(actions)) - actions
    rmse = np.sqrt(np.mean(error**2, axis=0))
    titles = [axes.get_title() for axes in plot_grid(grid, actions).axes]
    for name, value in zip("xyz", rmse, strict=False):
        assert f"{name} to tokens and back: RMSE {value:.3f}" in titles


def test_writes_a_picture(actions, tmp_path):
    save_grid_plot(tmp_path / "grid.png", ActionGrid.uniform(bins=BINS), actions)
    with Image.open(tmp_path / "grid.png") as image:
        assert image.width > 1500
        assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 50
