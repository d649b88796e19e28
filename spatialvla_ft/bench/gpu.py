"""`spatialvla-ft bench gpu`: all that wants a GPU, in one command of at most nine minutes.

Each part is a process of its own with a limit of its own: one that hangs, does not compile or runs
out of memory loses its own figures only. What is wanted most comes first, and what no time is left
for is said to be so. The report is written anew after every part, so that it is there whatever
becomes of the rest.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import spatialvla_ft

from ..files import write_text
from ..processes import ChildError, how_it_ended
from .gpu_table import table

BUDGET = 540.0
"""Seconds for everything."""
FACTS = 90.0
"""Seconds to find out what GPU there is: the first import of torch on a fresh machine is slow."""
SPARE = 10.0
"""Seconds kept for ending the last part and writing the report."""
LEAST = 20.0
"""Seconds without which no part is begun."""
LAST_LINES = 12
"""Of the output of a part that failed, in the report; the log has all."""
ROOT = Path(spatialvla_ft.__file__).resolve().parents[1]
GPU_TESTS = re.compile(r"^@pytest\.mark\.gpu$", re.MULTILINE)

State = Literal["done", "failed", "too long", "not reached"]


@dataclass(frozen=True)
class Part:
    """A process that leaves figures in a file.

    Attributes:
        name: of the part.
        limit: seconds.
        command: words; it runs in the project's folder.
        result: `bench --out` or JUnit's XML that it writes.
    """

    name: str
    limit: float
    command: tuple[str, ...]
    result: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        part: its name.
        state: "done"; "failed", by its exit code; "too long", ended at its limit; "not reached".
        seconds: how long it ran.
        limit: how long it could have run.
        why: in words, where it is not done.
        output: last lines of what a part said that is not done.
        report: its figures, as `Report.to_dict` gives them; None where it left none.
    """

    part: str
    state: State
    seconds: float
    limit: float
    why: str = ""
    output: tuple[str, ...] = ()
    report: dict[str, Any] | None = None


