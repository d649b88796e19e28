"""The output folder: one process, nothing deleted, leftovers removed, space told, done or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from spatialvla_ft import files
from spatialvla_ft.training import output
from spatialvla_ft.training.checkpoints import Keep, OutputError
from spatialvla_ft.training.identity import recipe_identity
from spatialvla_ft.training.recipe import RecipeError

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_one_process_at_a_time(tmp_path):
    """The lock goes with the process that is killed."""
    with output.held(tmp_path):
        pass
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / output.LOCK], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(OutputError, match="another process is training into"),
        output.held(tmp_path),
    ):
        pass
    other.kill()
    other.communicate()
    with output.held(tmp_path):
        assert int((tmp_path / output.LOCK).read_text()) == os.getpid()


def test_what_killed_processes_left_is_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in (".step-00000004.writing", "step-00000002", ".step-00000002.replaced"):
        (folder / name).mkdir(parents=True)
    (tmp_path / ".final.replaced").mkdir()  # killed between its two renames
    (tmp_path / ".recipe.yaml.writing").write_text("half")
    (tmp_path / ".mine").write_text("kept")
    with output.held(tmp_path):
        assert sorted(p.name for p in folder.iterdir()) == ["step-00000002"]
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            ".lock",
            ".mine",
            "checkpoints",
            "final",
        ]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "run"
    with pytest.raises(OutputError, match=f"cannot write to {place}: .*another output=DIR"):
        output.held(place).__enter__()


def test_an_earlier_run_moves_aside(recipe_of):
    recipe = recipe_of("full", "run")
    assert output.move_aside(recipe) is None
    for number in (1, 2):
        (recipe.output / "checkpoints").mkdir(parents=True)
        (recipe.output / "mine.txt").write_text(str(number))
        aside = output.move_aside(recipe)
        assert aside == recipe.output.with_name(f"run.old-{number}")
        assert (aside / "mine.txt").read_text() == str(number)
        assert not recipe.output.exists()


def test_what_is_no_run_is_left_alone(recipe_of):
    recipe = recipe_of("full", "thesis")
    recipe.output.mkdir()
    (recipe.output / "chapter-1.tex").write_text("x")
    with pytest.raises(OutputError, match=r"holds chapter-1.tex but no training run"):
        output.move_aside(recipe)
    assert (recipe.output / "chapter-1.tex").exists()


def test_what_the_recipe_reads_is_not_moved(recipe_of):
    recipe = recipe_of("lora", "run")
    (recipe.output / "final").mkdir(parents=True)
    recipe.model.base = str(recipe.output / "final")
    with pytest.raises(RecipeError, match=r"reads .*run/final, which lies in its output"):
        output.move_aside(recipe)
    assert (recipe.output / "final").exists()


@pytest.mark.parametrize(
    ("keep", "count"), [(Keep(2, 1), 4), (Keep(1, 0), 2), (Keep(1, 0, every=10), 12)]
)
def test_too_little_space_is_told(tmp_path, monkeypatch, caplog, keep, count):
    free = 1000 * count
    monkeypatch.setattr(output, "free_bytes", lambda place: free)
    output.warn_of_space(tmp_path, 1000, 100, keep)
    assert not caplog.records
    free -= 1
    output.warn_of_space(tmp_path, 1000, 100, keep)
    assert f"up to {count} checkpoints of 1000 bytes are planned" in caplog.text
    caplog.clear()
    (tmp_path / "step-00000010").mkdir()
    (tmp_path / "step-00000010" / "state.json").write_text("x")  # one byte is used already
    output.warn_of_space(tmp_path, 1000, 100, keep)
    assert not caplog.records


def test_finished_means_this_recipe_to_its_end(recipe_of):
    recipe = recipe_of("full", "run")
    folder = recipe.output / "final"
    assert output.finished(recipe) is None
    folder.mkdir(parents=True)
    output.write_trained(folder, SimpleNamespace(recipe=recipe, datasets=[]), 6, 0.5)
    assert output.finished(recipe) == folder
    assert output.finished(recipe_of("full", "run", ["data.workers=2"])) == folder
    for other in ("train.steps=7", "train.result=best", "seed=4"):
        assert output.finished(recipe_of("full", "run", [other])) is None
    (folder / output.TRAINED).write_text("{")
    assert output.finished(recipe) is None


def test_the_last_metrics(tmp_path):
    assert output.last_metrics(tmp_path) == {}
    lines = '{"step": 1, "time": 2, "loss": 3.0}\n{"step": 2, "time": 3, "loss": 2.0}\n'
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 2, "time": 4, "validation/loss": 5}')
    assert output.last_metrics(tmp_path) == {"loss": 2.0, "validation/loss": 5}


def test_the_output_of_another_run_is_refused_before_anything_is_built(recipe_of):
    recipe = recipe_of("full", "run")
    output.refuse_other_run(recipe)  # nothing there yet
    place = recipe.output / "checkpoints" / "step-00000002"
    place.mkdir(parents=True)
    saved = {**recipe_identity(recipe), "frames.demo": 7, "grid.kind": "gaussian"}
    (place / "state.json").write_text(json.dumps({"identity": saved}))
    output.refuse_other_run(recipe)
    output.refuse_other_run(recipe_of("full", "run", ["train.log_every=2"]))  # which may change
    with pytest.raises(ValueError, match=r"train.learning_rate: 0.01 in the checkpoint, 0.5 now"):
        output.refuse_other_run(recipe_of("full", "run", ["train.learning_rate=0.5"]))
    (place / "state.json").write_text('{"identity":')  # damaged: for resuming to find and to name
    output.refuse_other_run(recipe_of("full", "run", ["train.learning_rate=0.5"]))


def test_an_output_below_a_file_is_refused_before_anything_is_built(recipe_of, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=f"{tmp_path}/file is a file; set another output=DIR"):
        output.refuse_other_run(recipe_of("full", "run", [f"output={tmp_path}/file/run"]))


def test_others_may_read_what_they_may_enter(tmp_path):
    with files.whole_folder(tmp_path / "result") as scratch:
        (scratch / "inner").mkdir()
        for name in ("weights", "inner/more"):
            (scratch / name).write_text("")
            (scratch / name).chmod(0o600)
    folder = (tmp_path / "result").stat().st_mode & 0o666
    for name in ("weights", "inner/more"):
        assert (tmp_path / "result" / name).stat().st_mode & 0o777 == folder != 0o600
