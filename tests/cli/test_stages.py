"""The stage runner: order, two at a time, failures with their log, resuming."""

from __future__ import annotations

import json
import os
import shutil
import time
from types import SimpleNamespace

import pytest

from spatialvla_ft.quickstart.job import OWN, _stages, _start_over
from spatialvla_ft.quickstart.stages import Stage, StageError, StageRunner


def run(folder, stages, **kwargs):
    events = []
    runner = StageRunner(folder, on_change=lambda s, t: events.append((s.name, t)), **kwargs)
    runner.run(stages)
    return events


def test_a_stage_waits_for_what_it_needs(tmp_path):
    stages = [
        Stage("one", "help", ("--help",)),
        Stage("two", "help", ("data", "--help"), ("one",)),
    ]
    events = run(tmp_path, stages)
    assert [name for name, _ in events] == ["one", "one", "two", "two"]
    rows = json.loads((tmp_path / "timings.json").read_text())
    assert [row["command"] for row in rows] == ["spatialvla-ft --help", "spatialvla-ft data --help"]
    assert "Usage" in (tmp_path / "logs" / "two.log").read_text()


def test_independent_stages_overlap_but_not_more_than_allowed(tmp_path):
    stages = [Stage(f"s{i}", "help", ("--help",)) for i in range(4)]
    running, most = 0, 0

    def count(stage, seconds):
        nonlocal running, most
        running += 1 if seconds is None else -1
        most = max(most, running)

    StageRunner(tmp_path, parallel=2, on_change=count).run(stages)
    assert most == 2


def test_a_failing_stage_names_its_command_and_shows_its_log(tmp_path):
    stages = [Stage("bad", "fails", ("train", "nowhere.yaml"))]
    with pytest.raises(StageError, match=r"train nowhere\.yaml") as caught:
        run(tmp_path, stages)
    assert "does not exist" in str(caught.value)
    assert not (tmp_path / "timings.json").exists()


def test_the_others_are_stopped_when_one_fails(tmp_path):
    slow = Stage("slow", "never ends", ("eval", "sim", "--robot", "robot_a", "--episodes", "5000",
                                        "--policy", "no-motion"))  # fmt: skip
    stages = [slow, Stage("bad", "fails", ("train", "nowhere.yaml"))]
    began = time.monotonic()
    with pytest.raises(StageError):
        run(tmp_path, stages)
    assert time.monotonic() - began < 60


def test_finished_stages_are_kept_and_changed_ones_repeated(tmp_path):
    first = [Stage("one", "", ("--help",)), Stage("two", "", ("data", "--help"), ("one",))]
    run(tmp_path, first)
    assert run(tmp_path, first) == []
    changed = [Stage("one", "", ("grids", "--help")), first[1]]
    assert [name for name, _ in run(tmp_path, changed)] == ["one", "one", "two", "two"]


def test_the_quickstart_is_a_graph_whose_commands_exist(tmp_path):
    from spatialvla_ft.cli.main import app

    groups = {g.name: {c.name for c in g.typer_instance.registered_commands}
              for g in app.registered_groups}  # fmt: skip
    top = {c.name for c in app.registered_commands}
    stages = _stages(tmp_path, 0)
    seen = set()
    for stage in stages:
        assert set(stage.needs) <= seen, stage.name
        seen.add(stage.name)
        first, second = stage.arguments[:2]
        assert first in top or second in groups[first], stage.command


def test_the_quickstart_removes_nothing_but_a_quickstart(tmp_path):
    runs, other = tmp_path / "runs", tmp_path / "runs" / "my_data"
    _start_over(runs)  # there is none yet
    other.mkdir(parents=True)
    (runs / "environment.json").write_text("{}")
    with pytest.raises(OSError, match=r"holds my_data, which no quickstart makes.*new folder"):
        _start_over(runs)
    with pytest.raises(OSError, match=r"environment\.json, which no quickstart makes"):
        _start_over(runs / "environment.json")
    assert sorted(place.name for place in runs.iterdir()) == ["environment.json", "my_data"]
    other.rmdir()
    _start_over(runs)
    assert not runs.exists()


def test_the_quickstart_knows_what_it_makes(tmp_path):
    written = {
        part.removeprefix(f"output={tmp_path}/").removeprefix(f"{tmp_path}/").split("/")[0]
        for stage in _stages(tmp_path, 0)
        for part in stage.arguments
        if part.startswith((f"{tmp_path}/", f"output={tmp_path}/"))
    }
    assert written | {"logs", "environment.json", "timings.json"} == OWN


