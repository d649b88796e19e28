"""What a run says in the terminal: one calm line, warnings above it, a summary at the end."""

from __future__ import annotations

import json
import logging
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from spatialvla_ft.cli import console as module
from spatialvla_ft.cli.console import (
    TrainingLog,
    TrainingProgress,
    Watch,
    progress_words,
    warnings_shown,
)
from spatialvla_ft.cli.preflight_view import show_preflight
from spatialvla_ft.cli.train import best_and_last, summary, validation_losses
from spatialvla_ft.training.preflight.datasets import DatasetFacts, Dimension
from spatialvla_ft.training.preflight.report import Preflight
from spatialvla_ft.training.preflight.samples import SampleFacts
from spatialvla_ft.training.trainable import ParameterGroup

LAST = {
    "loss": 1.23456,
    "accuracy/translation": 0.5,
    "accuracy/rotation": 0.7,
    "samples_per_second": 1234.5,
    "data_wait_share": 0.034,
    "validation/loss": 2.5,
    "validation/accuracy/rotation": 0.1,
}


def test_the_line_says_what_matters():
    assert progress_words(LAST) == (
        "loss 1.235, 60 % right, held out 2.500, 1,234 samples/s, 3 % waiting for data"
    )
    assert progress_words({"loss": 2.0}) == "loss 2.000"


def test_warnings_stand_above_the_line_once_in_the_summary():
    told, kept = StringIO(), []
    package = logging.getLogger("spatialvla_ft.training.validation")
    with warnings_shown(Console(file=told, width=60), kept):
        for _ in range(2):
            package.warning("step %d: [red] is no markup, and this line is longer than 60", 7)
        package.info("quiet")
    package.warning("after the run")
    text = "step 7: [red] is no markup, and this line is longer than 60"
    assert kept == [text]
    assert told.getvalue() == f"warning: {text}\n" * 2


def test_where_nobody_watches_there_are_few_lines():
    told = StringIO()
    with Progress(TextColumn("{task.description}"), console=Console(file=told)) as progress:
        log = TrainingLog(progress, 500)
        log.task = progress.add_task("training", total=500, text="")
        for step in range(1, 200):
            log(step, LAST)
    lines = [line for line in told.getvalue().splitlines() if line.startswith("step ")]
    assert lines == [f"step 1 of 500  {progress_words(LAST)}"]
    assert log.last == LAST


@pytest.mark.parametrize(("steps", "every", "lines"), [(20, 1, 20), (1000, 5, 200), (201, 1, 1)])
def test_where_nobody_watches_a_few_logged_steps_are_all_told(steps, every, lines):
    told = StringIO()
    with Progress(TextColumn("{task.description}"), console=Console(file=told)) as progress:
        log = TrainingLog(progress, steps, every)
        log.task = progress.add_task("training", total=steps, text="")
        for step in range(every, steps + 1, every):
            log(step, LAST)
    assert told.getvalue().count("step ") == lines


def test_a_run_that_goes_on_says_so_at_once():
    told = StringIO()
    with Progress(TextColumn("{task.description}"), console=Console(file=told)) as progress:
        log = TrainingLog(progress, 5000)
        log.task = progress.add_task("training", total=5000, text="")
        log(1200, {})
        log(1210, LAST)
    assert told.getvalue().splitlines()[0] == "continued at step 1,200 of 5,000"
    assert "step 1,210 of 5,000  loss" in told.getvalue()


def test_nothing_is_cut_off_in_80_columns():
    told = StringIO()
    console = Console(file=told, width=80, force_terminal=True, color_system=None)
    columns = (TextColumn("{task.description}"), module.BarColumn(bar_width=24))
    with TrainingProgress(*columns, console=console, auto_refresh=False) as progress:
        log = TrainingLog(progress, 500)
        log.task = progress.add_task("training", total=500, text="")
        log(7, LAST)
        progress.refresh()
    assert progress_words(LAST) in told.getvalue()
    assert len(progress_words(LAST)) > 80 - len("training") - 24


