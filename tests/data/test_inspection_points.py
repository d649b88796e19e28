"""Points in `data inspect`: projected rightly, smelt where planted, drafted by name."""

import json
import shutil

import numpy as np
import points_checks
import pytest
import torch
from test_inspection import Bare
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.standardise import Standardised
from spatialvla_ft.data.projection import Placed, in_picture, pixels
from spatialvla_ft.data.store import Field
from spatialvla_ft.geometry.backprojection import backproject, project
from spatialvla_ft.inspection import inspect_dataset
from spatialvla_ft.inspection.draft import draft_card
from spatialvla_ft.inspection.points import look_at_points, out_of_view

SIZE = (64, 40)
K = np.array([[70.0, 0, 30], [0, 60, 21], [0, 0, 1]])


def pose_of(seed):
    """A camera 0.9 m from the workspace (0.5, 0, 0), looking at it; camera to base."""
    rng = np.random.default_rng(seed)
    back = rng.normal(size=3) * [0.4, 0.4, 0.1] + [0.5, 0.1, 0.8]
    back /= np.linalg.norm(back)
    right = np.cross([0.1, 0.3, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(-back, right), -back], axis=1)
    pose[:3, 3] = np.array([0.5, 0, 0]) + 0.9 * back
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    return pose


def scene(count=60):
    """Points of the workspace, and a camera beside each."""
    rng = np.random.default_rng(11)
    points = np.array([0.5, 0, 0.05]) + rng.uniform(-0.08, 0.08, (count, 3))
    return points, [Placed(K, pose_of(i % 7), SIZE) for i in range(count)]


def test_pixels_against_the_models_own_projection():
    points, cameras = scene()
    points[3] = cameras[3].pose[:3, 3] + 0.2 * cameras[3].pose[:3, 2] * -1  # behind
    got = pixels(points, cameras)
    local = np.stack(
        [np.linalg.solve(c.pose, [*p, 1])[:3] for p, c in zip(points, cameras, strict=True)]
    )
    want = project(torch.tensor(local), torch.tensor(np.stack([c.K for c in cameras])))
    np.testing.assert_allclose(got, want.numpy(), atol=1e-9)
    assert np.isnan(got[3]).all()
    assert np.isnan(got).any(axis=1).sum() == 1
    depth = torch.tensor(local[:1, 2:]).float()
    back = backproject(torch.tensor(got[:1]).float(), depth, torch.tensor(K)[None].float())
    np.testing.assert_allclose(back[0, 0].numpy(), local[0], atol=1e-5)


@pytest.mark.parametrize(
    ("uv", "inside"),
    [((0.1, 0.1), True), ((63.9, 39.9), True), ((64.1, 20), False), ((30, 40.1), False),
     ((-0.1, 20), False), ((30, -0.1), False)],
)  # fmt: skip
def test_the_picture_ends_where_its_pixels_end(uv, inside):
    point = np.linalg.inv(K) @ [*uv, 1.0] * 0.7
    assert in_picture(point[None], [Placed(K, np.eye(4), SIZE)]).tolist() == [inside]


def test_points_in_view_do_not_smell():
    points, cameras = scene()
    assert out_of_view("target_point", points, {"primary": cameras}) == []
    away = [Placed(K, np.eye(4), SIZE)] * len(points)  # another camera that sees nothing
    assert out_of_view("target_point", points, {"wrist": away, "primary": cameras}) == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("millimetres", ["0 % of 60", "(primary)", "read as millimetres, 100 %", "in metres"]),
        ("camera", ["read as points of the camera's own frame, 100 %", "pose @"]),
        ("inverse", ["leads from the base to the camera, 100 %", "invert the extrinsics"]),
        ("nonsense", ["0 % of 60", "check frame and unit"]),
    ],
)
def test_points_out_of_view(kind, words):
    points, cameras = scene()
    if kind == "millimetres":
        points = points * 1000
    elif kind == "camera":
        points = np.stack(
            [np.linalg.solve(c.pose, [*p, 1])[:3] for p, c in zip(points, cameras, strict=True)]
        )
    elif kind == "inverse":
        cameras = [Placed(K, np.linalg.inv(c.pose), SIZE) for c in cameras]
    else:
        points = points + np.array([0, 3, 0])
    (finding,) = out_of_view("target_point: p", points, {"primary": cameras})
    assert finding.severity == "error"
    assert finding.where == "target_point: p"
    text = f"{finding.evidence}; {finding.cure}"
    for word in words:
        assert word in text
    middle = np.median(points, axis=0)
    assert ", ".join(f"{value:.4g}" for value in middle) in finding.evidence


def test_some_points_out_of_view_are_a_warning():
    points, cameras = scene()
    points[:40] += [0, 3, 0]
    (finding,) = out_of_view("target_point", points, {"primary": cameras})
    assert finding.severity == "warning"
    assert "33 % of 60" in finding.evidence
    points[:12] -= [0, 3, 0]
    assert out_of_view("target_point", points, {"primary": cameras}) == []


class Columns:
    """A source of numbers in memory, one episode."""

    def __init__(self, per="step", **columns):
        self.columns = columns
        self.fields = tuple(
            Field(key, "numbers", "float64", values.shape[1:], per)
            for key, values in columns.items()
        )

    def trajectory(self, episode, keys):
        return {key: self.columns[key] for key in keys}

    def value(self, key, episode, step):
        return self.columns[key][step]