def told_of(runs):
    """A run folder of which only the environment is read."""
    environment = json.loads((runs / "environment.json").read_text())
    return SimpleNamespace(environment=environment, outcomes={}, missing=())


@pytest.mark.parametrize(
    ("flags", "passed", "code"),
    [((), False, 0), (("--gate",), False, 1), (("--gate",), True, 0)],
)
def test_the_exit_code_says_whether_the_job_was_done(tmp_path, monkeypatch, flags, passed, code):
    """Success rates are an exit code for those who ask for one, and words for everybody."""
    from typer.testing import CliRunner

    from spatialvla_ft.cli.main import app
    from spatialvla_ft.quickstart import job, report, run_files
    from spatialvla_ft.quickstart.run_files import Condition, Verdict

    verdict = Verdict((Condition("it works", "7 of 9", passed),))
    monkeypatch.setattr(StageRunner, "run", lambda self, stages: None)
    monkeypatch.setattr(report, "write_page", lambda run, out: out / "index.html")
    monkeypatch.setattr(run_files, "judge", lambda outcomes: verdict)
    monkeypatch.setattr(job, "read_run", told_of)
    monkeypatch.setattr(job, "summary", lambda runs, seed: "")
    arguments = ["quickstart", "--runs", str(tmp_path / "runs"), *flags]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert "it works; 7 of 9" in result.output.replace("\n", " ")


@pytest.mark.parametrize(("flags", "told"), [((), True), (("--resume",), False)])
def test_the_wall_time_is_told_where_one_go_ran_all_stages(tmp_path, monkeypatch, flags, told):
    """It stands beside the sum of the stages, so the report must find it when it reads the run."""
    from typer.testing import CliRunner

    from spatialvla_ft.cli.main import app
    from spatialvla_ft.quickstart import job, report, run_files
    from spatialvla_ft.quickstart.run_files import Condition, Verdict

    found = []

    def write_page(run, out):
        found.append(run.environment)
        return out / "index.html"

    monkeypatch.setattr(StageRunner, "run", lambda self, stages: time.sleep(0.3))
    verdict = Verdict((Condition("it works", "9 of 9", True),))
    monkeypatch.setattr(report, "write_page", write_page)
    monkeypatch.setattr(run_files, "judge", lambda outcomes: verdict)
    monkeypatch.setattr(job, "read_run", told_of)
    monkeypatch.setattr(job, "summary", lambda runs, seed: "")
    runs = tmp_path / "runs"
    done = CliRunner().invoke(app, ["quickstart", "--runs", str(runs), *flags])
    assert done.exit_code == 0, done.output
    (environment,) = found
    assert "python" in environment
    assert ("wall_seconds" in environment) == told
    assert not told or 0.3 <= environment["wall_seconds"] < 60


def test_a_stage_that_fails_is_an_error_with_its_log(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from spatialvla_ft.cli.main import app

    def broken(self, stages):
        raise StageError("stage 'base' failed (exit code 3)")

    monkeypatch.setattr(StageRunner, "run", broken)
    result = CliRunner().invoke(app, ["quickstart", "--runs", str(tmp_path / "runs")])
    assert result.exit_code == 1
    assert "stage 'base' failed" in result.output


def test_every_training_of_the_quickstart_has_the_seed(tmp_path):
    trained = [stage for stage in _stages(tmp_path, 7) if stage.arguments[0] == "train"]
    assert [stage.name for stage in trained] == ["base", "scratch", "adapt"]
    assert all("seed=7" in stage.arguments for stage in trained)


def test_what_is_not_waited_for_gives_way(tmp_path):
    if shutil.which("nice") is None:
        pytest.skip("this system has no nice")
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    told = {}
    for first in (True, False):
        started = StageRunner(tmp_path / str(first))._start(
            Stage("help", "", ("--help",), first=first)
        )
        seen = {mine}
        while started.process.poll() is None:  # `nice` takes a moment to become the stage
            seen.add(os.getpriority(os.PRIO_PROCESS, started.process.pid))
            time.sleep(0.01)
        told[first] = seen
    assert told == {True: {mine}, False: {mine, min(mine + 5, 19)}}


def test_the_longest_way_starts_first(tmp_path):
    """One at a time, and all could start: the order of the others is that of the list."""
    stages = [
        Stage("one", "", ("--help",)),
        Stage("two", "", ("--help",)),
        Stage("urgent", "", ("--help",), first=True),
    ]
    events = run(tmp_path, stages, parallel=1)
    assert [name for name, seconds in events if seconds is None] == ["urgent", "one", "two"]
