"""Random frames read, decoded and resized: our frame index beside the tf.data graph of today.

How the cost of a frame, and memory, grow with the data, the datasets and the workers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ..data.rlds.index import build_index
from ..processes import Child, run
from ..viz.embed import BLUE, GREEN, GREY, ORANGE, plain
from .figures import Figure, Report
from .index_build import measure_index_build
from .mixture_start import measure_start, simulate_mixture


def draw(
    report: Report, curves: Mapping[str, Mapping[int, Mapping[str, float]]], out: Path
) -> None:
    """Write the plot.

    Args:
        report: with figures named `PATH, N workers, cpu` and `tf.data, cpu`.
        curves: {what grows: {how much: {"memory": MiB, "cpu": ms}}}.
        out: PNG.
    """
    canvas = Canvas(figsize=(11, 3.4), layout="constrained")
    axes = canvas.subplots(1, 1 + len(curves))
    _workers(report, axes[0])
    for place, (name, points) in zip(axes[1:], curves.items(), strict=True):
        _growth(place, name, points)
    out.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(out, dpi=130)


def _workers(report: Report, axes: Axes) -> None:
    for path, colour in (("fast", BLUE), ("parity", GREEN)):
        found = {}
        for figure in report.figures:
            words = figure.name.split()
            if figure.name.startswith(f"{path}, ") and figure.name.endswith("workers, cpu"):
                found[int(words[1])] = figure
        low = [found[n].value - found[n].low for n in found]
        high = [found[n].high - found[n].value for n in found]
        values = [found[n].value for n in found]
        axes.errorbar(list(found), values, [low, high], color=colour, marker="o", label=path)
    theirs = report["tf.data, cpu"].value
    axes.axhline(theirs, color=ORANGE, label="tf.data, Lanczos")
    axes.set_xticks(sorted({int(n) for n in axes.get_xticks() if n >= 0 and n == int(n)}))
    axes.set(xlabel="workers", ylabel="processor ms per frame", ylim=(0, None))
    axes.legend(frameon=False)
    plain(axes)


def _growth(axes: Axes, name: str, points: Mapping[int, Mapping[str, float]]) -> None:
    axes.plot(list(points), [p["cpu"] for p in points.values()], color=BLUE, marker="o")
    axes.set_xscale("log")
    axes.set_xticks(list(points), [str(n) for n in points])
    axes.minorticks_off()
    axes.set(xlabel=name, ylim=(0, None))
    axes.set_ylabel("processor ms per frame, fast", color=BLUE)
    plain(axes)
    other = axes.twinx()
    other.plot(list(points), [p["memory"] for p in points.values()], color=GREY, marker="s")
    other.set_ylim(0, 330)
    other.axhline(300, color=GREY, ls=":")
    other.set_ylabel("MiB over bare torch (dotted: goal)", color=GREY)


FRAMES, HEIGHT, WIDTH = 2000, 256, 320
"""Of the generated dataset."""

PER_ROUND = 512
BUFFER = 1000
"""Frames of tf.data's shuffle buffer."""

WORKERS = (0, 1, 2)
SIZES = (1, 10, 100)
"""How many times the generated dataset a larger one is."""

MIXED = (1, 4, 16)
"""Numbers of datasets."""

OURS, THEIRS = "spatialvla_ft.bench.data_frames", "spatialvla_ft.bench.data_tf"
INDEX_MIB = 1024
"""Size of the dataset whose index is built."""

MIXTURE = (30, 100_000_000)
"""Datasets and steps, of all together, of the mixture that is started."""

GOALS = {"ratio": 3.0, "ratio, same kernel": 1.5, "memory": 300.0}


