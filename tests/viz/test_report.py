import json
import re

import numpy as np
import pytest
from page_text import pictures, text_of
from run_folder import SETTINGS, result, write_json, write_run
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.processes import WorkerError
from spatialvla_ft.quickstart import scenes
from spatialvla_ft.quickstart.report import write_report
from spatialvla_ft.quickstart.results import lead, success, words
from spatialvla_ft.quickstart.run_files import read_run
from spatialvla_ft.viz.html import percent, seconds


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("quickstart") / "run")


@pytest.fixture(scope="module")
def page(run_dir):
    names = []
    path = write_report(run_dir, run_dir / "report", on_section=names.append)
    assert path == run_dir / "report" / "index.html"
    assert names[:3] == ["films", "opening", "success"]
    return path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(page):
    plain = re.sub(r'(src|srcset)="data:[^"]+"', "", page)
    assert "http" not in plain
    assert "<script" not in page
    assert re.findall(r'src(?:set)?="(?!data:)', page) == []
    assert "$" not in plain


def test_the_order_is_a_readers(page):
    marks = ["before adaptation: not solved", "<h2>Success", "Gate passed", "<h2>Does it follow"]
    marks += ["The same scene, the other word", "<h2>The points", "<h2>Action grids"]
    marks += ["<h2>Training", "<h2>Open loop", "<h2>Export", "<h2>What this does not"]
    marks += ["<h2>Environment", "<h2>Every stage"]
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    assert page.index('<figure class="moving') < page.index("<h2>"), "a film opens the page"


