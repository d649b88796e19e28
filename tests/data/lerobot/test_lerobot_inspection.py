"""`data inspect` on LeRobot folders."""

import numpy as np
import pytest
from lerobot_write import FPS, LENGTHS, write
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.data import load_cards, open_dataset
from spatialvla_ft.inspection import inspect_dataset


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_by_feature_names(tmp_path, version):
    folder = write(tmp_path / "arm", version)
    seen = inspect_dataset(folder)
    dataset = open_dataset(folder, card=None)
    np.testing.assert_array_equal(seen.action.values, dataset.actions())
    assert seen.space == dataset.action_space
    assert seen.card.action.terms == dataset.card.action.terms
    assert seen.num_steps == sum(LENGTHS)
    assert seen.card.control_hz == FPS
    assert seen.measured_hz == pytest.approx(FPS, rel=1e-3)
    for slot, view in seen.views.items():
        expected = dataset[0].images[slot]
        np.testing.assert_array_equal(view.sheet[0][1][0][1], expected)
    rules = {finding.rule for finding in seen.findings}
    assert "episode of one step" in rules
    assert not {"control rate missing", "absolute or delta", "not finite"} & rules


def test_command_and_drafted_card(tmp_path):
    folder = write(tmp_path / "arm", "v3.0")
    page, card = tmp_path / "page.html", tmp_path / "card.yaml"
    done = CliRunner().invoke(
        app, ["data", "inspect", str(folder), "--out", str(page), "--draft-card", str(card)]
    )
    assert done.exit_code == 0, done.output
    (drafted,) = load_cards(card).values()
    assert drafted.action.terms == open_dataset(folder, card=None).card.action.terms
    assert "LeRobot" in page.read_text()