def plan(size: str, device: str, rounds: int, scratch: Path) -> list[Part]:
    """The parts, what is wanted most first.

    Args:
        size: of the models.
        device: cuda, or cpu for a rehearsal, which leaves out the tests.
        rounds: timed ones of every part.
        scratch: folder of their results.
    """
    limits = {"graphs": 120, "predict": 120, "train-step": 90, "depth": 60}

    def bench(name: str, limit: float) -> Part:
        result = scratch / f"{name}.json"
        sizes = ("--size", size, "--device", device, "--rounds", str(rounds))
        words = ("-m", "spatialvla_ft_cli", "bench", name, *sizes, "--out", str(result))
        return Part(name, limit, (sys.executable, *words), result)

    parts = [bench(name, limit) for name, limit in limits.items()]
    if device == "cuda" and (files := files_of_gpu_tests()):
        result = scratch / "tests.xml"
        # Warnings of a stack that was never run on are no reason for losing a proof.
        words = ("-m", "pytest", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider")
        command = (sys.executable, *words, f"--junitxml={result}", *map(str, files))
        parts.append(Part("tests", 150, command, result))
    parts.append(bench("flex", 150))
    return parts


def files_of_gpu_tests() -> list[Path]:
    """Files with tests marked `gpu`; none where the package is installed without its tests.

    The others are not even imported: they may need what a GPU's machine lacks.
    """
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [file for file in files if GPU_TESTS.search(file.read_text(encoding="utf-8"))]


def bench_gpu(
    out: Path,
    *,
    size: str = "4b",
    device: str = "cuda",
    rounds: int = 5,
    budget: float = BUDGET,
    on_start: Callable[[Part, float], None] = lambda part, limit: None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> dict[str, Any]:
    """Find out what GPU there is, run all parts, write the report.

    Args:
        out: file of the report; the table lies beside it as .md, the parts' output as .log.
        size: of the models, random weights.
        device: cuda, or cpu for a rehearsal.
        rounds: timed ones of every part.
        budget: seconds for everything.
        on_start: told a part, and the seconds it gets.
        on_end: told what became of it.

    Returns:
        the report; its `parts` are empty where there is no GPU, and `machine.why` says why.

    Raises:
        ChildError: it could not even be found out what GPU there is.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        machine = machine_facts(Path(folder))
        report: dict[str, Any] = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "size": size,
            "device": device,
            "machine": machine,
            "seconds": 0.0,
            "parts": [],
        }
        if device == "cuda" and machine["gpu"] is None:
            return report
        out.parent.mkdir(parents=True, exist_ok=True)
        log = out.with_suffix(".log")
        log.write_text("")

        def keep(outcome: Outcome) -> None:
            report["parts"].append(asdict(outcome))
            report["seconds"] = round(time.monotonic() - began, 1)
            write_text(out, json.dumps(report, indent=1) + "\n")
            write_text(out.with_suffix(".md"), table(report))
            on_end(outcome)

        left = budget - (time.monotonic() - began)
        parts = plan(size, device, rounds, Path(folder))
        run_parts(parts, log, budget=left, on_start=on_start, on_end=keep)
    return report


def machine_facts(scratch: Path) -> dict[str, Any]:
    """What `gpu_facts` says of this machine; ChildError if it cannot."""
    said = scratch / "machine.txt"
    command = (sys.executable, "-m", "spatialvla_ft.bench.gpu_facts")
    code = _run(command, FACTS, said, light=True)
    lines = said.read_text(errors="replace").splitlines()
    told = [line for line in lines if line.startswith("{")]  # libraries may warn before and after
    if code != 0 or not told:
        how = f"it took longer than {FACTS:g} s" if code is None else how_it_ended(code)
        raise ChildError(
            f"what GPU this machine has could not be found out, {how}: {' '.join(lines[-3:])}"
        )
    found: dict[str, Any] = json.loads(told[-1])
    return found


def run_parts(
    parts: Sequence[Part],
    log: Path,
    *,
    budget: float,
    on_start: Callable[[Part, float], None] = lambda part, limit: None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run parts one after another, each up to its limit and all of them up to the budget.

    Args:
        parts: in the order of running.
        log: file that their output is added to.
        budget: seconds for all.
        on_start: told a part, and the seconds it gets.
        on_end: told what became of it.
    """
    end = time.monotonic() + budget - SPARE
    outcomes = []
    for part in parts:
        limit = min(part.limit, end - time.monotonic())
        if limit < min(LEAST, part.limit):
            why = f"the {budget:.0f} seconds for everything were over"
            outcome = Outcome(part.name, "not reached", 0.0, part.limit, why)
        else:
            on_start(part, limit)
            outcome = _outcome(part, limit, log)
        outcomes.append(outcome)
        on_end(outcome)
    return outcomes


def _outcome(part: Part, limit: float, log: Path) -> Outcome:
    """Run a part; its output joins the log."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "output.txt"
        code = _run(part.command, limit, said)
        text = said.read_text(errors="replace")
    seconds = round(time.monotonic() - began, 1)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"=== {part.name}: {' '.join(part.command)}\n{text}\n")
    report, why = None, ""
    state: State = "done"
    try:
        report = read_result(part.result)
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        why, state = f"it left no figures ({error})", "failed"
    if code is None:
        why, state = f"it was ended after {limit:.0f} s", "too long"
    elif code != 0:
        why, state = how_it_ended(code), "failed"
    lines = tuple(line for line in text.splitlines() if line.strip())
    output = () if state == "done" else lines[-LAST_LINES:]
    return Outcome(part.name, state, seconds, round(limit, 1), why, output, report)


def _run(command: Sequence[str], limit: float, said: Path, *, light: bool = False) -> int | None:
    """Exit code of a process that is ended, with all that it started, at its limit: then None.

    Its output goes to a file: a pipe would be held open by what it started.
    """
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",  # nothing is fetched; without a network, asking takes minutes
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    if light:
        environment["SPATIALVLA_FT_LIGHT"] = "1"
    with said.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:  # whatever it started, too, and also where this process is interrupted
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_result(file: Path) -> dict[str, Any]:
    """The figures in a part's result.

    Raises:
        OSError: it was not written.
        ValueError, KeyError, ElementTree.ParseError: it is not what it should be.
    """
    if file.suffix == ".json":
        (report,) = json.loads(file.read_text(encoding="utf-8"))["reports"]
        return dict(report)
    cases = list(ElementTree.parse(file).iter("testcase"))
    bad = {kind: [c for c in cases if c.find(kind) is not None] for kind in ("failure", "error")}
    skipped = [case for case in cases if case.find("skipped") is not None]
    lost = [*bad["failure"], *bad["error"]]
    passed = len(cases) - len(lost) - len(skipped)
    figure = {
        "name": "passed",
        "value": passed,
        "unit": f"of {len(cases)}",
        "counts": "tests that are marked gpu",
        "low": None,
        "high": None,
    }
    notes = [f"failed: {case.get('name')}" for case in lost]
    notes += [f"skipped: {case.get('name')}" for case in skipped]
    return {"part": "tests", "settings": {}, "figures": [figure], "notes": notes}
