"""Stages one after another, each skipped where its record still holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from spatialvla_ft.adapting import data_stages, ledger, model_stages
from spatialvla_ft.adapting.job import Job
from spatialvla_ft.adapting.ledger import Stage

STAGES: tuple[Stage, ...] = (*data_stages.STAGES, *model_stages.STAGES)
PACKAGE = logging.getLogger("spatialvla_ft")
NAMES = tuple(stage.name for stage in STAGES)


@dataclass(frozen=True)
class Step:
    """What became of a stage in this call.

    Attributes:
        record: of it.
        why: why it was done, or None where it was kept.
        lines: for people.
    """

    record: ledger.Record
    why: str | None
    lines: list[str]


def run_stages(
    job: Job,
    *,
    stop_after: str | None = None,
    on_start: Callable[[Stage, str], None] = lambda stage, why: None,
    on_warning: Callable[[str], None] = lambda text: None,
    on_end: Callable[[Stage, Step], None] = lambda stage, step: None,
) -> list[Step]:
    """All stages up to `stop_after`, or up to evaluation unless the job exports.

    Args:
        job: the adaptation.
        stop_after: name of a stage.
        on_start: told a stage that has work to do, and why.
        on_warning: told every warning of a stage that works.
        on_end: told what became of a stage.
    """
    done: dict[str, ledger.Record] = {}
    steps: list[Step] = []
    for stage in _wanted(job, stop_after):
        inputs = stage.inputs(job, done)
        record = ledger.read_record(job.records, stage.name)
        why = ledger.why_again(record, inputs)
        lines: list[str] = []
        if why is not None:
            why = ledger.put_aside(job.records, stage.name, inputs) or why
            on_start(stage, why)
            record, lines = _work(stage, job, inputs, done, on_warning)
            ledger.write_record(job.records, record)
        assert record is not None
        done[stage.name] = record
        steps.append(Step(record, why, lines))
        on_end(stage, steps[-1])
    return steps


def _wanted(job: Job, stop_after: str | None) -> Sequence[Stage]:
    if stop_after is not None and stop_after not in NAMES:
        raise ValueError(f"--stop-after {stop_after} is no stage; there are {', '.join(NAMES)}")
    if stop_after == "export" and not job.export:
        raise ValueError("--stop-after export needs --export")
    last = "export" if job.export else "evaluate"
    return STAGES[: NAMES.index(stop_after or last) + 1]


def _work(
    stage: Stage,
    job: Job,
    inputs: Mapping[str, Any],
    done: Mapping[str, ledger.Record],
    on_warning: Callable[[str], None],
) -> tuple[ledger.Record, list[str]]:
    """Do a stage."""
    began = time.perf_counter()
    with _warnings(on_warning) as heard:
        outcome = stage.work(job, done)
    for text in outcome.warnings:
        if text not in heard:
            on_warning(text)
    record = ledger.Record(
        stage=stage.name,
        inputs=dict(inputs),
        result=outcome.result,
        files={what: str(path) for what, path in outcome.files.items()},
        warnings=list(dict.fromkeys([*heard, *outcome.warnings])),
        seconds=round(time.perf_counter() - began, 3),
    )
    return record, outcome.lines


class _Listener(logging.Handler):
    """Collects warnings and passes them on, but those that training itself shows."""

    def __init__(self, heard: list[str], tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.heard, self.tell = heard, tell

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.heard:
            self.heard.append(text)
            if not any(type(other) is not _Listener for other in PACKAGE.handlers):
                self.tell(text)


@contextmanager
def _warnings(tell: Callable[[str], None]) -> Iterator[list[str]]:
    """What the package warns of while it lasts."""
    heard: list[str] = []
    listener = _Listener(heard, tell)
    PACKAGE.addHandler(listener)
    try:
        yield heard
    finally:
        PACKAGE.removeHandler(listener)
