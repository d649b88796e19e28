"""`check-robot`: which axis of a policy goes with which recorded one, and what is shown."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
import torch
import yaml
from tiny_world import tiny_model
from typer.testing import CliRunner

from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.actions.normalise import ActionStatistics, normalise
from spatialvla_ft.actions.spaces import end_effector_delta, joint_space
from spatialvla_ft.cli.main import app
from spatialvla_ft.data import open_dataset
from spatialvla_ft.data.stats.statistics import dataset_statistics
from spatialvla_ft.evaluation.motion_match import match_axes
from spatialvla_ft.evaluation.robot_check import check_motions, tool_motion
from spatialvla_ft.models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from spatialvla_ft.models.processing_spatialvla import SpatialVLAProcessor
from spatialvla_ft.models.small import small_processor
from spatialvla_ft.policy.inputs import Collator
from spatialvla_ft.viz import robot_check as page

NAMES, UNITS = ("x", "y", "z"), ("m",) * 3
SPACE = end_effector_delta(10.0)


def motions(seed, count=128):
    """Motions whose axes are related and reach unequally far, as demonstrations' are."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, 3)) @ np.array([[1, 0.4, 0.2], [0, 1, -0.3], [0, 0, 1]])
    return mixed * [0.01, 0.015, 0.006]


def follows(values, seed, noise=0.6):
    rng = np.random.default_rng(seed + 1000)
    return values + noise * values.std(axis=0) * rng.normal(size=values.shape)


SIGNED = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize(("order", "signs"), SIGNED)
def test_every_order_and_sign_is_found(order, signs):
    """The policy's axis i is sign i times the recorded axis order[i]."""
    recorded = motions(3)
    predicted = follows(recorded, 3)[:, order] * signs
    found = match_axes(predicted, recorded, NAMES, UNITS)
    for i, one in enumerate(found):
        assert one.goes_with == f"{'-' if signs[i] < 0 else ''}{NAMES[order[i]]}"
        right = "fine" if signs[i] > 0 else "flipped"
        assert one.verdict == (right if order[i] == i else "swapped")


def test_a_policy_that_follows_nothing_is_not_accused():
    told = [
        one.verdict
        for seed in range(100)
        for one in match_axes(motions(seed), motions(seed + 500), NAMES, UNITS)
    ]
    assert told.count("unclear") > 0.98 * len(told)
    assert not {"flipped", "swapped"} & set(told)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0, 2.0])
def test_one_that_follows_is_not_accused(noise):
    for seed in range(30):
        recorded = motions(seed)
        found = match_axes(follows(recorded, seed, noise), recorded, NAMES, UNITS)
        assert {one.verdict for one in found} <= {"fine", "unclear"}
        if noise < 1:
            assert {one.verdict for one in found} == {"fine"}


