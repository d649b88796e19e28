"""Points in hindsight of trajectories whose answer is known, and the simulation's own."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spatialvla_ft.converters import hindsight
from spatialvla_ft.converters.hindsight import (
    Event,
    Gripping,
    closed_steps,
    following,
    gripper_events,
    in_hindsight,
    with_offset,
)


def walk(count, seed=0):
    """(T, 3) places, all different."""
    return np.cumsum(np.random.default_rng(seed).normal(size=(count, 3)), axis=0)


def openings(text):
    """Commands of digits: 0 closed, 9 open."""
    return np.array([int(digit) / 9 for digit in text])


@pytest.mark.parametrize(
    ("commands", "closed"),
    [
        ("9999000000", "0000111111"),
        ("9999000999", "0000111000"),
        ("9995555000", "0000000111"),  # between the thresholds: as before
        ("0005559999", "1111110000"),
        ("5559990000", "0000001111"),  # undecided at first: as the first that is decided
        ("9990099900", "0000000011"),  # two steps are noise, but not at the end
        ("0999990000", "1000001111"),  # nor at the start
        ("9990900000", "0000011111"),
        ("5555555555", "0000000000"),
        ("0000000000", "1111111111"),
        ("9", "0"),
        ("90", "01"),
        ("", ""),
    ],
)
def test_closed_steps(commands, closed):
    found = closed_steps(openings(commands), Gripping())
    assert "".join(str(int(step)) for step in found) == closed


def test_thresholds_and_steadiness():
    commands = np.array([0.9, 0.9, 0.6, 0.6, 0.9, 0.9, 0.6, 0.6, 0.6])
    assert not closed_steps(commands, Gripping()).any()
    how = Gripping(closed_below=0.65, open_above=0.8, steady=2)
    assert (
        closed_steps(commands, how).tolist() == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 3
    )
    how = Gripping(closed_below=0.65, open_above=0.8, steady=3)
    assert np.flatnonzero(closed_steps(commands, how)).tolist() == [6, 7, 8]
    with pytest.raises(ValueError, match=r"closed_below 0\.7 and open_above 0\.7"):
        Gripping(0.7, 0.7)
    with pytest.raises(ValueError, match="steady: got 0"):
        Gripping(steady=0)


def test_unknown_openings_change_nothing():
    commands = openings("999000000")
    commands[4] = np.nan
    assert np.flatnonzero(closed_steps(commands, Gripping())).tolist() == [3, 4, 5, 6, 7, 8]


def test_events_start_with_a_closing():
    closed = np.array([1, 1, 0, 0, 1, 1, 0], bool)
    assert gripper_events(closed) == [Event(4, "close"), Event(6, "open")]
    assert gripper_events(np.ones(5, bool)) == []
    assert gripper_events(np.zeros(0, bool)) == []


def test_pick_then_place():
    tool = walk(12)
    found = in_hindsight(tool, openings("999900000999"), None)
    assert found.events == (Event(4, "close"), Event(9, "open"))
    np.testing.assert_array_equal(found.points[:5], np.tile(tool[4].astype(np.float32), (5, 1)))
    np.testing.assert_array_equal(found.points[5:10], np.tile(tool[9].astype(np.float32), (5, 1)))
    assert np.isnan(found.points[10:]).all()
    assert found.points.dtype == np.float32
    assert found.why == ""


def test_a_second_grasp_is_a_target_of_its_own():
    tool = walk(13)
    found = in_hindsight(tool, openings("9900099990000"), None)
    assert [(e.step, e.kind) for e in found.events] == [(2, "close"), (5, "open"), (9, "close")]
    for steps, at in ((range(3), 2), (range(3, 6), 5), (range(6, 10), 9)):
        for step in steps:
            np.testing.assert_array_equal(found.points[step], tool[at].astype(np.float32))
    assert np.isnan(found.points[10:]).all()


@pytest.mark.parametrize("commands", [None, "000000", "999999", "555555"])
def test_contact_where_the_gripper_never_changes(commands):
    tool, end = walk(6), np.array([7.0, 8.0, 9.0])
    opening = None if commands is None else openings(commands)
    for place in (None, end):
        found = in_hindsight(tool, opening, place)
        want = tool[-1] if place is None else place
        np.testing.assert_array_equal(found.points, np.tile(want.astype(np.float32), (6, 1)))
        assert found.events == (Event(5, "end"),)


@pytest.mark.parametrize(
    ("commands", "by", "why"),
    [
        ("000999", "auto", hindsight.ONLY_OPENS),
        ("000999", "gripper", hindsight.ONLY_OPENS),
        ("000000", "gripper", hindsight.NEVER_CLOSES),
        ("999999", "gripper", hindsight.NEVER_CLOSES),
        ("", "auto", hindsight.NO_STEPS),
    ],
)
def test_nothing_is_found_and_why(commands, by, why):
    count = len(commands)
    found = in_hindsight(walk(count).reshape(count, 3), openings(commands), None, by)
    assert found.why == why
    assert found.events == ()
    assert found.points.shape == (count, 3)
    assert np.isnan(found.points).all()


def test_by_contact_looks_at_no_gripper():
    tool = walk(8)
    found = in_hindsight(tool, openings("99000999"), None, "contact")
    np.testing.assert_array_equal(found.points, np.tile(tool[-1].astype(np.float32), (8, 1)))


def test_an_unknown_place_at_an_event_is_told():
    tool = walk(8)
    tool[3, 1] = np.nan
    assert in_hindsight(tool, openings("99900000"), None).why == hindsight.NO_POSITION
    assert in_hindsight(tool, openings("99990000"), None).why == ""


def test_offset_turns_with_the_tool():
    rng = np.random.default_rng(2)
    rpy, place = rng.uniform(-1, 1, (5, 3)), walk(5)
    offset = np.array([0.02, -0.01, 0.15])
    moved = with_offset(place, Rotation.from_euler("xyz", rpy), offset)
    for i, (roll, pitch, yaw) in enumerate(rpy):
        cx, sx, cy, sy, cz, sz = (f(a) for a in (roll, pitch, yaw) for f in (np.cos, np.sin))
        about = {
            "x": np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]]),
            "y": np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]),
            "z": np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]),
        }
        want = place[i] + about["z"] @ about["y"] @ about["x"] @ offset
        np.testing.assert_allclose(moved[i], want, atol=1e-12)


def test_following_finds_the_gain_and_the_frame():
    rng = np.random.default_rng(3)
    commanded = rng.normal(size=(400, 3))
    moved = 0.02 * commanded + 0.002 * rng.normal(size=(400, 3))
    found = following(moved, commanded)
    slope = np.linalg.lstsq(commanded.reshape(-1, 1), moved.ravel(), rcond=None)[0][0]
    assert found.gain == pytest.approx(slope)
    assert found.correlation > 0.99
    other = following(moved[:, [1, 2, 0]], commanded)
    assert abs(other.correlation) < 0.2
    moved[3] = np.nan
    assert following(moved, commanded).gain == pytest.approx(0.02, rel=0.02)
    assert following(np.zeros((3, 3)), np.ones((3, 3))).gain == 0
    assert following(np.empty((0, 3)), np.empty((0, 3))).correlation == 0
