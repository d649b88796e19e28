"""`spatialvla-ft bench gpu` loses no part to another, and says of each what became of it."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spatialvla_ft.bench import gpu
from spatialvla_ft.bench.figures import Report
from spatialvla_ft.bench.gpu import Part, bench_gpu, plan, run_parts
from spatialvla_ft.bench.gpu_table import table
from spatialvla_ft.cli.main import app

CARD = {
    **{"gpu": "Made-up 9000", "memory_gib": 12.5, "capability": "9.0", "cores": 3},
    **{"python": "3.12.3", "torch": "2.11.0", "transformers": "5.17.0", "peft": "0.19.0"},
    **{"triton": None, "cuda": "13.0", "driver": "580.1"},
}


def figures_of(name):
    report = Report(name, {"size": "tiny"})
    report.add("step", 12.3456, "ms", "either | or")
    report.add("rate", None, "Hz", "nothing")
    return {"reports": [report.to_dict()]}


@pytest.fixture
def made(tmp_path):
    """name, seconds it may take, the code of its program -> a part."""

    def make(name, limit, code):
        result = tmp_path / f"{name}.json"
        file = tmp_path / f"{name}.py"
        write = f"open({str(result)!r}, 'w').write({json.dumps(figures_of(name))!r})"
        file.write_text(textwrap.dedent(code).replace("LEAVE_FIGURES", write))
        return Part(name, limit, (sys.executable, str(file)), result)

    return make


def beats(file, seconds):
    """Whether a file is written to meanwhile."""
    before = file.stat().st_size
    time.sleep(seconds)
    return file.stat().st_size > before


HANGS = """
    import subprocess, sys, time
    code = "import time\\nwhile True: open({beat!r}, 'a').write('.'); time.sleep(0.05)"
    subprocess.Popen([sys.executable, "-c", code])
    print("compiling", flush=True)
    time.sleep(600)
