"""`data stats` and `grids fit` on LeRobot folders."""

import json

import lerobot_write
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app

RUN = CliRunner()


def test_stats_of_a_lerobot_folder(tmp_path):
    lerobot_write.write(tmp_path / "arm", "v3.0", depth=False)
    done = RUN.invoke(app, ["data", "stats", str(tmp_path / "arm"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["as_drawn"]
    assert found["statistics"]["count"] == sum(lerobot_write.LENGTHS)
    assert len(found["fits"]["quantile"]["shoulder_pan"]["edges"]) == 257