def bench_data(*, rounds: int, plot: Path | None = None) -> Report:
    """Processor time, frames per second and memory of reading random frames at 224 x 224.

    Args:
        rounds: timed ones, in which all readers take turns; one more warms up.
        plot: write how cost grows here, as PNG.

    Raises:
        ValueError: not on Linux, whose /proc is read.
    """
    if sys.platform != "linux":
        raise ValueError(f"bench data reads /proc, which {sys.platform} lacks; run it on Linux")
    report = Report(
        "data",
        {
            "frames": FRAMES,
            "picture": f"{WIDTH} x {HEIGHT}",
            "per round": PER_ROUND,
            "buffer": BUFFER,
            "cores": os.cpu_count(),
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        run(THEIRS, ["write", folder, str(FRAMES), str(HEIGHT), str(WIDTH)])
        original = Path(folder) / "frames" / "1.0.0"
        pictures = sum(file.stat().st_size for file in original.glob("*.tfrecord*"))
        report.settings["bytes per frame"] = round(pictures / FRAMES)
        _side_by_side(report, original, rounds)
        curves = {
            "times the data": _by_size(report, original, rounds),
            "datasets mixed": _by_number(report, original, rounds),
        }
    with tempfile.TemporaryDirectory() as folder:
        _index(report, Path(folder), rounds)
    with tempfile.TemporaryDirectory() as folder:
        _start(report, Path(folder), rounds)
    report.notes += [
        "larger datasets repeat the shards by hard links; their index is built and read in full",
        "memory counts pages that processes share once, over a process that imported torch only",
        "processor time of all processes; fetching ahead is settled before a round ends",
    ]
    if plot is not None:
        draw(report, curves, plot)
    return report


def _ask(child: Child, folders: Sequence[Path], path: str, workers: int) -> dict[str, float]:
    request = {"folders": [str(f) for f in folders], "path": path, "workers": workers}
    return child.ask({**request, "frames": PER_ROUND})


def _side_by_side(report: Report, folder: Path, rounds: int) -> None:
    """Every reader once per round."""
    answers: dict[str, list[dict[str, float]]] = {}
    with (
        Child(OURS) as ours,
        Child(THEIRS, ["read", str(folder), str(BUFFER)]) as theirs,
    ):
        for timed in (False, *[True] * rounds):
            for path in ("fast", "parity"):
                for workers in WORKERS:
                    answer = _ask(ours, [folder], path, workers)
                    if timed:
                        answers.setdefault(f"{path}, {workers} workers", []).append(answer)
            answer = theirs.ask(PER_ROUND)
            if timed:
                answers.setdefault("tf.data", []).append(answer)
    for name, found in answers.items():
        report.figures.append(
            _figure(f"{name}, cpu", _cpu_ms(found), "ms", "processor time per frame, all processes")
        )
        rates = [one["frames"] / one["wall"] for one in found]
        report.figures.append(_figure(f"{name}, rate", rates, "/s", "frames per second of wall"))
    report.figures.append(
        _figure(
            "tf.data, memory",
            [one["memory_mib"] - one["bare_mib"] for one in answers["tf.data"]],
            "MiB",
            "resident memory over a process that imported tensorflow only",
        )
    )
    for name, path in (("ratio", "fast"), ("ratio, same kernel", "parity")):
        # A ratio per round: what else the machine does then slows both.
        each = [
            theirs / ours
            for theirs, ours in zip(
                _cpu_ms(answers["tf.data"]),
                _cpu_ms(answers[f"{path}, {WORKERS[-1]} workers"]),
                strict=True,
            )
        ]
        counts = f"tf.data's processor time over ours ({path}, {WORKERS[-1]} workers)"
        report.figures.append(_figure(name, each, "x", f"{counts}; the goal is {GOALS[name]}"))


def _by_size(report: Report, folder: Path, rounds: int) -> dict[int, dict[str, float]]:
    """Cost of one dataset that grows; a fresh process each, so that memory is its own."""
    found = {}
    for times in SIZES:
        grown = folder if times == 1 else grow(folder, folder.parents[1] / f"x{times}", times)
        found[times] = _measure(report, f"{times} x data", [grown], rounds)
    return found


def _by_number(report: Report, folder: Path, rounds: int) -> dict[int, dict[str, float]]:
    """Cost of a mixture of ever more datasets."""
    found = {}
    for number in MIXED:
        copies = [grow(folder, folder.parents[1] / f"mix{i}", 1) for i in range(number)]
        found[number] = _measure(report, f"{number} datasets", copies, rounds)
    return found


def _measure(report: Report, name: str, folders: Sequence[Path], rounds: int) -> dict[str, float]:
    for folder in folders:
        build_index(folder)  # here, so that its memory is not the reader's
    with Child(OURS) as child:
        _ask(child, folders, "fast", 1)
        answers = [_ask(child, folders, "fast", 1) for _ in range(rounds)]
    memory = [one["memory_mib"] - one["bare_mib"] for one in answers]
    counts = f"resident memory over bare torch, 1 worker; the goal is {GOALS['memory']:.0f}"
    report.figures.append(_figure(f"{name}, memory", memory, "MiB", counts))
    own = [one["own_mib"] for one in answers]
    counts = "of it, what is no page of a file: those the system may take back at any time"
    report.figures.append(_figure(f"{name}, own memory", own, "MiB", counts))
    report.figures.append(
        _figure(f"{name}, cpu", _cpu_ms(answers), "ms", "processor time per frame, fast, 1 worker")
    )
    return {"memory": median(memory), "cpu": median(_cpu_ms(answers))}


def _index(report: Report, folder: Path, rounds: int) -> None:
    found = measure_index_build(folder, mebibytes=INDEX_MIB, repeats=rounds)
    for way, name in (("floor_read_crc", "read and CRC alone"), ("index_1_worker", "index build")):
        counts = f"{INDEX_MIB} MiB in one process, warm, CRC on, best run; the goal is 1"
        report.add(name, found[way]["gib_per_s"], "GiB/s", counts)


def _start(report: Report, folder: Path, rounds: int) -> None:
    number, steps = MIXTURE
    parts = simulate_mixture(folder, datasets=number, steps=steps)
    first = measure_start(folder, parts)
    counts = f"{number} datasets of {steps:,} steps: open, statistics, one batch"
    report.add("first start", first.seconds, "s", f"{counts}; statistics are computed once")
    again = [measure_start(folder, parts) for _ in range(rounds)]
    seconds, memory = [one.seconds for one in again], [one.private_mib for one in again]
    report.figures.append(_figure("start", seconds, "s", f"{counts}; the goal is 10"))
    report.figures.append(_figure("start, memory", memory, "MiB", "private memory that it added"))


def _cpu_ms(answers: Sequence[dict[str, float]]) -> list[float]:
    return [1000 * one["cpu"] / one["frames"] for one in answers]


def _figure(name: str, values: Sequence[float], unit: str, counts: str) -> Figure:
    return Figure(name, median(values), unit, counts, min(values), max(values))


def grow(source: Path, target: Path, times: int) -> Path:
    """A dataset whose shards are those of `source`, `times` over, as hard links."""
    directory = target / "frames" / "1.0.0"
    if directory.is_dir():
        return directory
    directory.mkdir(parents=True)
    info: dict[str, Any] = json.loads((source / "dataset_info.json").read_text())
    (split,) = info["splits"]
    shards = sorted(source.glob("*.tfrecord*"))
    total = times * len(shards)
    for i in range(total):
        name = f"{info['name']}-{split['name']}.tfrecord-{i:05d}-of-{total:05d}"
        os.link(shards[i % len(shards)], directory / name)
    split["shardLengths"] = split["shardLengths"] * times
    split.pop("numBytes", None)
    (directory / "dataset_info.json").write_text(json.dumps(info))
    for name in ("features.json", "card.yaml"):
        os.link(source / name, directory / name)
    return directory