"""


def test_a_part_that_fails_or_hangs_loses_its_own_figures_only(made, tmp_path):
    beat = tmp_path / "beat"
    beat.touch()
    parts = [
        made("fails", 60, "import sys; print('first'); sys.exit('RuntimeError: no kernel')"),
        made("hangs", 2, HANGS.format(beat=str(beat))),
        made("dies", 60, "import os; LEAVE_FIGURES; os.kill(os.getpid(), 9)"),
        made("forgets", 60, "pass"),
        made("works", 60, "LEAVE_FIGURES"),
    ]
    log, seen = tmp_path / "all.log", []
    began = time.monotonic()
    found = run_parts(parts, log, budget=300, on_end=seen.append)
    assert time.monotonic() - began < 60
    assert seen == found
    fails, hangs, dies, forgets, works = found
    assert [outcome.state for outcome in found] == ["failed", "too long", *["failed"] * 2, "done"]
    assert (fails.why, fails.output) == ("exit code 1", ("first", "RuntimeError: no kernel"))
    assert hangs.why == "it was ended after 2 s"
    assert hangs.output == ("compiling",)
    assert beat.stat().st_size > 0
    assert not beats(beat, 0.5)  # what the part had started is ended, too
    assert "SIGKILL" in dies.why
    assert dies.report["part"] == "dies"  # left before it died
    assert forgets.why.startswith("it left no figures")
    assert works.report == figures_of("works")["reports"][0]
    assert (works.output, works.why) == ((), "")
    assert "RuntimeError: no kernel" in log.read_text()


def test_no_part_is_begun_without_time_for_it(made, tmp_path):
    parts = [
        made("takes its time", 60, "import time; time.sleep(3); LEAVE_FIGURES"),
        made("long", 60, "LEAVE_FIGURES"),
        made("short", 4, "LEAVE_FIGURES"),
    ]
    limits = {}
    budget = gpu.SPARE + gpu.LEAST + 2
    found = run_parts(
        parts,
        tmp_path / "log",
        budget=budget,
        on_start=lambda part, limit: limits.update({part.name: limit}),
    )
    assert [outcome.state for outcome in found] == ["done", "not reached", "done"]
    assert limits["takes its time"] == pytest.approx(gpu.LEAST + 2, abs=1)
    assert limits["short"] == 4
    assert "32 seconds for everything were over" in found[1].why


def test_the_plan_fits_and_begins_with_what_is_wanted_most(tmp_path):
    parts = {part.name: part for part in plan("4b", "cuda", 5, tmp_path)}
    assert list(parts) == ["graphs", "predict", "train-step", "depth", "tests", "flex"]
    # However long the others take, all but the last begin, with a minute at least.
    worst = gpu.FACTS + sum(part.limit for part in list(parts.values())[:4])
    assert gpu.BUDGET - gpu.SPARE - worst >= 45
    assert gpu.BUDGET <= 540
    words = " ".join(parts["predict"].command)
    assert "bench predict --size 4b --device cuda --rounds 5 --out " in words
    named = {Path(word).name for word in parts["tests"].command if word.endswith(".py")}
    assert named == {"test_attention_kernels.py", "test_decoding.py"}
    assert "tests" not in {part.name for part in plan("tiny", "cpu", 1, tmp_path)}


def test_failed_tests_are_named_and_counted(tmp_path):
    file = tmp_path / "test_made_up.py"
    file.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_absent(): pytest.skip('no GPU')\n"
        "def test_odd(nothing): pass\n"
    )
    result = tmp_path / "tests.xml"
    command = (sys.executable, "-m", "pytest", "-c", "/dev/null", str(file), f"--junitxml={result}")
    (found,) = run_parts([Part("tests", 60, command, result)], tmp_path / "log", budget=100)
    assert (found.state, found.why) == ("failed", "exit code 1")
    (figure,) = found.report["figures"]
    assert (figure["value"], figure["unit"]) == (1, "of 4")
    assert found.report["notes"] == ["failed: test_bad", "failed: test_odd", "skipped: test_absent"]


@pytest.fixture
def with_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "machine_facts", lambda scratch: CARD)


@pytest.mark.usefixtures("with_a_gpu")
def test_the_command_ends_with_1_and_writes_after_every_part(made, monkeypatch, tmp_path):
    out, there = tmp_path / "made" / "gpu.json", []
    parts = [made("works", 60, "LEAVE_FIGURES"), made("fails", 60, "raise ValueError('small')")]
    monkeypatch.setattr(gpu, "plan", lambda *arguments: parts)
    bench_gpu(out, on_start=lambda *_: there.append(out.exists()))
    assert there == [False, True]

    done = CliRunner().invoke(app, ["bench", "gpu", "--out", str(out)])
    assert done.exit_code == 1, done.output
    report = json.loads(out.read_text())
    assert [part["state"] for part in report["parts"]] == ["done", "failed"]
    assert report["machine"] == CARD
    page = out.with_suffix(".md").read_text()
    assert page in done.stdout
    head, libraries, *_ = page.splitlines()
    assert head.startswith("### Size 4b on Made-up 9000, 12.5 GiB, driver 580.1 (20")
    assert "`make gpu`" in head
    assert libraries.startswith("Python 3.12.3, torch 2.11.0, transformers 5.17.0")
    assert "| works | step | 12.35 ms |  | either \\| or |" in page
    assert "| works | rate | unmeasured |  | nothing |" in page
    assert "- **fails failed**: exit code 1: ValueError: small" in page
    assert table(report) == page

    monkeypatch.setattr(gpu, "plan", lambda *arguments: parts[:1])
    assert CliRunner().invoke(app, ["bench", "gpu", "--out", str(out)]).exit_code == 0


def test_without_a_gpu_a_sentence_and_no_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "gpu.json"
    done = CliRunner().invoke(app, ["bench", "gpu", "--out", str(out)])
    assert done.exit_code == 0, done.output
    (sentence,) = done.output.splitlines()
    assert sentence.startswith("there is no GPU, so nothing was measured: torch ")
    assert not out.exists()


def test_gpu_stands_alone():
    done = CliRunner().invoke(app, ["bench", "gpu", "codec"])
    assert done.exit_code == 1
    assert "give it alone" in done.output


def rehearse(out):
    arguments = ["bench", "gpu", "--size", "tiny", "--device", "cpu", "--rounds", "1"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    return done, json.loads(out.read_text())["parts"]


def test_figures_of_a_real_part_are_collected(monkeypatch, tmp_path):
    whole = gpu.plan
    monkeypatch.setattr(
        gpu, "plan", lambda *arguments: [part for part in whole(*arguments) if part.name == "flex"]
    )
    done, (part,) = rehearse(tmp_path / "gpu.json")
    assert done.exit_code == 0, done.output
    assert part["report"]["settings"] == {"size": "tiny", "device": "cpu", "rounds": 1}
    assert "| flex | flex step | unmeasured |" in done.stdout
    assert "cores, no GPU used" in done.stdout


@pytest.mark.slow
def test_every_part_but_the_tests_is_rehearsed_without_a_gpu(monkeypatch, tmp_path):
    whole = gpu.plan
    monkeypatch.setattr(
        gpu, "plan", lambda *arguments: [replace(part, limit=300) for part in whole(*arguments)]
    )
    done, parts = rehearse(tmp_path / "gpu.json")
    assert {part["part"]: part["state"] for part in parts} == dict.fromkeys(
        ["graphs", "predict", "train-step", "depth", "flex"], "done"
    ), done.output