def test_long_work_is_told_in_a_file_now_and_then(monkeypatch):
    clock = iter([0.0, 1, 31, 40, 70])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    told = StringIO()
    progress = Progress(console=Console(file=told))
    watch = Watch(progress, "steps", 256)
    for done, note in ((1, ""), (64, ""), (80, ""), (128, "3 failed")):
        watch(done, note)
    assert told.getvalue().splitlines() == [
        "steps: 64 of 256, about 93 s left",
        "steps: 128 of 256, about 70 s left  3 failed",
    ]


def test_the_report_before_the_first_step_fits_into_80_columns():
    """Of two arms too; only sentences may be longer, which the terminal breaks."""
    names = [f"{arm}_{name}" for arm in ("left", "right") for name in
             ("x", "y", "z", "roll", "pitch", "yaw", "gripper")]  # fmt: skip
    units = (["m"] * 3 + ["rad"] * 3 + ["1 = open, 0 = closed"]) * 2
    values = [-1.23456e-05, 0.0123456, -0.123456, 3.14159, -2.5e-07, 0.2, 1.0] * 2
    dimensions = [
        Dimension(name, unit, -1.23e-05, 1.23e-05, 0.0123, 0.2, "rare motion, kept")
        for name, unit in zip(names, units, strict=True)
    ]
    sample = SampleFacts(
        "my_robot/1.0.0", 12, 345, "touch", "[16 image tokens]<bos>touch", 30, names, units,
        [values], [values], {"primary": {"mean": 0.5, "std": 0.2, "min": 0.0, "max": 1.0}}, None,
    )  # fmt: skip
    facts = DatasetFacts(
        "my_robot/1.0.0", 100, 9000, 1.0, 5, 10.0, dimensions, [], "none", 9000, {"actions": 0}, {}
    )
    groups = [ParameterGroup("spatial table", 10**9, 10**9, 0)]
    report = Preflight([facts], [sample], None, groups, {"steps": "500"}, None, [], [], 0.1)
    told = StringIO()
    show_preflight(report, Console(file=told, width=80, color_system=None))
    lines = told.getvalue().splitlines()
    for name in names:
        rows = [line for line in lines if line.split()[:1] == [name]]
        assert len(rows) == 2, "one in the table of ranges, one in that of the sample"
        assert all(len(row.rstrip()) <= 80 for row in rows)
        assert "rare motion, kept" in rows[0]
    assert "-1.235e-05" in told.getvalue()


@pytest.fixture
def finished(tmp_path):
    """A run that was validated three times, the second time best."""
    lines = [{"step": 10, "loss": 0.1}]
    lines += [{"step": s, "validation/loss": v} for s, v in ((10, 3.0), (20, 2.0), (30, 2.5))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    return tmp_path


def test_the_summary_names_best_last_warnings_and_the_next_command(finished):
    result = finished / "final"
    lines = summary(finished, result, 30, "best", ["it is blind"], "datasets/x")
    assert lines[0] == f"trained 30 steps; {result} holds the best weights"
    assert lines[1] == "validation loss: best 2.000 at step 20, last 2.500 at step 30"
    assert lines[2] == "warning: it is blind"
    assert lines[-1] == f"next: spatialvla-ft eval open-loop {result} datasets/x"
    many = summary(finished, result, 30, "last", [str(i) for i in range(20)], "datasets/x")
    assert sum(line.startswith("warning: ") for line in many) == 12
    assert "and 8 warnings before these" in many


def test_a_run_without_validation_has_no_losses_to_tell(tmp_path):
    assert best_and_last(validation_losses(Path(tmp_path) / "metrics.jsonl")) == {}
    lines = summary(tmp_path, tmp_path / "final", 5, "last", [], "DATASET")
    assert not any(line.startswith("validation loss") for line in lines)
