"""The whole adaptation of a robot: what a second call skips, what a change does again, errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from spatialvla_ft.adapting import job, model_stages
from spatialvla_ft.cli.main import app
from spatialvla_ft.converters.rlds_to_lerobot import to_lerobot
from spatialvla_ft.data import load_cards, open_dataset
from spatialvla_ft.data.rlds.index import build_index
from spatialvla_ft.depth import load as depth_load
from spatialvla_ft.depth.cache import DepthCache
from spatialvla_ft.memory import machine
from spatialvla_ft.models.lora import is_adapter
from spatialvla_ft.models.processing_spatialvla import SpatialVLAProcessor
from spatialvla_ft.training import step_cost
from spatialvla_ft.training.loop import Loop
from spatialvla_ft.training.recipe import load_recipe

ALL = ["index", "inspect", "statistics", "grid", "plan", "train", "evaluate"]
RECIPE = """\
output: ignored
seed: 3
model: {base: ignored}
data:
  datasets: [{path: ignored}]
  depth: sensor
  holdout: 0.3
  workers: 0
grid: {fit: gaussian}
lora: {rank: 4, train_whole: [spatial_embed_tokens]}
train:
  steps: 4
  batch_size: 2
  global_batch: 4
  learning_rate: 1.0e-3
  threads: 1
  log_every: 1
  save_every: 2
  validate_every: 4
  validate_samples: 8
  trackers: [jsonl]
