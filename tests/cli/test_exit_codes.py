"""One rule over all commands: 0 done, 1 refused in one line, 2 an option used wrongly."""

from __future__ import annotations

import click
import pytest
import typer
from typer.testing import CliRunner

from spatialvla_ft.cli.console import fail_with
from spatialvla_ft.cli.main import app
from spatialvla_ft.processes import ChildError

REFUSED = {
    "adapt": "gone --base gone",
    "bench": "codec --out taken/bench.json --rounds 1",
    "check-robot": "../gone gone",
    "data annotate": "gone --out out",
    "data convert": "gone out --to rlds",
    "data depth": "gone --estimator gone --cache cache",
    "data index": "gone",
    "data inspect": "gone",
    "data push": "gone ada/data",
    "data record": "--episodes 0 --out out",
    "data stats": "gone",
    "eval open-loop": "../gone gone",
    "eval report": "taken",
    "eval sim": "--robot robot_a --episodes 0",
    "export": "../gone --out out",
    "grids compare": "gone",
    "grids fit": "gone",
    "grids plot": "gone",
    "grids resize": "../gone --bins 4,4,4,4,4,4,2 --out out",
    "init-base": "--paligemma ../gone --zoedepth ../gone --grid gone --output out",
    "plan-memory": "gone.yaml",
    "predict": "../gone --image gone.png --instruction go",
    "push": "gone --repo ada/one",
    "quickstart": "--runs taken",
    "recipes": "gone",
    "train": "gone.yaml",
}
"""Work that each command refuses: mostly what it is to read is not there."""


def commands():
    found = {}

    def walk(command, words):
        if isinstance(command, click.Group) or hasattr(command, "commands"):
            for name, child in command.commands.items():
                walk(child, [*words, name])
        else:
            found[" ".join(words)] = command

    walk(typer.main.get_command(app), [])
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    return tmp_path


def test_every_command_has_work_that_it_refuses():
    assert sorted(REFUSED) == sorted(commands())


@pytest.mark.parametrize("command", sorted(REFUSED))
def test_refused_work_is_a_line_and_exit_code_1(place, command):
    done = CliRunner().invoke(app, [*command.split(), *REFUSED[command].split()])
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1, done.output
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.output


@pytest.mark.parametrize("command", sorted(REFUSED))
def test_wrong_use_is_exit_code_2(place, command):
    done = CliRunner().invoke(app, [*command.split(), "--no-such-option"])
    assert done.exit_code == 2
    assert "No such option" in done.stderr
    assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0


def ended(error):
    """(what a command that runs into an error ends with, and what it says)."""
    one = typer.Typer()

    @one.command()
    def command():
        with fail_with():
            raise error

    done = CliRunner().invoke(one, [])
    return done.exception, done.stderr


@pytest.mark.parametrize("kind", [ValueError, OSError, FileNotFoundError, ChildError])
def test_errors_for_people_are_refusals(kind):
    exception, said = ended(kind("[it] is so"))
    assert isinstance(exception, SystemExit)
    assert exception.code == 1
    assert said == "error: [it] is so\n"


def test_a_data_worker_that_was_killed_is_a_refusal_with_its_cause():
    """However torch's word of it comes: its handler raises wherever the main thread is."""
    exception, said = ended(
        RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. ")
    )
    assert exception.code == 1
    assert "signal SIGKILL (exit code -9): most likely the system ended it for want" in said
    assert "data.workers=0" in said


def test_our_own_faults_keep_their_traceback():
    fault = RuntimeError("shapes do not match")
    assert ended(fault)[0] is fault
