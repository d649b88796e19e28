"""`data stats` and `grids fit` on LeRobot folders."""

import json

import lerobot_write
import numpy as np
from typer.testing import CliRunner

from spatialvla_ft.actions.fit import fit_grid
from spatialvla_ft.actions.grid_io import load_grid
from spatialvla_ft.actions.normalise import normalise
from spatialvla_ft.cli.main import app
from spatialvla_ft.data import open_dataset
from spatialvla_ft.data.stats.statistics import compute_statistics

RUN = CliRunner()


def test_stats_of_a_lerobot_folder(tmp_path):
    lerobot_write.write(tmp_path / "arm", "v3.0", depth=False)
    done = RUN.invoke(app, ["data", "stats", str(tmp_path / "arm"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["as_drawn"]
    assert found["statistics"]["count"] == sum(lerobot_write.LENGTHS)
    assert len(found["fits"]["quantile"]["shoulder_pan"]["edges"]) == 257


def test_a_grid_of_a_lerobot_folder(tmp_path):
    lerobot_write.write(tmp_path / "arm", "v2.1", depth=False)
    out = tmp_path / "grid.json"
    command = ["grids", "fit", str(tmp_path / "arm"), "--kind", "quantile", "--out", str(out)]
    done = RUN.invoke(app, command)
    assert done.exit_code == 0, done.output
    dataset = open_dataset(tmp_path / "arm", card=None)
    mask = np.arange(4) < 3
    actions = normalise(dataset.actions(), compute_statistics(dataset.actions(), mask))
    wanted, got = fit_grid("quantile", actions, space=dataset.action_space), load_grid(out)
    for axis, edges in wanted.edges.items():
        np.testing.assert_allclose(got.edges[axis], edges, atol=1e-9)
