"""`spatialvla-ft bench data` at its smallest: every figure is there; no time is judged."""

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spatialvla_ft.bench import data
from spatialvla_ft.bench.mixture_start import Start
from spatialvla_ft.cli.main import app
from spatialvla_ft.processes import Child, ChildError, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def toy(monkeypatch):
    sizes = {"FRAMES": 160, "HEIGHT": 48, "WIDTH": 64, "PER_ROUND": 64, "BUFFER": 50}
    numbers = {
        "WORKERS": (0, 1),
        "SIZES": (1, 3),
        "MIXED": (2,),
        "INDEX_MIB": 2,
        "MIXTURE": (2, 4000),
    }
    for name, value in {**sizes, **numbers}.items():
        monkeypatch.setattr(data, name, value)


def check_bench(tmp_path):
    plot = tmp_path / "new" / "costs.png"
    done = CliRunner().invoke(
        app, ["bench", "data", "--rounds", "1", "--json", "--plot", str(plot)]
    )
    assert done.exit_code == 0, done.output
    (report,) = json.loads(done.stdout)["reports"]
    figures = {figure["name"]: figure for figure in report["figures"]}
    readers = [f"{path}, {n} workers" for path in ("fast", "parity") for n in (0, 1)]
    assert set(figures) == {
        *(f"{name}, {what}" for name in [*readers, "tf.data"] for what in ("cpu", "rate")),
        *("ratio", "ratio, same kernel", "tf.data, memory", "index build", "read and CRC alone"),
        *("first start", "start", "start, memory"),
        *(f"{n} x data, {what}" for n in (1, 3) for what in ("cpu", "memory", "own memory")),
        *(f"2 datasets, {what}" for what in ("cpu", "memory", "own memory")),
    }
    for figure in figures.values():
        assert figure["low"] is None or figure["low"] <= figure["value"] <= figure["high"]
        assert figure["counts"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    return figures


@pytest.mark.slow
def test_every_figure_is_measured(toy, tmp_path):
    figures = check_bench(tmp_path)
    assert figures["tf.data, cpu"]["value"] > 0


class Pretended:
    """Answers as the programs do: per frame 8 ms, ours 2 ms and as much again by Lanczos."""

    def __init__(self, module, arguments=()):
        self.module = module

    def ask(self, request):
        if self.module == data.THEIRS:
            frames, per = request, 0.008
        else:
            frames = request["frames"]
            per = 0.004 if request["path"] == "parity" else 0.002
        memory = {"memory_mib": 500.0, "bare_mib": 400.0, "own_mib": 40.0}
        return {"frames": frames, "cpu": per * frames, "wall": 0.5, **memory}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_every_figure_is_reported(toy, tmp_path, monkeypatch):
    def written(_, arguments):
        folder = Path(arguments[1]) / "frames" / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "frames-train.tfrecord-00000-of-00001").write_bytes(bytes(800))
        info = {"name": "frames", "splits": [{"name": "train", "shardLengths": ["2"]}]}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        for name in ("features.json", "card.yaml"):
            (folder / name).write_text("{}")

    monkeypatch.setattr(data, "run", written)
    monkeypatch.setattr(data, "Child", Pretended)
    monkeypatch.setattr(data, "build_index", lambda folder: None)
    start = Start(steps=4000, seconds=3.0, private_mib=20.0, mapped_mib=5.0)
    monkeypatch.setattr(data, "simulate_mixture", lambda folder, datasets, steps: {})
    monkeypatch.setattr(data, "measure_start", lambda folder, parts: start)
    figures = check_bench(tmp_path)
    assert figures["ratio"]["value"] == pytest.approx(4)
    assert figures["ratio, same kernel"]["value"] == pytest.approx(2)
    assert figures["fast, 1 workers, cpu"]["value"] == pytest.approx(2)
    assert figures["tf.data, rate"]["value"] == pytest.approx(128)
    assert figures["3 x data, memory"]["value"] == pytest.approx(100)
    assert figures["3 x data, own memory"]["value"] == pytest.approx(40)
    assert figures["start"]["value"] == 3
    assert figures["index build"]["value"] > 0


def test_a_grown_dataset_repeats_its_shards(tmp_path):
    source = tmp_path / "frames" / "1.0.0"
    source.mkdir(parents=True)
    for i in range(2):
        (source / f"frames-train.tfrecord-{i:05d}-of-00002").write_bytes(bytes([i]))
    info = {"name": "frames", "splits": [{"name": "train", "shardLengths": ["4", "5"]}]}
    (source / "dataset_info.json").write_text(json.dumps(info))
    for name in ("features.json", "card.yaml"):
        (source / name).write_text("{}")
    grown = data.grow(source, tmp_path / "x", 3)
    shards = sorted(grown.glob("*.tfrecord*"))
    assert [shard.read_bytes() for shard in shards] == [b"\0", b"\1"] * 3
    assert shards[5].name.endswith("-00005-of-00006")
    grown_info = json.loads((grown / "dataset_info.json").read_text())
    assert grown_info["splits"][0]["shardLengths"] == ["4", "5"] * 3


def test_a_program_that_fails_is_quoted(tmp_path, monkeypatch):
    (tmp_path / "breaks.py").write_text("input()\nraise RuntimeError('no such folder')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = r"(?s)breaks ended with exit code 1: .*no such folder"
    with Child("breaks") as child, pytest.raises(ChildError, match=said):
        child.ask({})
    with pytest.raises(ChildError, match="no_such_module"):
        run("no_such_module", [])


def test_processor_time_is_this_process():
    from spatialvla_ft.bench.data_frames import cpu_seconds, memory_mib

    used = os.times()
    assert cpu_seconds([os.getpid()]) == pytest.approx(used.user + used.system, abs=0.1)
    assert memory_mib([os.getpid()]) > 20
