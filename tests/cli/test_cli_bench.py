"""`spatialvla-ft bench` runs at its smallest and says all that it should; no time is judged."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from spatialvla_ft.bench import codec, figures, kernels, predict, train_logits
from spatialvla_ft.bench import depth as depth_bench
from spatialvla_ft.bench.figures import Figure
from spatialvla_ft.cli.bench import _value
from spatialvla_ft.cli.main import app
from spatialvla_ft.heads.registry import HEADS
from spatialvla_ft.memory.sizes import bench_config, check_size

ROWS = {
    "predict": {
        *("depth", "vision", "prefill", "decode", "head", "predict_action", "generate", "ratio"),
        *("chunk", "chunk rate", "action rate", "copy", "product", "floor", "chunk over floor"),
        *("weights", "peak", "4b on a GPU"),
        *(f"floor of {stage}" for stage in ("depth", "vision", "prefill", "decode", "head")),
        *(f"chunk rate of {kind}" for kind in HEADS),
        *(f"{kind} / grid_tokens" for kind in HEADS if kind != "grid_tokens"),
        "voxel_heatmap, low rank / grid_tokens",
    },
    "train-logits": {
        *(f"{head}, {rows}" for head in ("frozen", "trained") for rows in ("labels", "all")),
        *(f"{head}, {kind} ratio" for head in ("frozen", "trained") for kind in ("time", "bytes")),
    },
    "train-step": {
        *(
            f"{kind} {what}"
            for kind in ("plain", "checkpointing")
            for what in ("step", "rate", "utilisation", "peak")
        ),
        *("trained", "arithmetic", "step ratio", "peak ratio", "product", "4b on a GPU"),
        *(f"rate of {kind}" for kind in HEADS),
    },
    "codec": {
        *("encode, float64", "encode, float32", "decode", "decode a chunk"),
        *("encode a chunk, NumPy", "encode a chunk, torch"),
    },
    "depth": {
        *("full", "192 pixels", "every n-th", "cache", "sensor"),
        *("192 pixels, abs rel", "192 pixels, delta1", "every n-th, abs rel"),
    },
    "graphs": {"graph", "plain", "library", "library, same ids, float32"},
    "flex": {"eager step", "flex step"},
}
UNMEASURED = {"4b on a GPU", "graph", "eager step", "flex step"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(figures, "COPY_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(figures, "MATMUL_SIDE", {"cpu": 64})
    monkeypatch.setattr(train_logits, "VOCABULARY", 9000)
    monkeypatch.setattr(codec, "BATCH", 500)
    monkeypatch.setattr(depth_bench, "EVERY", 2)
    monkeypatch.setattr(depth_bench, "LOWER", (192,))
    monkeypatch.setattr(codec, "CALLS", 3)


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.mark.parametrize("part", ROWS)
def test_every_part_reports_its_figures(part, tmp_path):
    done = run(part, "--rounds", "1", "--json", "--out", str(tmp_path / "x" / "bench.json"))
    assert done.exit_code == 0, done.output
    (report,) = json.loads(done.stdout)["reports"]
    assert json.loads((tmp_path / "x" / "bench.json").read_text()) == {"reports": [report]}
    assert report["part"] == part
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert set(figures) >= ROWS[part]
    for name, figure in figures.items():
        assert figure["counts"], name
        assert (figure["value"] is None) == (name in UNMEASURED), name


def test_the_table_shows_spread_and_what_is_unmeasured(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    done = run("codec", "--rounds", "2")
    assert "M/s" in done.output
    assert "least to greatest" in done.output
    assert _value(Figure("a", None, "ms", "b")) == "unmeasured"


def test_three_ways_to_a_chunk_choose_the_same_ids():
    """The passes that are timed are those of predict_action, which other tests hold to its word."""
    model, report = kernels.bench_model("tiny"), kernels.bench_graphs("tiny", rounds=1)
    same = report["library, same ids, float32"]
    assert f"of {same.value}" == same.unit == "of 12"
    inputs = kernels.bench_inputs(model.config)
    ways = kernels._predictions(model, inputs)
    assert torch.equal(ways["plain"](), model.predict_action(inputs))


def test_sizes_that_cannot_be_are_refused():
    done = run("predict", "--size", "4b")
    assert done.exit_code == 1
    assert "size 4b needs a GPU" in " ".join(done.output.split())
    with pytest.raises(ValueError, match="'2b' is not known; use one of tiny, 100m, 4b"):
        check_size("2b", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda needs a GPU"):
            check_size("tiny", "cuda")


def test_works_take_turns():
    order = []
    works = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = figures.in_turns(works, rounds=3)
    assert order == ["a", "b"] * 4
    assert [len(t.seconds) for t in times.values()] == [3, 3]
    figure = figures.Times((0.004, 0.001, 0.002)).figure("x", "y", per=2)
    assert (figure.low, figure.value, figure.high) == (0.5, 1.0, 2.0)


def test_operations_are_counted_and_bound_by_the_slower_of_two():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert figures.count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
    slow_memory = figures.Machine(bytes_per_second=100.0, flops=1e6, threads=1, device="CPU")
    assert slow_memory.floor_ms(flops=1e3, read=50.0) == 500.0
    assert slow_memory.floor_ms(flops=2e6, read=50.0) == 2000.0


def test_bytes_of_the_full_matrix_are_at_least_what_it_holds():
    report = train_logits.bench_train_logits("tiny", rounds=1)
    matrix = 284 * 9000 * 4 / 2**20
    assert report["frozen, all, peak"].value > 2 * matrix  # the logits and their gradient
    assert report["frozen, labels, peak"].value < 0.5 * matrix
    gradient = 9000 * 64 * 4 / 2**20
    assert report["trained, labels, peak"].value > gradient


def test_a_hundred_million_means_that_without_zoedepth():
    config = bench_config("100m")
    with torch.device("meta"):
        model = predict.SpatialVLAForConditionalGeneration(config)
    counts = predict.parameters(model)
    assert sum(counts.values()) - counts["depth"] == pytest.approx(1e8, rel=0.05)


def test_the_real_size_is_paligemma_2_3b():
    """Its parts: about 2.0 G in Gemma 2's layers, 0.41 G in SigLIP, 0.34 G in ZoeDepth."""
    with torch.device("meta"):
        model = predict.SpatialVLAForConditionalGeneration(bench_config("4b"))
    counts = predict.parameters(model)
    assert counts["text_layers"] == pytest.approx(2.02e9, rel=0.01)
    assert counts["vision"] == pytest.approx(0.412e9, rel=0.01)
    assert counts["depth"] == pytest.approx(0.34e9, rel=0.03)


def test_pictures_of_an_episode_move():
    frames = depth_bench._moving_pictures(3)
    assert torch.equal(frames[1][..., :-2], frames[0][..., 2:])
    assert not torch.equal(frames[0], frames[1])
