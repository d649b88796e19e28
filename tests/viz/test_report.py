import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from run_folder import SETTINGS, result, write_json, write_run
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.sim.worker import WorkerError
from spatialvla_ft.viz import pictures as pictures_module
from spatialvla_ft.viz.curves import plot_losses, series, smooth
from spatialvla_ft.viz.embed import animation_uri
from spatialvla_ft.viz.numbers import percent, seconds
from spatialvla_ft.viz.pictures import choose_episodes
from spatialvla_ft.viz.report import write_report
from spatialvla_ft.viz.results import summary
from spatialvla_ft.viz.run_files import read_run
from spatialvla_ft.viz.success import plot_success


def text_of(page):
    """What a reader sees, spaces made plain."""
    body = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", body.replace("&lt;", "<").replace("&gt;", ">"))


def pictures(page):
    found = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', page)
    return [(kind, Image.open(io.BytesIO(base64.b64decode(data)))) for kind, data in found]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("quickstart") / "run")


@pytest.fixture(scope="module")
def page(run_dir):
    names = []
    path = write_report(run_dir, run_dir / "report", on_section=names.append)
    assert path == run_dir / "report" / "index.html"
    assert names[0] == "stages"
    return path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(page):
    assert "http" not in re.sub(r'src="data:[^"]+"', "", page)
    assert "<script" not in page
    assert re.findall(r'src="(?!data:)', page) == []
    assert "$" not in re.sub(r'src="data:[^"]+"', "", page)


@pytest.mark.parametrize(
    "fact",
    [
        "solved 37 of 50 episodes (74 %, 95 % interval 60 % to 84 %)",
        "the same base without adaptation 3 of 50 (2 % to 16 %)",
        "trained from random weights on robot B alone 12 of 50 (14 % to 37 %)",
        "Gate passed.",
        "spatialvla-ft data record --x <y> 2 min 11 s",
        "adapt spatialvla-ft train adapt.yaml 42.2 s",
        "2 min 53 s",
        "From scratch on B (baseline) robot_b touch 12/50 24 % 14 % to 37 % 0/50 61.2",
        "Adapted, exported robot_b touch 36/50 72 %",
        "image size 32, camera mode random, distractors 0, first seed 1000",
        "Adapted (LoRA) 0.0011",
        "no motion 7.5000",
        "Adapted (LoRA) 211 robot_b_touch/1.0.0 31 % 42 % 100 %",
        "adapted to B (LoRA) 600 190 3.22",
        "max logit difference 2.5e-06 inputs 24",
        "49 of 50 episodes with the same seed ended the same way",
        "python 3.12.3 cores 2",
        "What this does not show",
        "Open loop proves little alone",
        "1 of 1 replays ended as recorded, after the same number of actions",
        "Missing from this run: data/robot_a_touch/1.0.0",
    ],
)
def test_facts(page, fact):
    assert fact in text_of(page)


def test_pictures_decode(page):
    kinds = []
    for kind, picture in pictures(page):
        picture.load()
        kinds.append(kind)
    # One film and its strip of eight; success, view, losses and two grids.
    assert (kinds.count("webp"), kinds.count("jpeg"), kinds.count("png")) == (1, 8, 5)
    strip = [picture for kind, picture in pictures(page) if kind == "jpeg"]
    assert {picture.size for picture in strip} == {(384, 384)}
    assert np.asarray(strip[0]).std() > 10


def test_missing_files_are_named(tmp_path):
    run = write_run(tmp_path / "run")
    gone = ["eval/scratch.json", "base/metrics.jsonl", "grids/robot_b.png", "export_check.json"]
    gone += ["open_loop/unadapted.json", "timings.json", "environment.json", "eval/adapted.json"]
    for name in gone:
        (run / name).unlink()
    page = write_report(run, tmp_path / "out").read_text(encoding="utf-8")
    assert set(read_run(run).missing) == set(gone)
    for name in gone:
        assert page.count(f"<code>{name}</code>") >= 2, name  # on top, and in its section
    assert "Gate NOT passed." in page
    assert "No evaluated episode was kept for replay" in page or "eval/adapted.json" in page


def test_a_report_without_rendering_says_so(run_dir, monkeypatch):
    def no_gl(wanted):
        raise WorkerError("a worker process failed:\nTraceback ...\nRuntimeError: no OpenGL <x>\n")

    monkeypatch.setattr(pictures_module, "replay_episodes", no_gl)
    section = pictures_module.episodes(read_run(run_dir))
    assert "The episodes could not be rendered: RuntimeError: no OpenGL &lt;x&gt;" in section