def test_numbers_of_an_axis():
    recorded = motions(1)
    (one,) = match_axes(-2 * recorded[:, :1], recorded[:, :1], ["x"], ["m"])
    assert one.verdict == "flipped"
    assert (one.agreement, one.goes_with) == (0.0, "-x")
    assert one.correlation == pytest.approx(-1)
    assert one.scale == pytest.approx(2)
    still = match_axes(recorded * [1, 0, 1], recorded, NAMES, UNITS)[1]
    assert (still.verdict, still.correlation, still.goes_with) == ("still", None, None)
    assert match_axes(1000 * recorded, recorded, NAMES, UNITS)[1].verdict == "scaled"


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        (np.zeros((5, 2)), np.zeros((5, 3)), r"must both be \(n, 3\)"),
        (np.zeros((2, 3)), np.zeros((2, 3)), "give at least 3"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(own, other, message):
    with pytest.raises(ValueError, match=message):
        match_axes(own, other, NAMES, UNITS)


def steps(seed=0, count=128):
    """(n, 7) recorded actions."""
    grip = (np.arange(count) // 16 % 2)[:, None]
    turns = 3 * motions(seed + 7, count)
    return np.hstack([motions(seed, count), turns, grip]).astype(np.float32)


def test_a_check_says_what_is_wrong():
    recorded = steps()
    fine = check_motions(recorded, recorded, SPACE, trained_hz=10.0)
    assert (fine.verdict, fine.warnings) == ("fine", [])
    assert [one.name for one in fine.axes] == ["x", "y", "z", "roll", "pitch", "yaw"]
    assert fine.grippers[0].verdict == "fine"
    json.dumps(fine.to_dict())

    other = recorded.copy()
    other[:, 4] *= -1
    other[:, 6] = 1 - other[:, 6]
    found = check_motions(recorded, other, SPACE, trained_hz=5.0)
    assert found.verdict == "look"
    pitch, gripper, rate = found.warnings
    assert pitch.startswith("pitch looks flipped: the policy's pitch goes with the recorded -pitch")
    assert gripper.startswith("gripper looks flipped: predicted and recorded agree in 0%")
    assert "recorded at 10 Hz, the policy trained at 5 Hz: its steps are 2 times as long" in rate

    millimetres = recorded * np.array([1000] * 3 + [1] * 4, np.float32)
    scaled = check_motions(millimetres, recorded, SPACE)
    assert [text.split()[0] for text in scaled.warnings] == ["x", "y", "z"]
    assert "0.001 times as far as the recording" in scaled.warnings[0]

    held = recorded.copy()
    held[:, 6] = 1
    assert "never changes in one of the two" in check_motions(recorded, held, SPACE).warnings[0]

    noise = recorded.copy()
    noise[:, 3:6] = 3 * motions(99)
    part = check_motions(recorded, noise, SPACE)
    assert (part.verdict, part.untold) == ("fine", ["roll", "pitch", "yaw"])
    noise[:, :3] = motions(98)
    assert check_motions(recorded, noise, SPACE).verdict == "unclear"

    with_nan = recorded.copy()
    with_nan[3] = np.nan
    assert check_motions(with_nan, recorded, SPACE).steps == 127


def test_the_tool_itself_tells_a_wrong_card():
    """Also for a policy that learnt the wrong reading, and so agrees with it."""
    recorded = steps()
    tool = motions(0)[:, [1, 0, 2]] * [1, -1, 1]
    found = check_motions(recorded, recorded, SPACE, moved=(recorded[:, :3], tool))
    assert len(found.warnings) == 2
    assert found.warnings[0].startswith(
        "the recording contradicts itself: the tool's own x changes with the action's y"
    )
    assert "tool's own y changes with the action's -x" in found.warnings[1]


def test_joints_are_judged_one_by_one():
    rng = np.random.default_rng(0)
    recorded = rng.normal(size=(100, 8)).astype(np.float32)
    predicted = recorded.copy()
    predicted[:, 2] *= -1
    found = check_motions(recorded, predicted, joint_space(7, 10.0))
    assert [one.verdict for one in found.axes].count("flipped") == 1
    assert found.warnings[0].startswith("joint_3 looks flipped")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    out = tmp_path_factory.mktemp("recording")
    command = (
        f"data record --robot robot_b --task touch --episodes 8 --out {out} --image-size 32 "
        "--camera-mode random --name demo --json"
    )
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 0, done.output
    return out / "demo" / "1.0.0"


@pytest.fixture(scope="module")
def knowing(recording, tmp_path_factory):
    """A checkpoint, and what to put in place of its predictions: those of one that knows it all."""
    folder = tmp_path_factory.mktemp("knowing")
    data = open_dataset(recording, card=None, horizon=1)
    statistics = dataset_statistics(data)
    processor = small_processor(
        sorted(data.instructions()),
        ActionGrid.uniform(bins=(8, 12, 6, 9, 9, 9, 2)),
        image_size=32,
        patch_size=8,
        action_chunk_size=1,
        statistics={data.name: statistics.to_dict()},
    )
    tiny_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    collate = Collator(processor, "sensor", with_actions=False)
    known = {}
    for sample in (data[i] for i in range(len(data))):
        pixels = collate([sample])["pixel_values"][0].numpy().tobytes()
        known[pixels] = normalise(sample.actions, ActionStatistics.from_dict(statistics.to_dict()))

    def predict_action(self, inputs):
        rows = [known[pixels.numpy().tobytes()] for pixels in inputs["pixel_values"]]
        ids = [processor.action_tokenizer.encode(np.clip(row, -1, 1)).ravel() for row in rows]
        return torch.from_numpy(np.stack(ids))

    return folder, predict_action


def card_with(recording, out, **action):
    content = yaml.safe_load((recording / "card.yaml").read_text())
    content["cards"]["demo"]["action"] |= action
    out.write_text(yaml.safe_dump(content))
    return out


def call(knowing, recording, monkeypatch, *more):
    folder, predict_action = knowing
    monkeypatch.setattr(SpatialVLAForConditionalGeneration, "predict_action", predict_action)
    arguments = ["check-robot", str(folder), str(recording), *map(str, more)]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done


def test_the_right_card_is_fine(knowing, recording, monkeypatch, tmp_path):
    out = tmp_path / "deep" / "page.html"
    done = call(knowing, recording, monkeypatch, "--out", out)
    assert "fine: nothing looks wrong" in done.stdout
    assert "warning" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if "page:" not in line) <= 160
    text = out.read_text()
    assert "Nothing looks wrong" in text
    assert text.count("data:image/png") == page.SHOWN + 1
    assert "the recorded tool moves as the recorded actions say</li>" in text
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_a_heatmap_is_on_the_page(knowing, recording, tmp_path):
    """Whatever it predicts: of a head with cells the page shows where they are likely."""
    folder, _ = knowing
    head = {"kind": "voxel_heatmap", "bins": {"translation": [6, 6, 4], "rotation": [4, 4, 4]}}
    torch.manual_seed(0)
    load = SpatialVLAForConditionalGeneration.from_pretrained
    load(folder, action_head=head).save_pretrained(tmp_path / "model")
    SpatialVLAProcessor.from_pretrained(folder).save_pretrained(tmp_path / "model")
    out = tmp_path / "page.html"
    command = ["check-robot", tmp_path / "model", recording, "--steps", 12, "--out", out]
    done = CliRunner().invoke(app, [str(part) for part in command])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert "Where it wants to go, and how sure it is" in text
    assert "A prediction with its heatmap over the scene" in text


@pytest.mark.parametrize(
    ("translation", "said"),
    [
        (
            ["action[0:1]", {"src": "action[1:2]", "ops": [{"scale": -1}]}, "action[2:3]"],
            ["y looks flipped", "the tool's own y changes with the action's -y"],
        ),
        (
            ["action[1:2]", "action[0:1]", "action[2:3]"],
            ["x looks swapped: the policy's x goes with the recorded y", "y looks swapped"],
        ),
    ],
)
def test_a_wrong_card_is_named(knowing, recording, monkeypatch, tmp_path, translation, said):
    card = card_with(recording, tmp_path / "card.yaml", translation=translation)
    done = call(knowing, recording, monkeypatch, "--card", card)
    words = " ".join(done.stdout.split())
    for text in said:
        assert text in words
    assert "look before it moves" in words
    found = json.loads(call(knowing, recording, monkeypatch, "--card", card, "--json").stdout)
    assert found["verdict"] == "look"
    assert {one["verdict"] for one in found["axes"]} & {"flipped", "swapped"}


def test_tool_motion_is_of_the_recorded_state(recording):
    data = open_dataset(recording, card=None)
    commanded, moved = tool_motion(data, [0])
    found = data.standardised(0)
    np.testing.assert_array_equal(commanded, found.action[:-1, :3])
    np.testing.assert_array_equal(moved[0], found.proprio[1, :3] - found.proprio[0, :3])


def test_bad_input_names_the_cure(knowing, recording, tmp_path):
    folder, _ = knowing
    for arguments, message in (
        ([tmp_path / "none", recording], "is no folder"),
        ([folder, recording, "--camera", "wrist"], "--camera wrist is not one"),
    ):
        done = CliRunner().invoke(app, ["check-robot", *map(str, arguments)])
        assert done.exit_code == 1
        assert message in " ".join(done.stderr.split())


def test_an_arrow_begins_at_the_tool_and_ends_where_the_motion_leads(recording, monkeypatch):
    """Against a projection written out: R^T (p - t), then K."""
    data = open_dataset(recording, card=None)
    sample = data[5]
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.annotate",
        lambda self, text, end, start, **style: drawn.append((start, end, style)),
    )
    from spatialvla_ft.evaluation.robot_check import Predicted

    actions = np.asarray(sample.actions[:1])
    (one,) = page.steps_to_draw(data, Predicted([sample], actions, -actions), count=1)
    page.draw_step(one, sample.action_space, 10.0)
    K, pose = sample.intrinsics["primary"], sample.extrinsics["primary"]

    def seen(point):
        x, y, z = pose[:3, :3].T @ (point - pose[:3, 3])
        return K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]

    tool = sample.proprio[:3].astype(float)
    motion = sample.actions[0, :3].astype(float)
    arrows = [
        (start, end) for start, end, style in drawn if style["arrowprops"]["color"] == page.RECORDED
    ]
    np.testing.assert_allclose(arrows[0], [seen(tool), seen(tool + 10 * motion)], atol=1e-3)
    opposite = [end for _, end, style in drawn if style["arrowprops"]["color"] == page.SAID]
    np.testing.assert_allclose(opposite[0], seen(tool - 10 * motion), atol=1e-3)
