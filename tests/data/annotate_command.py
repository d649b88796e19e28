"""`data annotate` as tests call it, and what it must find in the dataset `acted`."""

from __future__ import annotations

import json

import numpy as np
import points_checks
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app

RUN = CliRunner()


def annotate(*args, code=0):
    done = RUN.invoke(app, ["data", "annotate", *map(str, args), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if code == 0 else " ".join(done.stderr.split())


def known(number):
    """(T, 3) points of an episode of `acted`, by its commands alone."""
    columns, _ = points_checks.acted_episode(number)
    state, action = columns["observation.state"], columns["action"]
    points = np.full((len(state), 3), np.nan, np.float32)
    if number == 0:
        points[:5], points[5:10] = state[4, :3], state[9, :3]
    elif number == 1:
        points[:] = state[-1, :3] + points_checks.GAIN * action[-1, :3]
    elif number in (3, 5):
        points[:6] = state[5, :3]
    return points
