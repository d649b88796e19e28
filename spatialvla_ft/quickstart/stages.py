"""Stages of a longer job: commands with what they need, run two at a time, each with its log."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spatialvla_ft.processes import ChildError, how_it_ended

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Stage:
    """One `spatialvla-ft` command.

    Attributes:
        name: of the stage and its log.
        title: what it does, for people.
        arguments: of `spatialvla-ft`.
        needs: names of stages that must have ended.
        first: part of the longest way: it starts before the others that could, and they give way
            to it where cores are few.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    first: bool = False

    @property
    def command(self) -> str:
        """What a person would type."""
        return " ".join(("spatialvla-ft", *self.arguments))


@dataclass
class _Running:
    stage: Stage
    process: subprocess.Popen[bytes]
    started: float


class StageError(ChildError):
    """A stage failed; the message holds its command and the end of its log."""


@dataclass
class StageRunner:
    """Runs stages as soon as what they need has ended.

    Attributes:
        folder: `logs/NAME.log`, and `timings.json` with every finished stage.
        parallel: stages at a time.
        on_change: told (stage, seconds); seconds is None when the stage starts.
    """

    folder: Path
    parallel: int = 2
    on_change: Callable[[Stage, float | None], None] = lambda stage, seconds: None
    timings: list[dict[str, str | float]] = field(default_factory=list)

    def run(self, stages: Sequence[Stage]) -> None:
        """Run all stages; those that `timings.json` lists with the same command are not repeated.

        Raises:
            StageError: a stage failed; the others are stopped.
        """
        self._check(stages)
        self._read_timings(stages)
        done = {str(row["stage"]) for row in self.timings}
        waiting = [stage for stage in stages if stage.name not in done]
        running: list[_Running] = []
        try:
            while waiting or running:
                for stage in sorted(waiting, key=lambda stage: not stage.first):
                    if len(running) < self.parallel and set(stage.needs) <= done:
                        waiting.remove(stage)
                        running.append(self._start(stage))
                for one in list(running):
                    if one.process.poll() is not None:
                        running.remove(one)
                        self._finish(one)
                        done.add(one.stage.name)
                time.sleep(POLL_SECONDS)
        finally:
            for one in running:
                one.process.terminate()
                one.process.wait()

    def log_of(self, stage: Stage) -> Path:
        """Where the output of a stage goes."""
        return self.folder / "logs" / f"{stage.name}.log"

    def _check(self, stages: Sequence[Stage]) -> None:
        known: set[str] = set()
        for stage in stages:
            assert set(stage.needs) <= known, f"{stage.name} needs a stage that is not before it"
            known.add(stage.name)

    def _start(self, stage: Stage) -> _Running:
        self.on_change(stage, None)
        log = self.log_of(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONUNBUFFERED": "1",
        }
        nice = None if stage.first else shutil.which("nice")
        give_way = [] if nice is None else [nice, "-n", "5"]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*give_way, sys.executable, "-m", "spatialvla_ft_cli", *stage.arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        return _Running(stage, process, time.perf_counter())

    def _finish(self, one: _Running) -> None:
        seconds = time.perf_counter() - one.started
        if one.process.returncode != 0:
            log = self.log_of(one.stage)
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise StageError(
                f"stage {one.stage.name!r} failed, {how_it_ended(one.process.returncode)}:\n"
                f"  {one.stage.command}\n{tail}\nthe whole log: {log}"
            )
        self.on_change(one.stage, seconds)
        row = {"stage": one.stage.name, "seconds": round(seconds, 1), "command": one.stage.command}
        self.timings.append(row)
        (self.folder / "timings.json").write_text(json.dumps(self.timings, indent=1) + "\n")

    def _read_timings(self, stages: Sequence[Stage]) -> None:
        path = self.folder / "timings.json"
        if not path.is_file():
            return
        commands = {stage.name: stage.command for stage in stages}
        kept: set[str] = set()
        for row in json.loads(path.read_text()):
            stage = next((s for s in stages if s.name == row["stage"]), None)
            same = stage is not None and commands[stage.name] == row["command"]
            if same and set(stage.needs) <= kept:
                self.timings.append(row)
                kept.add(stage.name)