def looked(values, *, posed=True, field="target_point", per="step", drop=0):
    steps = np.arange(drop, 6)
    pose = np.tile(pose_of(1), (6, 1, 1))
    card = Card.model_validate(
        {
            "name": "mine",
            "version": "1",
            "cameras": {"primary": "rgb"},
            "intrinsics": {
                "primary": {"fx": 70, "fy": 60, "cx": 30, "cy": 21, "width": 64, "height": 40}
            },
            "extrinsics": {"primary": "pose"} if posed else {},
            field: "p",
            "action": {"translation": ["action[0:3]"], "gripper": ["action[-1:]"]},
        }
    )
    source = Columns(per, p=np.asarray(values, float))
    source.columns["pose"] = pose
    standard = Standardised(np.zeros((len(steps), 4), np.float32), None, None, {}, steps)
    (column,) = look_at_points(source, card, [standard], [0], {"primary": SIZE})
    return column


GOOD = np.array([0.5, 0, 0.05]) + np.linspace(0, 0.05, 6)[:, None]


def test_a_column_of_points_is_counted():
    values = GOOD.copy()
    values[[0, 4]] = np.nan
    column = looked(values)
    assert (column.steps, column.known, column.findings) == (6, 4, ())
    assert column.low == tuple(values[1])
    assert column.high == tuple(values[5])
    assert column.seen == {"primary": 1.0}
    assert looked(values, drop=1).steps == 5
    assert looked(GOOD[0], per="episode").known == 6


@pytest.mark.parametrize(
    ("change", "options", "rule", "words"),
    [
        (lambda v: v[:, :2], {}, "point of another width", "2 numbers per step"),
        (lambda v: v * np.where(np.arange(6) == 2, np.inf, 1)[:, None] + 0.0, {},
         "point not finite", "1 of 6 steps"),
        (lambda v: v + np.where([[0, 0, 1]] * 6, np.nan, 0), {}, "point not finite", "6 of 6"),
        (lambda v: v * np.nan, {}, "no point", "no step has one"),
        (lambda v: v, {"posed": False}, "point without a camera's pose", "(primary)"),
        (lambda v: v * 1000, {}, "point out of view", "millimetres"),
    ],
)  # fmt: skip
def test_smells_of_a_column(change, options, rule, words):
    with np.errstate(invalid="ignore"):
        column = looked(change(GOOD), **options)
    found = {finding.rule: finding for finding in column.findings}
    assert rule in found
    assert words in found[rule].evidence
    assert found[rule].cure
    assert found[rule].where == "target_point: p"


def test_a_task_without_reference_does_not_smell():
    assert looked(GOOD * np.nan, field="reference_point").findings == ()


def test_inspection_lists_points_and_takes_nan_for_none(pointed):
    seen = inspect_dataset(pointed)
    told = seen.to_dict()["points"]
    assert told["target_point"]["steps"] == 12
    assert told["target_point"]["known"] == 9
    assert told["target_point"]["seen"] == {"primary": 1.0}
    assert told["reference_point"]["known"] == 0 + 1 + 2
    wrong = {f.where for f in seen.findings if f.rule == "not finite"}
    assert wrong == {"broken", "observation.never"}
    assert not [f for f in seen.findings if f.rule.startswith("point")]


def test_the_page_draws_a_ring_where_the_point_is(pointed, tmp_path):
    from spatialvla_ft.viz.inspection import RADIUS, RINGS, ringed_rows

    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["data", "inspect", str(pointed), "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "9 of 12 (75 %)" in " ".join(done.stdout.split())
    html = page.read_text()
    assert "Ring: target_point orange, reference_point blue." in html
    assert "Places of what the instruction names" in html
    seen = inspect_dataset(pointed)
    grey = np.full((*points_checks.SIZE, 3), 128, np.uint8)
    ((_, ((step, drawn),)),) = ringed_rows(seen.source, seen.card, "primary", [(0, [(2, grey)])])
    assert step == 2
    columns, _ = points_checks.episode(0)
    x, y, z = columns["target_point"][2] - columns["observation.extrinsics_front"][2, :3, 3]
    scale = drawn.shape[1] / points_checks.SIZE[1]
    centre = np.array([20 * x / z + 10, 22 * y / z + 6]) * scale
    ring = np.argwhere((drawn == RINGS["target_point"]).all(axis=2))[:, ::-1] + 0.5
    assert len(ring) > 20
    np.testing.assert_allclose(ring.mean(axis=0), centre, atol=1.5)
    assert abs(np.linalg.norm(ring - centre, axis=1) - RADIUS).max() < 4


def test_drafts_take_points_by_name(pointed, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(pointed, bare)
    (bare / "card.yaml").unlink()
    seen = inspect_dataset(bare)
    assert seen.card.points == {
        "target_point": "target_point",
        "reference_point": "observation.reference_point",
    }
    text = seen.draft.to_yaml()
    assert "    target_point: target_point\n" in text
    assert "CHECK that it is x, y, z in metres in the robot's base frame" in text
    json.dumps(seen.to_dict())


def test_drafts_leave_other_columns_alone():
    source = Bare()
    numbers = {"target_point": 2, "a.target_point_2": 3, "b.reference_point.x": 3, "target": 3}
    source.fields = tuple(
        Field(key, "numbers", "float32", (width,), "step") for key, width in numbers.items()
    )
    assert draft_card(source, {}).to_card().points == {}
    more = ("observation.target_point", "observation.more.target_point")
    source.fields = tuple(Field(key, "numbers", "float32", (3,), "step") for key in more)
    assert draft_card(source, {}).to_card().points == {"target_point": "observation.target_point"}
