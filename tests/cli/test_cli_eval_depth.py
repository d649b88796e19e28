"""`eval sim --depth`: what it refuses, and what the policy then takes its depth from."""

from __future__ import annotations

import pytest
import torch
from tiny_world import tiny_model, tiny_processor
from typer.testing import CliRunner

from spatialvla_ft.cli.evaluate import _with_depth
from spatialvla_ft.cli.main import app
from spatialvla_ft.policy.policies import ModelPolicy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth-every", "2"], "need --depth, an estimator"),
        (["--depth-resolution", "64"], "need --depth, an estimator"),
        (["--depth", "x", "--policy", "no-motion"], "no-motion does not look"),
    ],
)
def test_refusals(arguments, message):
    done = CliRunner().invoke(app, ["eval", "sim", "--robot", "robot_a", *arguments])
    assert done.exit_code == 1
    assert message in done.stderr


def test_the_policy_takes_the_checkpoint_s_depth(golden_checkpoint):
    processor = tiny_processor()
    policy = ModelPolicy(tiny_model(processor, depth_source="sensor"), processor)
    policy = _with_depth(policy, str(golden_checkpoint), 64, 3)
    assert policy.depth == "sensor"
    asked = policy.estimated.estimator
    assert asked.n == 3
    assert asked.estimator.resolution == 64
    assert asked(torch.rand(1, 3, 40, 40)).shape == (1, 40, 40)