"""


class Lab:
    """Calls of `adapt` with one data folder, one base, one output folder."""

    def __init__(self, data, base, folder):
        self.data, self.base, self.folder, self.out = data, base, folder, folder / "out"
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(RECIPE)

    def arguments(self, *more):
        fixed = ["--base", str(self.base), "--out", str(self.out), "--recipe", str(self.recipe)]
        return ["adapt", str(self.data), *fixed, *map(str, more)]

    def call(self, *more, code=0):
        done = CliRunner().invoke(app, self.arguments(*more))
        assert done.exit_code == code, done.output
        return done

    def json(self, *more):
        return json.loads(self.call("--json", *more).stdout.splitlines()[-1])

    def done_again(self, *more):
        """Names of the stages that worked, and why."""
        stages = self.json(*more)["stages"]
        return {name: s["why"] for name, s in stages.items() if s["state"] == "done"}


@pytest.fixture(autouse=True)
def quick_plan(monkeypatch, request):
    """Planning memory takes two seconds, so that most tests go without."""
    if "real_plan" not in request.fixturenames:
        plan = {"peak": 2**30, "parts": {}, "device": "x", "available": 2**33, "fits": True}
        monkeypatch.setattr(model_stages, "plan_beside_machine", lambda recipe, base: plan)


@pytest.fixture
def real_plan():
    """For tests that need the plan itself."""


@pytest.fixture
def lab(demo_data, base, tmp_path):
    data = tmp_path / "demo" / "1.0.0"
    shutil.copytree(demo_data, data, ignore=shutil.ignore_patterns("frame_index"))
    return Lab(data, base, tmp_path)


def test_from_data_to_export_and_what_a_second_call_does(lab):
    report = lab.json("--export", "--accept-errors")
    assert list(report["stages"]) == [*ALL, "export"]
    assert {stage["state"] for stage in report["stages"].values()} == {"done"}
    final = lab.out / "train" / "final"
    assert is_adapter(final)
    assert (lab.out / "inspection.html").stat().st_size > 10_000
    assert (lab.out / "grid.png").read_bytes()[:4] == b"\x89PNG"

    # The recipe with its defaults is the one that was trained.
    written = yaml.safe_load((lab.out / "recipe.yaml").read_text())
    trained = yaml.safe_load((lab.out / "train" / "recipe.yaml").read_text())
    assert trained["train"].pop("gradient_accumulation") == 2  # it follows from global_batch
    assert written == trained
    assert written["train"]["clip_norm"] == 1.0
    text = (lab.out / "recipe.yaml").read_text().splitlines()
    origin = {line.split(":")[0].strip(): line.rpartition("# ")[2] for line in text}
    assert origin["clip_norm"] == "default"
    assert origin["rank"] == "recipe"
    assert origin["base"] == "adapt"
    grid = json.loads((lab.out / "grid.json").read_text())
    processor = SpatialVLAProcessor.from_pretrained(final)
    assert processor.grid.edges["r"].tolist() == pytest.approx(grid["edges"]["r"])

    # Figures on held-out episodes, by hand: the mean action of the others against every step.
    result = report["open_loop"]
    assert set(result["l1"]) == {"adapted", "base, not adapted", "no motion", "mean action"}
    whole = open_dataset(lab.data, card=None)
    recipe = load_recipe(lab.out / "recipe.yaml")
    held = np.random.default_rng(recipe.seed).permutation(len(whole.episodes))
    held = np.sort(held[: result["episodes"]])
    others = [e for e in whole.episodes if e not in whole.episodes[held]]
    mean = np.concatenate([whole.standardised(e).action for e in others]).mean(axis=0)
    errors = []
    for episode in whole.episodes[held]:
        action = whole.standardised(episode).action
        for t in range(len(action)):  # two actions from each step, as far as the episode goes
            errors += list(np.abs(action[t : t + 2] - mean))
    assert result["l1"]["mean action"] == pytest.approx(np.mean(errors, axis=0).tolist(), rel=1e-4)

    assert lab.done_again("--export", "--accept-errors") == {}
    again = lab.done_again("--accept-errors", "train.learning_rate=2e-3")
    assert list(again) == ["plan", "train", "evaluate"]
    assert again["plan"] == "changed: train.learning_rate was 0.001, is 0.002"
    assert load_recipe(lab.out / "train" / "recipe.yaml").train.learning_rate == 2e-3
    aside = lab.out / "train.old-1"  # nothing that was trained is deleted
    assert load_recipe(aside / "recipe.yaml").train.learning_rate == 1e-3

    # A second call that finds everything done does not even load torch.
    code = (
        "import sys; from spatialvla_ft.cli.main import app; "
        "app(sys.argv[1:], standalone_mode=False); assert 'torch' not in sys.modules"
    )
    arguments = lab.arguments("--accept-errors", "train.learning_rate=2e-3")
    quick = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "SPATIALVLA_FT_LIGHT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert quick.returncode == 0, quick.stderr[-3000:]
    assert quick.stderr.count("done before") == len(ALL)


def test_a_changed_card_does_again_what_depends_on_it(lab):
    stop = ("--stop-after", "grid", "--accept-errors")
    assert list(lab.done_again(*stop)) == ALL[:4]
    card = lab.data / "card.yaml"
    card.write_text("# a comment changes nothing\n" + card.read_text())
    assert lab.done_again(*stop) == {}
    card.write_text(card.read_text().replace("action[0:3]", "action[1:4]"))
    again = lab.done_again(*stop)
    assert list(again) == ["inspect", "statistics", "grid"]
    assert again["statistics"] == "changed: the card"
    assert again["grid"] == "changed: the statistics"
    (lab.out / "grid.png").unlink()
    assert lab.done_again(*stop) == {"grid": f"{lab.out / 'grid.png'} is gone"}


def test_what_may_change_freely_keeps_the_training(lab):
    lab.json("--accept-errors", "--stop-after", "train", "train.steps=1")
    stop = ("--accept-errors", "--stop-after", "train", "train.steps=1", "train.log_every=3")
    assert list(lab.done_again(*stop)) == ["plan"]
    assert not (lab.out / "train.old-1").exists()
    # Other samples per step are another training, however they come about.
    more = ("train.global_batch=null", "train.batch_size=3")
    assert list(lab.done_again(*stop, *more)) == ["plan", "train"]
    assert (lab.out / "train.old-1").exists()


def test_too_little_memory_warns_with_what_would_fit(lab, monkeypatch, real_plan):
    monkeypatch.setattr(machine, "_machine", lambda: ("a small GPU", 2**16))
    report = lab.json("--accept-errors", "--stop-after", "plan", "train.batch_size=1")
    (told,) = [text for text in report["warnings"] if "a small GPU" in text]
    assert "too little" in told
    assert list(report["stages"]) == ALL[:5]  # it warns, and goes on


@pytest.mark.parametrize("end", ["killed", "SIGTERM"])
def test_training_goes_on_where_it_stopped(lab, monkeypatch, end):
    real = Loop.micro_step

    def dies(self, batch, step):
        if step == 7:  # half way through the fourth of five steps
            if end == "killed":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, step)

    lab_args = ("--accept-errors", "--stop-after", "train", "train.steps=5")
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "micro_step", dies)
        code = 75 if end == "SIGTERM" else 130
        lab.call(*lab_args, code=code)
    steps = []
    monkeypatch.setattr(
        Loop, "micro_step", lambda self, batch, step: steps.append(step) or real(self, batch, step)
    )
    assert list(lab.done_again(*lab_args)) == ["train"]
    assert steps == ([4, 5, 6, 7, 8, 9] if end == "killed" else [8, 9])


def test_a_lerobot_folder_without_card_waits_for_a_person(demo_data, base, tmp_path):
    folder = tmp_path / "my_robot"
    index = build_index(demo_data)
    to_lerobot(index, load_cards(demo_data / "card.yaml")["demo"], demo_data / "card.yaml", folder)
    shutil.move(folder / "card.yaml", tmp_path / "true_card.yaml")
    lab = Lab(folder, base, tmp_path)
    done = lab.call(code=1)
    drafted = lab.out / "card.yaml"
    assert f"--card {drafted}" in done.output
    assert "Traceback" not in done.output
    assert (lab.out / "inspection.html").is_file()
    drafted.write_text("schema_version: 1\ncards: {}\n")  # a person's work is never overwritten
    lab.call(code=1)
    assert drafted.read_text() == "schema_version: 1\ncards: {}\n"

    true = ("--card", tmp_path / "true_card.yaml", "--accept-errors")
    report = lab.json(*true, "train.steps=1")
    assert list(report["stages"]) == ALL
    statistics = json.loads((lab.out / "statistics.json").read_text())
    values = open_dataset(demo_data, card=None)
    held = np.random.default_rng(3).permutation(len(values.episodes))
    held = held[: report["open_loop"]["episodes"]]
    kept = [e for i, e in enumerate(values.episodes) if i not in held]
    actions = np.concatenate([values.standardised(e).action for e in kept])
    (found,) = statistics.values()
    assert found["action"]["mean"] == pytest.approx(actions.mean(axis=0).tolist(), abs=1e-5)


def _mend(lab, old, new):
    card = lab.data / "card.yaml"
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (("      primary: observation.intrinsics_front\n", ""), (),
         ["camera 'primary'", "{fx: ..., fy: ..., cx: ..., cy: ..., width: 64, height: 36}",
          "data.assume_intrinsics=default"]),
        (None, ("data.depth=estimate",), ["has no ZoeDepth", "data.depth=sensor"]),
        (("    depth: {primary: observation.depth_front}\n    depth_scale: 1.0e-4\n", ""), (),
         ["data.depth is 'sensor'", "names no depth", "source: estimator"]),
        (("    depth: {primary: observation.depth_front}\n    depth_scale: 1.0e-4\n", ""),
         ("data.depth=estimate",), ["has no ZoeDepth", "source: estimator"]),
        (None, ("data.holdout=0.99",), ["episode(s) in split 'train'", "data.holdout=0"]),
        (None, ("data.cameras=[side]",), ["camera 'side'", "['primary', 'wrist']"]),
        (None, ("train.learning_rat=1",), ["did you mean learning_rate?"]),
        (None, ("train.checkpoint_every=9",), ["did you mean save_every?"]),
        (('"action[3:6]"', '"action[4:9]"'), (),
         ["action.rotation: action[4:9] leaves its column: 'action' is 7 wide"]),
        (None, ("output=runs/x",), ["adapt sets output", "--out DIR"]),
        (None, ("--stop-after", "fit"), ["--stop-after fit is no stage", "grid"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_with_its_cure(lab, change, more, words):
    if change is not None:
        _mend(lab, *change)
    done = lab.call("--accept-errors", *more, code=1)
    told = done.output
    assert "Traceback" not in told
    for word in words:
        assert word in told
    assert not (lab.out / "train").exists()


def test_a_missing_base_and_missing_data(lab):
    good, lab.base = lab.base, lab.folder / "nowhere"
    assert f"--base {lab.base} is no checkpoint folder" in lab.call(code=1).output
    lab.base = good.with_name(good.name[:-1] + "x")
    assert f"(did you mean {good}" in lab.call(code=1).output  # others may lie beside it
    lab.base, lab.data = good, lab.folder / "nothing"
    assert f"{lab.data} is no folder" in lab.call(code=1).output


def test_what_the_inspection_told_is_not_told_again():
    """Of a gripper that stands still both speak; of a dimension with a note only the pre-flight."""
    facts = SimpleNamespace(still={"gripper": "gripper never changes", "yaw": "yaw never changes"})
    report = SimpleNamespace(
        datasets=[facts], warnings=["K is assumed", "yaw never changes", "gripper never changes"]
    )
    findings = [
        {"rule": "gripper never moves", "where": "action gripper", "severity": "warning"},
        {"rule": "constant dimension", "where": "action yaw", "severity": "note"},
    ]
    assert model_stages._not_told(report, findings) == ["K is assumed", "yaw never changes"]
    assert model_stages._not_told(report, []) == report.warnings


def test_a_training_from_before_ranges_were_widened_is_kept(lab):
    """Its statistics stage says nothing of ranges; that alone does not make it another training."""
    stop = ("--stop-after", "train", "--accept-errors", "train.steps=1")
    lab.json(*stop)
    file = lab.out / "stages" / "statistics.json"
    record = json.loads(file.read_text())
    assert record["inputs"].pop("the ranges")
    file.write_text(json.dumps(record))
    assert lab.done_again(*stop) == {}
    shutil.rmtree(lab.out / "train")  # nothing was trained yet: the ranges of today
    again = lab.done_again("--stop-after", "grid", "--accept-errors", "train.steps=1")
    assert list(again) == ["statistics"]
    assert "the ranges" in again["statistics"]
    more = ("--stop-after", "statistics", "--accept-errors", "train.steps=1")
    by_quantiles = lab.done_again(*more, "data.action_range=quantiles")
    assert list(by_quantiles) == ["statistics"]


class Seeing(Lab):
    """A lab whose base has a ZoeDepth, and whose recipe asks for bf16 as the shipped ones do."""

    def __init__(self, data, base, folder):
        super().__init__(data, base, folder)
        text = RECIPE.replace("depth: sensor", "depth: estimate").replace("steps: 4", "steps: 40")
        text = text.replace("save_every: 2", "save_every: 40")
        self.recipe.write_text(text.replace("threads: 1", "threads: 1\n  precision: bf16"))


@pytest.fixture
def seeing(demo_data, seeing_base, tmp_path):
    data = tmp_path / "demo" / "1.0.0"
    shutil.copytree(demo_data, data, ignore=shutil.ignore_patterns("frame_index"))
    return Seeing(data, seeing_base, tmp_path)


def test_depth_is_kept_and_shared_with_the_evaluation(seeing, monkeypatch):
    monkeypatch.setattr(step_cost, "bf16_beside_float32", lambda width: 3.0)
    looks = []
    estimate = depth_load.DeferredEstimator.__call__
    monkeypatch.setattr(
        depth_load.DeferredEstimator,
        "__call__",
        lambda self, pictures, K=None: looks.append(len(pictures)) or estimate(self, pictures, K),
    )
    report = seeing.json("--accept-errors")
    kept = DepthCache(seeing.out / "train" / "depth_cache").size().entries
    assert sum(looks) == kept > 0  # the base and the adapted policy too look at what is kept
    assert report["open_loop"]["l1"].keys() >= {"adapted", "base, not adapted"}
    plan = json.loads((seeing.out / "stages" / "plan.json").read_text())["result"]["plan"]
    assert "estimated once" in plan["depth"]


def test_bf16_gives_way_where_it_is_slower(seeing, monkeypatch):
    measured = []
    monkeypatch.setattr(
        step_cost, "bf16_beside_float32", lambda width: measured.append(width) or 3.0
    )
    stop = ("--stop-after", "plan", "--accept-errors")
    done = seeing.call(*stop)
    assert "precision: float32, because bf16 products, which the recipe asks for, take 3.0" in (
        " ".join(done.output.split())
    )
    recipe = load_recipe(seeing.out / "recipe.yaml")
    assert recipe.train.precision == "float32"
    line = next(
        t for t in (seeing.out / "recipe.yaml").read_text().splitlines() if "precision" in t
    )
    assert line.endswith("# adapt")
    # A busy moment later does not make it another training.
    monkeypatch.setattr(step_cost, "bf16_beside_float32", lambda width: 0.5)
    assert seeing.done_again(*stop, "train.clip_norm=0.5") == {
        "plan": "changed: train.clip_norm was 1.0, is 0.5"
    }
    assert load_recipe(seeing.out / "recipe.yaml").train.precision == "float32"
    assert measured == [32]
    # What the command line asks for stays.
    seeing.call(*stop, "train.precision=bf16")
    assert load_recipe(seeing.out / "recipe.yaml").train.precision == "bf16"


def test_a_card_without_the_later_fields_is_the_same_as_before(demo_data):
    """The hash of a job that was begun when cards had no `video`, `recorded` or `several`."""
    card = load_cards(demo_data / "card.yaml")["demo"]
    assert job.of_card(card) == "f2a5d0067dff5523"
    other = card.model_copy(update={"language": card.language.model_copy(update={"errors": "x"})})
    assert job.of_card(other) != "f2a5d0067dff5523"