@pytest.mark.parametrize(
    "fact",
    [
        "among 1 to 3, seen by one calibrated camera that stands somewhere else every time",
        "it solves 48 of 50 scenes on robot B; without adaptation it solves 3 of 50.",
        "“touch the",
        "None of the 2 scenes whose motions were kept was solved by the adapted policy alone",
        "From scratch on B training seed 4 24 % 12 of 50 14 % to 37 %",
        "No motion 0 % 0 of 50 0 % to 7 %",
        "Gate passed: all 7 conditions, fixed beforehand, hold.",
        "Holds: the base solves at most 20 % without adaptation; it solved 3 of 50",
        "From scratch on B (baseline) robot_b touch 4 12/50 24 % 14 % to 37 % 61.2",
        "No motion (baseline) robot_b touch – 0/50",
        "image size 32, camera mode random, distractors 0/1/1/2/2, first seed 1000",
        "by chance 18 %: one of the blocks, picked anew each time",
        "Adapted (LoRA) 40 95 % (83 % to 99 %) 0 % (0 % to 9 %) 95 % (83 % to 99 %)",
        "both words were followed in 0; this is the first of all",
        "Adapted (LoRA) 0.0011",
        "no motion 7.5000",
        "Adapted (LoRA) 211 robot_b_touch/1.0.0 31 % 42 % 100 %",
        "adapted to B (LoRA) 4 600 190 3.22",
        "max logit difference 2.5e-06 inputs 24",
        "49 of 50 episodes with the same seed ended the same way",
        "python 3.12.3 cores 2",
        "What this does not show",
        "Open loop proves little alone",
        "spatialvla-ft data record --x <y> 2 min 11 s",
        "adapt spatialvla-ft train adapt.yaml 42.2 s",
        "sum of all stages 2 min 53 s the whole run 2 min 20 s",
        "Replayed from the actions of the evaluation, and ended as it did.",
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
    # Three films: the pair, the swap, a failure. A still of each, and strips of six: four episodes.
    # What the policy sees, two losses and two grids.
    assert (kinds.count("webp"), kinds.count("jpeg"), kinds.count("png")) == (3, 3 + 24, 5)
    strip = [picture for kind, picture in pictures(page) if kind == "jpeg" and picture.width < 300]
    assert {picture.size for picture in strip} == {(200, 200)}
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
    assert "Gate NOT passed" in page


def test_an_ablation_is_shown_where_there_is_one_and_not_missed_elsewhere(tmp_path):
    run = write_run(tmp_path / "run")
    assert read_run(run).missing == {}
    nothing = scenes.Scenes(scenes.choose(read_run(run)), {}, "")
    assert "Ego3D" not in success(read_run(run), nothing)
    write_json(run / "eval/no_ego3d.json", [result("no_ego3d", 30)])
    shown = text_of(success(read_run(run), nothing))
    assert "Without Ego3D (ablation) robot_b touch not recorded 30/50 60 %" in shown


def test_a_report_without_rendering_says_so(run_dir, monkeypatch):
    def no_gl(wanted):
        raise WorkerError("a worker process failed:\nTraceback ...\nRuntimeError: no OpenGL <x>\n")

    monkeypatch.setattr(scenes, "replay_episodes", no_gl)
    shown = scenes.replayed(read_run(run_dir))
    text = "The episodes could not be rendered: RuntimeError: no OpenGL &lt;x&gt;"
    assert text in scenes.opening(shown)
    assert "followed" in words(read_run(run_dir), shown), "the numbers stay"


def test_other_conditions_are_said_in_the_lead(tmp_path):
    run = write_run(tmp_path / "run")
    other = result("unadapted", 3, settings=dict(SETTINGS, first_seed=7))
    write_json(run / "eval/unadapted.json", [other])
    assert "it solves 3 of 50, under other conditions." in text_of(lead(read_run(run)))


def test_a_run_with_one_block_says_that_words_carry_no_choice(tmp_path):
    run = write_run(tmp_path / "run")
    for file in (run / "eval").iterdir():
        (content,) = json.loads(file.read_text())
        settings = dict(SETTINGS, distractors=0)  # as files of before have it
        write_json(file, [{**content, "settings": settings, "swap": None}])
    found = read_run(run)
    assert "the words carried no choice" in words(
        found, scenes.Scenes(scenes.choose(found), {}, "")
    )
    assert "among" not in lead(found)


def test_training_seeds(tmp_path):
    run = write_run(tmp_path / "run")
    write_json(run / "adapt/final/trained.json", {"recipe": {"seed": 7}})
    (run / "scratch/final/trained.json").unlink()
    found = read_run(run)
    assert found.seed("adapted") == "training seeds 4 (base), 7 (adapt)"
    assert found.seed("unadapted") == "training seed 4"
    assert found.seed("scratch") == "training seed not recorded"
    assert found.seed("no_motion") == ""


def test_command(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("adapted", "unadapted"):  # nothing to render
        write_json(run / "eval" / f"{name}.json", [result(name, 20, traces={}, swap=None)])
    done = CliRunner().invoke(app, ["eval", "report", str(run), "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["report"] == str(run / "report" / "index.html")
    assert answer["gate_passed"] is False
    assert "it solved 20 of 50" in answer["gate_reasons"][0]
    assert "Gate NOT passed" in (run / "report" / "index.html").read_text(encoding="utf-8")
    done = CliRunner().invoke(app, ["eval", "report", str(tmp_path / "nowhere")])
    assert done.exit_code == 1
    assert "is no folder" in done.output


def test_numbers():
    shares = [0, 0.004, 0.01, 0.74, 0.994, 0.997, 1]
    assert [percent(share).replace("\u00a0", " ") for share in shares] == [
        "0 %", "0.4 %", "1 %", "74 %", "99 %", "99.7 %", "100 %",
    ]  # fmt: skip
    assert [seconds(s).replace("\u00a0", " ") for s in (0.04, 89.9, 119.6, 3600)] == [
        "0.0 s", "89.9 s", "2 min 00 s", "60 min 00 s",
    ]  # fmt: skip


def test_wide_pictures_keep_their_size_on_a_phone(page):
    """They are panned: shrunk to 360 pixels, their words would be a few pixels high."""
    figures = re.findall(r'<figure class="([^"]*)"><img [^>]*alt="([^"]*)"', page)
    for kind, alt in figures:
        if alt.startswith(("Loss curves", "Action grid", "Point clouds", "Camera picture")):
            assert "pan" in kind.split(), alt
    assert {alt.split()[0] for _, alt in figures} >= {"Loss", "Action"}
    narrow = page[page.index("@media (max-width: 700px)") :]
    assert ".pan img, .plots .pan img { max-width: none; width: 860px; }" in narrow
    assert ".pan { overflow-x: auto; }" in page