def test_other_conditions_are_said_in_the_summary(tmp_path):
    run = write_run(tmp_path / "run")
    other = result("scratch", 12, settings=dict(SETTINGS, first_seed=7))
    write_json(run / "eval/scratch.json", [other])
    text = text_of(summary(read_run(run)))
    assert "12 of 50 (14 % to 37 %, under other conditions)" in text
    assert "3 of 50 (2 % to 16 %)" in text


def test_command(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("adapted", "unadapted"):  # nothing to render
        write_json(run / "eval" / f"{name}.json", [result(name, 20, traces={})])
    done = CliRunner().invoke(app, ["eval", "report", str(run), "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["report"] == str(run / "report" / "index.html")
    assert answer["gate_passed"] is False
    assert answer["gate_reasons"][0] == "the adapted policy solved 20 of 50"
    assert "Gate NOT passed." in (run / "report" / "index.html").read_text(encoding="utf-8")
    done = CliRunner().invoke(app, ["eval", "report", str(tmp_path / "nowhere")])
    assert done.exit_code == 1
    assert "is no folder" in done.output


def test_choice_of_episodes(tmp_path):
    run = write_run(tmp_path / "run")
    step = [[0.0] * 7]
    traces = {str(seed): step for seed in (1000, 1001, 1049)}
    write_json(run / "eval/exported.json", [result("exported", 36, traces=traces)])
    write_json(run / "eval/unadapted.json", [result("unadapted", 3, traces={"1049": step})])
    found = [(name, seed) for name, _, seed in choose_episodes(read_run(run))]
    assert found == [("exported", 1049), ("unadapted", 1049), ("exported", 1000)]
    other = dict(SETTINGS, camera_mode="fixed")
    write_json(run / "eval/unadapted.json", [result("unadapted", 3, traces=traces, settings=other)])
    found = [(name, seed) for name, _, seed in choose_episodes(read_run(run))]
    assert found == [("exported", 1049), ("exported", 1000)]


def test_animation_has_every_frame_at_the_right_speed():
    frames = np.zeros((5, 64, 48, 3), np.uint8)
    frames[:, :, :, 1] = np.arange(0, 250, 50)[:, None, None]
    uri = animation_uri(frames, hz=5.0, success=False)
    film = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert (film.n_frames, film.size) == (5, (48, 64))
    durations = []
    for i in range(5):
        film.seek(i)
        film.load()
        durations.append(film.info["duration"])
        assert abs(int(np.asarray(film.convert("RGB"))[40, 24, 1]) - 50 * i) < 12
    assert durations == [200, 200, 200, 200, 1500]


def test_bars_and_whiskers_are_the_results(run_dir):
    axes = plot_success(read_run(run_dir).outcomes).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.86, 0, 0.02, 0.06, 0.24, 0.74, 0.72]
    labels = [text.get_text() for text in axes.texts]
    assert labels == ["43/50", "0/50", "1/50", "3/50", "12/50", "37/50", "36/50"]


def test_losses(run_dir):
    lines = read_run(run_dir).metrics["adapt"]
    steps, values = series(lines, "loss")
    assert (steps[0], steps[-1], values[-1]) == (50, 600, 3.0)
    assert len(series(lines, "no such metric")[0]) == 0
    np.testing.assert_allclose(smooth(np.full(9, 2.5)), 2.5)
    kernel = (2 / 3) ** np.arange(12)[::-1]
    assert smooth(values)[-1] == pytest.approx(kernel @ values / kernel.sum())
    axes = plot_losses({"base": lines}).axes
    assert axes[1].texts[0].get_text() == "not recorded"
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert legend[1] == "base, on robot A: held-out episodes, ends at 3.22"


def test_numbers():
    shares = [0, 0.004, 0.01, 0.74, 0.994, 0.997, 1]
    assert [percent(share).replace("\u00a0", " ") for share in shares] == [
        "0 %", "0.4 %", "1 %", "74 %", "99 %", "99.7 %", "100 %",
    ]  # fmt: skip
    assert [seconds(s).replace("\u00a0", " ") for s in (0.04, 89.9, 119.6, 3600)] == [
        "0.0 s", "89.9 s", "2 min 00 s", "60 min 00 s",
    ]  # fmt: skip
