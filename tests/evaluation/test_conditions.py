"""An evaluation takes the conditions of the policy's training data, and says so."""

from __future__ import annotations

import json

import pytest

from spatialvla_ft.data.cards.fields import Recorded
from spatialvla_ft.evaluation.conditions import conditions_of, recorded_of_checkpoint

NEW = range(1_000_000, 1_000_010)
OPEN = dict.fromkeys(("robot", "tasks", "image_size", "camera_mode", "distractors"))


def recorded(**changes):
    fields = {
        "robot": "robot_b",
        "tasks": ["pick"],
        "camera_mode": "fixed",
        "cameras": ["front"],
        "image_size": 48,
        "distractors": [0, 2],
        "action_noise": 0.3,
        "seeds": [5, 24],
    }
    return Recorded.model_validate(fields | changes)


def test_everything_is_as_in_training_unless_it_is_given():
    found = conditions_of(OPEN, {"mine": recorded()}, NEW)
    assert (found.robot, found.tasks) == ("robot_b", ("pick",))
    assert (found.image_size, found.camera_mode, found.distractors) == (48, "fixed", (0, 2))
    assert found.dataset == "mine"
    (line,) = found.lines
    assert line == (
        "as mine was recorded: robot robot_b; task pick; image-size 48; camera-mode fixed; "
        "distractors 0,2"
    )
    assert found.warnings == []

    given = {**OPEN, "camera_mode": "random", "distractors": (0, 2)}
    found = conditions_of(given, {"mine": recorded()}, NEW)
    assert (found.camera_mode, found.distractors, found.image_size) == ("random", (0, 2), 48)
    assert "distractors" not in found.lines[0]
    (warning,) = found.warnings
    assert warning.startswith("--camera-mode is random, but mine was recorded with fixed")


def test_where_nothing_is_known_the_defaults_stand_and_are_said():
    found = conditions_of({**OPEN, "robot": "robot_a"}, {}, NEW)
    assert (found.robot, found.tasks, found.dataset) == ("robot_a", ("touch",), None)
    assert (found.image_size, found.camera_mode, found.distractors) == (64, "random", (0,))
    assert "nothing says how" in found.lines[0]
    with pytest.raises(ValueError, match="give the robot: --robot"):
        conditions_of(OPEN, {}, NEW)


def test_one_of_several_datasets_counts():
    both = {"a": recorded(robot="robot_a"), "b": recorded(camera_mode="random")}
    assert conditions_of({**OPEN, "robot": "robot_a"}, both, NEW).camera_mode == "fixed"
    assert conditions_of({**OPEN, "robot": "robot_b"}, both, NEW).camera_mode == "random"
    with pytest.raises(ValueError, match="a, b were recorded under different conditions"):
        conditions_of(OPEN, both, NEW)
    same = {"a": recorded(), "b": recorded(seeds=[90, 99])}
    assert conditions_of(OPEN, same, NEW).camera_mode == "fixed"
    other = conditions_of({**OPEN, "robot": "robot_c"}, {"a": recorded()}, NEW)
    assert other.camera_mode == "fixed"
    assert "--robot is robot_c, but a was recorded with robot_b" in other.warnings[0]


@pytest.mark.parametrize(
    ("seeds", "count"), [(range(0, 6), 1), (range(20, 40), 5), (range(25, 30), 0)]
)
def test_scenes_of_the_training_data_are_said(seeds, count):
    found = conditions_of(OPEN, {"mine": recorded()}, seeds)
    said = [text for text in found.warnings if "may know these" in text]
    assert len(said) == (count > 0)
    assert not said or f"these {count} scenes" in said[0]
    elsewhere = conditions_of({**OPEN, "robot": "robot_a"}, {"mine": recorded()}, seeds)
    assert not [text for text in elsewhere.warnings if "may know these" in text]


def test_a_checkpoint_says_it_in_its_processor(tmp_path):
    assert recorded_of_checkpoint(tmp_path) == {}
    content = {"statistics": {}, "recorded": {"mine": recorded().model_dump(mode="json")}}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    assert recorded_of_checkpoint(tmp_path) == {"mine": recorded()}
