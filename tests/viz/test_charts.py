"""Bars, curves, and the sentences that say what is odd about them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from page_text import text_of
from run_folder import write_run

from spatialvla_ft.evaluation.outcome import Share, wilson_interval
from spatialvla_ft.quickstart.details import against_mean, held_out
from spatialvla_ft.quickstart.plots import plot_losses, series, smooth
from spatialvla_ft.quickstart.run_files import read_run
from spatialvla_ft.viz.html import Bar, bars


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("run") / "run")).metrics["adapt"]


def test_bars_and_whiskers_are_the_shares():
    shares = [Share(43, 50), Share(0, 50), Share(50, 50)]
    drawn = bars([Bar("a & b", "note", s, "own") for s in shares], mark=0.18, marked="chance")
    widths = re.findall(r'class="fill" style="width:([\d.]+)%"', drawn)
    assert [float(w) for w in widths] == [86.0, 0.0, 100.0]
    whiskers = re.findall(r'class="whisker" style="left:([\d.]+)%;width:([\d.]+)%"', drawn)
    for (left, width), share in zip(whiskers, shares, strict=True):
        low, high = wilson_interval(share.count, share.trials)
        assert float(left) == pytest.approx(100 * low, abs=0.06)
        assert float(left) + float(width) == pytest.approx(100 * high, abs=0.11)
    assert drawn.count('class="mark" style="left:18.0%"') == 3
    assert "a &amp; b" in drawn
    assert "86 % 43 of 50 74 % to 93 %" in text_of(drawn)


def test_losses(lines):
    steps, values = series(lines, "loss")
    assert (steps[0], steps[-1], values[-1]) == (50, 600, 3.0)
    assert len(series(lines, "no such metric")[0]) == 0
    np.testing.assert_allclose(smooth(np.full(9, 2.5)), 2.5)
    kernel = (2 / 3) ** np.arange(12)[::-1]
    assert smooth(values)[-1] == pytest.approx(kernel @ values / kernel.sum())


def test_the_legend_covers_no_curve(lines):
    figures = plot_losses({"base": lines, "adapt": lines, "scratch": lines})
    assert list(figures) == ["Pre-training on robot A", "Training on robot B"]
    for figure in figures.values():
        figure.draw_without_rendering()
        (axes,), (legend,) = figure.axes, figure.legends
        assert legend.get_window_extent().y1 <= axes.get_tightbbox().y0
        assert legend.get_window_extent().x1 <= figure.bbox.x1
    texts = [text.get_text() for text in figures["Pre-training on robot A"].legends[0].get_texts()]
    assert texts[1] == "base, on robot A: held-out episodes, ends at 3.22"
    assert plot_losses({"base": lines})["Training on robot B"].axes[0].texts[0].get_text() == (
        "not recorded"
    )


def validated(*losses):
    return [{"step": 100 * (i + 1), "validation/loss": loss} for i, loss in enumerate(losses)]


def test_what_is_odd_about_a_held_out_loss():
    assert held_out("base", validated(5.0)) == ""
    assert held_out("base", validated(5.0, 4.0, 3.0)) == ""
    rises = held_out("adapt", validated(5.0, 3.0, 3.5))
    assert "“adapted to B (LoRA)” was lowest at step 200, 3.00, and ends at 3.50" in rises
    flat = held_out("scratch", validated(5.0, 3.05, 3.0, 3.01, 3.0))
    assert "stays within 3\u00a0% of 3.00 from step 200 on" in flat
    assert "from step 100 on" in held_out("scratch", validated(3.02, 3.0, 3.01))


def test_where_the_open_loop_is_worse_than_the_mean():
    def result(model, mean):
        return {"names": ["x", "roll", "yaw"], "l1": {"model": model, "mean action": mean}}

    assert against_mean("adapted", result([1, 2, 3], [1, 2.5, 4])) == ""
    text = against_mean("adapted", result([1, 2, 3], [0.5, 2.5, 2]))
    assert text.startswith("“Adapted (LoRA)” is further off than the mean action in x and yaw.")
    assert "another robot" in against_mean("unadapted", result([1, 2, 3], [0.5, 1, 2]))
