"""What a run says in the terminal: one calm line, warnings above it, a summary at the end."""

from __future__ import annotations

import json
import logging
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from spatialvla_ft.cli.console import TrainingLog, progress_words, warnings_shown
from spatialvla_ft.cli.train_summary import best_and_last, summary, validation_losses

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
