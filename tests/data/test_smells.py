"""Every smell: found where it was planted, not found in healthy data."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spatialvla_ft.data.cards.terms import parse_term
from spatialvla_ft.inspection import cameras, episodes, gripper, motion
from spatialvla_ft.inspection import motion as rotations
from spatialvla_ft.inspection.series import Series, correlation, longest_run

NAMES = ("x", "y", "z")
DELTAS = np.ones(3, bool)


def smooth_walk(seed, lengths=(60, 45, 70), width=3, start=0.4, speed=0.01):
    """Positions of episodes that start away from 0 and move smoothly; (positions, deltas)."""
    rng = np.random.default_rng(seed)
    positions, deltas = [], []
    for length in lengths:
        t = np.arange(length)[:, None] / length
        push = rng.normal(size=(3, width))
        step = speed * sum(
            push[k] * np.sin(2 * np.pi * (k + 1) * t + rng.uniform(0, 6, width)) for k in range(3)
        )
        where = start + rng.uniform(-0.05, 0.05, width) + np.cumsum(step, axis=0) - step
        positions.append(where)
        deltas.append(step)
    return Series.join(positions), Series.join(deltas)


def only(found):
    (finding,) = found
    assert finding.evidence
    assert finding.cure
    return finding


def test_series_never_crosses_an_episode():
    parts = [np.array([[1.0], [2.0], [4.0]]), np.zeros((0, 1)), np.array([[100.0]]), [[7.0], [5.0]]]
    series = Series.join(parts)
    assert series.now[:, 0].tolist() == [1, 2, 7]
    assert series.changes[:, 0].tolist() == [1, 2, -2]
    assert [len(part) for part in series.episodes()] == [3, 0, 1, 2]
    assert series.place(2) == (0, 2)
    assert series.place(3) == (2, 0)
    assert series.place(5) == (3, 1)


def test_helpers_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert correlation(a, np.ones(50)) == 0
    flags = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
    assert longest_run(flags) == max(map(len, "".join(map(str, flags * 1)).split("0"))) == 3
    assert longest_run(np.zeros(4, bool)) == 0


def test_not_finite():
    _, deltas = smooth_walk(0)
    assert motion.not_finite({"action": deltas}, [3, 5, 9]) == []
    values = deltas.values.copy()
    values[[61, 62], [0, 1]] = np.nan, np.inf
    finding = only(motion.not_finite({"action": Series(values, deltas.lengths)}, [3, 5, 9]))
    assert finding.severity == "error"
    assert "2 of 175 steps" in finding.evidence
    assert "step 1 of episode 5" in finding.evidence


def test_constant_dimension():
    _, deltas = smooth_walk(1)
    assert motion.constant_dimensions(deltas, NAMES, [False] * 3) == []
    values = deltas.values.copy()
    values[:, 1] = 0.25
    same = Series(values, deltas.lengths)
    finding = only(motion.constant_dimensions(same, NAMES, [False] * 3))
    assert finding.where == "action y"
    assert finding.severity == "warning"
    assert "0.25 in all 175 steps" in finding.evidence
    assert motion.constant_dimensions(same, NAMES, [False, True, False]) == []
    values[:, 1] = 0
    assert only(motion.constant_dimensions(same, NAMES, [False] * 3)).severity == "note"


def test_hardly_moves():
    _, deltas = smooth_walk(2)
    assert motion.hardly_moves(deltas, NAMES, ["m"] * 3) == []
    values = deltas.values * [1, 1e-3, 1]
    finding = only(motion.hardly_moves(Series(values, deltas.lengths), NAMES, ["m"] * 3))
    assert finding.where == "action y"
    assert motion.hardly_moves(Series(values, deltas.lengths), NAMES, ["ticks"] * 3) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("with_state", [True, False])
def test_absolute_where_delta_is_expected(seed, with_state):
    positions, deltas = smooth_walk(seed)
    state = positions if with_state else None
    target = Series(positions.values + deltas.values, positions.lengths)
    finding = only(motion.absolute_or_delta(target, state, NAMES, expect_delta=True))
    assert finding.severity == "error"
    assert "looks absolute, delta is expected" in finding.evidence
    assert ("correlation with the next state" in finding.evidence) == with_state
    assert motion.absolute_or_delta(deltas, state, NAMES, expect_delta=True) == []
    assert motion.absolute_or_delta(target, state, NAMES, expect_delta=False) == []


def test_delta_where_absolute_is_expected():
    positions, deltas = smooth_walk(7)
    finding = only(motion.absolute_or_delta(deltas, positions, NAMES, expect_delta=False))
    assert "looks delta, absolute is expected" in finding.evidence


def test_outliers():
    _, deltas = smooth_walk(3)
    assert motion.outliers(deltas, NAMES, [0, 1, 2]) == []
    values = deltas.values.copy()
    values[70, 2] = 50 * np.abs(values[:, 2]).max()
    finding = only(motion.outliers(Series(values, deltas.lengths), NAMES, [0, 4, 8]))
    assert finding.where == "action z"
    assert "step 10 of episode 4" in finding.evidence


def test_no_ops_of_deltas_and_of_positions():
    positions, deltas = smooth_walk(4)
    hand = Series(np.ones((175, 1)), deltas.lengths)
    assert motion.no_ops(deltas, hand, NAMES, DELTAS) == []
    assert motion.no_ops(positions, hand, NAMES, ~DELTAS) == []
    values = deltas.values.copy()
    values[60:95] = 0
    values[5:10] = 0
    finding = only(motion.no_ops(Series(values, deltas.lengths), hand, NAMES, DELTAS))
    assert "23 % of the steps move nothing, at most 35 in a row" in finding.evidence
    held = positions.values.copy()
    held[100:170] = held[100]
    found = motion.no_ops(Series(held, positions.lengths), hand, NAMES, ~DELTAS)
    # Where an episode's first step came from is unknown: 65 rows are held, 64 steps stand still.
    assert "at most 64 in a row" in only(found).evidence


def test_a_moving_gripper_is_no_no_op():
    still = Series(np.tile([[0.0, 0.0, 0.0]], (40, 1)), np.array([40]))
    still.values[:4] = [[1, 2, 3], [3, 1, 2], [-1, -2, -3], [-3, -2, -1]]
    toggling = Series((np.arange(40) % 2)[:, None].astype(float), np.array([40]))
    assert motion.no_ops(still, toggling, NAMES, DELTAS) == []
    assert motion.no_ops(still, None, NAMES, DELTAS)


def turning(seed, steps=80):
    """(T, 4) quaternions, xyzw, of a hand that turns smoothly."""
    rng = np.random.default_rng(seed)
    start = Rotation.random(random_state=seed)
    speeds = rng.normal(size=3) * np.linspace(0, 1, steps)[:, None]
    return (Rotation.from_rotvec(speeds) * start).as_quat()


def test_quaternion_read_as_euler():
    rng = np.random.default_rng(5)
    quat = turning(5)
    quat[40:] *= -1
    raw = Series.join([np.concatenate([rng.normal(size=(80, 3)), quat, np.ones((80, 1))], axis=1)])
    assert rotations.quaternion_starts(raw) == [3]
    columns = {"action": raw}
    terms = {"action.rotation": [parse_term("action[3:6]")]}
    finding = only(rotations.quaternion_as_euler(columns, terms))
    assert finding.severity == "error"
    assert "columns 3 to 6" in finding.evidence
    assert "1.3 % of the steps" in finding.evidence
    turned = parse_term({"src": "action[3:7]", "ops": [{"quat_to_euler": "xyzw"}]})
    assert rotations.quaternion_as_euler(columns, {"action.rotation": [turned]}) == []
    elsewhere = {"action.rotation": [parse_term("action[0:3]")]}
    assert rotations.quaternion_as_euler(columns, elsewhere) == []


def test_what_is_no_quaternion():
    rng = np.random.default_rng(6)
    constant = np.tile([0.0, 0.0, 0.0, 1.0], (50, 1))
    assert rotations.quaternion_starts(Series.join([constant])) == []
    assert rotations.quaternion_starts(Series.join([rng.normal(size=(50, 7))])) == []
    assert rotations.quaternion_starts(Series.join([rng.normal(size=(50, 2))])) == []


def test_degrees():
    angles, turns = smooth_walk(8, start=0.0, speed=0.02)
    assert rotations.degrees(turns, angles, NAMES, delta=True) == []
    assert rotations.degrees(angles, None, NAMES, delta=False) == []
    in_degrees = Series(np.degrees(turns.values), turns.lengths)
    finding = only(rotations.degrees(in_degrees, angles, NAMES, delta=True))
    assert "times the change of the state" in finding.evidence
    large = Series(np.degrees(turns.values) * 5, turns.lengths)
    assert (
        "half a turn per step" in only(rotations.degrees(large, None, NAMES, delta=True)).evidence
    )
    posed = Series(np.degrees(angles.values), angles.lengths)
    assert only(rotations.degrees(posed, None, NAMES, delta=False)).severity == "error"


def wrapping_turns(share):
    """Differences of an angle that keeps crossing pi: small, with `share` of whole turns."""
    rng = np.random.default_rng(0)
    turns = rng.normal(0, 0.02, (1000, 3))
    turns[:, 2] += 2 * np.pi * rng.choice([0, 1, -1], 1000, p=[1 - share, share / 2, share / 2])
    return Series.join([turns])


@pytest.mark.parametrize("share", [0.015, 0.05, 0.3])
def test_whole_turns_are_no_degrees(share):
    """99 % of the turns are below half a turn only where the jumps are left out."""
    turns = wrapping_turns(share)
    assert np.quantile(np.abs(turns.values[:, 2]), 0.99) > np.pi
    assert rotations.degrees(turns, None, NAMES, delta=True) == []
    assert "jumps of 2 pi" in only(rotations.wrapped_angles(turns, NAMES, delta=True)).evidence
    state = Series.join([np.cumsum(turns.values, axis=0)])
    assert rotations.degrees(turns, state, NAMES, delta=True) == []
    in_degrees = Series(np.degrees(turns.values) * 3, turns.lengths)
    assert only(rotations.degrees(in_degrees, None, NAMES, delta=True)).severity == "error"


def test_the_cure_of_whole_turns():
    """A free angle's differences, whatever the recorded one does at +-pi."""
    free = np.cumsum(np.random.default_rng(2).normal(0, 0.3, (200, 3)), axis=0)
    recorded = (free + np.pi) % (2 * np.pi) - np.pi
    term = parse_term({"src": "turn", "ops": ["wrap"]})
    for dtype, exact in ((np.float32, 1e-5), (np.float64, 1e-12)):
        found = term.evaluate({"turn": np.diff(recorded, axis=0).astype(dtype)}, 199)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, np.diff(free, axis=0), atol=exact)


def test_a_few_fast_turns_are_no_degrees():
    rng = np.random.default_rng(1)
    turns = rng.normal(0, 0.02, (1000, 3))
    turns[:30, 1] = 3.5  # a flip where roll and yaw change places
    assert rotations.degrees(Series.join([turns]), None, NAMES, delta=True) == []
    posed = rng.uniform(-3, 3, (1000, 3))
    posed[:20, 0] += 4 * np.pi  # counted on, now and then
    assert rotations.degrees(Series.join([posed]), None, NAMES, delta=False) == []


def test_wrapped_angles():
    yaw = np.linspace(2.5, 4.0, 50)
    free = np.stack([0.1 * np.sin(yaw), 0.2 * np.cos(yaw), yaw], axis=1)
    wrapped = (free + np.pi) % (2 * np.pi) - np.pi
    assert rotations.wrapped_angles(Series.join([free]), NAMES, delta=False) == []
    finding = only(rotations.wrapped_angles(Series.join([wrapped]), NAMES, delta=False))
    assert "z 1, of 49" in finding.evidence
    differences = Series.join([np.diff(wrapped, axis=0)])
    assert only(rotations.wrapped_angles(differences, NAMES, delta=True)).severity == "warning"
    healthy = Series.join([np.diff(free, axis=0)])
    assert rotations.wrapped_angles(healthy, NAMES, delta=True) == []


def hands(*episodes_):
    return Series.join([np.array(e, float) for e in episodes_])


PICK = [1] * 8 + [0] * 10 + [1] * 4


def test_a_gripper_that_stays_says_which_constant_it_is():
    closed = only(gripper.gripper_moves(hands([0] * 9), declared=False))
    assert "always closed" in closed.evidence
    assert "says zeros(1)" in closed.cure
    is_open = only(gripper.gripper_moves(hands([1] * 9), declared=False))
    assert "says ones(1)" in is_open.cure
    assert gripper.gripper_moves(hands([0] * 9), declared=True) == []


@pytest.mark.parametrize(
    ("op", "raw", "evidence", "cure"),
    [
        (
            {"binarize_backward": {"open_above": 0.95, "closed_below": 0.05}},
            [0.0, 0.01, 0.04, 0.02],
            "open_above is 0.95",
            "{open_above: 0.03, closed_below: 0.01}",
        ),
        ({"rel_to_abs": {"eps": 0.5, "positive_is": "close"}}, [0, 0.2, 0, -0.2], "eps is 0.5",
         "an eps below 0.2"),
        (None, [0.0, 0.01, 0.04, 0.02], "0.05 apart", "{scale: 25}"),
    ],
)  # fmt: skip
def test_a_gripper_that_moves_without_crossing_its_threshold(op, raw, evidence, cure):
    term = parse_term({"src": "action[6:7]", "ops": [op] if op else []})
    column = np.array(raw)[:, None]
    standard = Series.join([term.evaluate({"action": np.repeat(column, 7, axis=1)}, 4)])
    finding = only(gripper.gripper_moves(
        standard, declared=False, term=term, raw=Series.join([column]), name="left_gripper"
    ))  # fmt: skip
    assert finding.rule == "gripper never crosses its threshold"
    assert finding.where == "action left_gripper"
    assert evidence in finding.evidence
    assert cure in finding.cure
    still = Series.join([np.full((4, 1), 0.3)])
    assert only(gripper.gripper_moves(standard, declared=False, term=term, raw=still)).rule == (
        "gripper never moves"
    )


def test_gripper_range():
    assert gripper.gripper_range(hands(PICK)) == []
    minus = only(gripper.gripper_range(hands([-1] * 9 + [1] * 9)))
    assert "clip" in minus.cure
    assert "values from -1 to 1" in minus.evidence
    events = only(gripper.gripper_range(hands([0] * 8 + [-1] + [0] * 8 + [1] + [0] * 3)))
    assert "rel_to_abs" in events.cure
    assert "scale: 0.01" in only(gripper.gripper_range(hands([0, 20, 100, 100, 0]))).cure


def test_gripper_never_moves():
    assert gripper.gripper_moves(hands(PICK), declared=False) == []
    finding = only(gripper.gripper_moves(hands([1] * 20), declared=False))
    assert finding.rule == "gripper never moves"
    assert gripper.gripper_moves(hands([1] * 20), declared=True) == []


def test_gripper_in_metres():
    metres = Series(hands(PICK).values * 0.08, np.array([len(PICK)]))
    finding = only(gripper.gripper_moves(metres, declared=False))
    assert finding.rule == "gripper never crosses 0.5"
    assert "scale: 12.5" in finding.cure


def test_gripper_continuous():
    slow = np.concatenate([np.ones(5), np.linspace(1, 0, 12), np.zeros(5)])
    finding = only(gripper.gripper_moves(hands(slow), declared=False))
    assert finding.rule == "gripper continuous"
    assert finding.severity == "note"


def opening(command, lag=2):
    """Fingers that follow `lag` steps later, metres."""
    delayed = [command[0]] * lag + list(command[: len(command) - lag])
    return 0.08 * np.array(delayed, float)


def test_gripper_inverted():
    healthy = hands(PICK, PICK, PICK)
    width = hands(*[opening(PICK)] * 3)
    assert gripper.gripper_inverted(healthy, width) == []
    flipped = Series(1 - healthy.values, healthy.lengths)
    by_state = only(gripper.gripper_inverted(flipped, width))
    assert "correlation -1.00 with the measured gripper 2 steps later" in by_state.evidence
    assert "3 of the 3 episodes" in by_state.evidence
    assert only(gripper.gripper_inverted(flipped, None)).severity == "warning"
    named = only(gripper.gripper_inverted(healthy, None, source="action.gripper_closedness"))
    assert "'gripper_closedness' and is not inverted" in named.evidence
    source = "action.gripper_closedness"
    assert gripper.gripper_inverted(healthy, width, source=source, turned=True) == []
    assert gripper.gripper_inverted(hands([0] * 30), None, source=source) == []


def test_episode_lengths():
    assert episodes.short_episodes(np.array([40, 50, 30]), [0, 1, 2]) == []
    found = episodes.short_episodes(np.array([40, 1, 50, 6, 44, 48]), [0, 2, 4, 6, 8, 9])
    assert [f.rule for f in found] == ["episode of one step", "short episode"]
    assert found[0].where == "episode 2"
    assert "1 of 6" in found[0].evidence
    assert found[1].where == "episode 6"
    assert "the shortest has 6" in found[1].evidence


def test_instructions():
    assert episodes.instructions([["push it"] * 3, ["lift it"] * 3]) == []
    assert only(episodes.instructions([["push"], ["push"]])).rule == "one instruction"
    finding = only(episodes.instructions([["push"], [" ", ""], ["lift"], ["", ""]]))
    assert "2 of 4 episodes (50 %)" in finding.evidence
    assert only(episodes.instructions([["a", "b"], ["c", "c"]])).rule == "changing instruction"
    assert only(episodes.instructions([None, None])).rule == "no instructions"


def test_control_rate():
    assert episodes.control_rate(10, None) == []
    assert episodes.control_rate(10, 10.3) == []
    assert "20" in only(episodes.control_rate(None, 20.0)).cure
    assert only(episodes.control_rate(10, 30.0)).rule == "control rate contradicted"


def test_frozen_camera():
    rng = np.random.default_rng(9)
    change = rng.uniform(0.5, 2, (60, 1))
    moving = np.ones(60, bool)
    lengths = np.array([30, 30])
    assert cameras.frozen(Series(change, lengths), moving, "wrist", [3, 7]) == []
    stuck = change.copy()
    stuck[40:50] = 0
    finding = only(cameras.frozen(Series(stuck, lengths), moving, "wrist", [3, 7]))
    assert "11 equal frames in a row in episode 7" in finding.evidence
    resting = moving.copy()
    resting[40:50] = False
    assert cameras.frozen(Series(stuck, lengths), resting, "wrist", [3, 7]) == []
    # Four at the end of an episode and four at the start of the next are no run of eight.
    split = change.copy()
    split[26:34] = 0
    assert cameras.frozen(Series(split, lengths), moving, "wrist", [3, 7]) == []


@pytest.mark.parametrize("shift", [-3, 2, 4])
def test_pictures_out_of_step(shift):
    rng = np.random.default_rng(10)
    speed = rng.uniform(0, 1, (60, 1))
    noise = rng.uniform(0, 0.1, (60, 1))
    lengths = np.array([60])
    together = Series(3 * speed + noise, lengths)
    assert cameras.out_of_step(together, Series(speed, lengths), "primary") == []
    late = Series(np.roll(3 * speed, shift, axis=0) + noise, lengths)
    finding = only(cameras.out_of_step(late, Series(speed, lengths), "primary"))
    side = "after" if shift > 0 else "before"
    assert f"{abs(shift)} steps {side} the action" in finding.evidence


def test_depth_units():
    rng = np.random.default_rng(11)
    stored = rng.integers(400, 1500, (3, 24, 32)).astype(np.float32)
    assert cameras.depth_smells(list(stored * 0.001), 0.001, "primary") == []
    finding = only(cameras.depth_smells(list(stored), 1.0, "primary"))
    assert finding.severity == "error"
    assert "depth_scale: 0.001" in finding.cure
    small = only(cameras.depth_smells(list(stored * 1e-6), 1e-6, "primary"))
    assert "depth_scale: 0.001" in small.cure
    assert cameras.guess_depth_scale(stored) == 0.001
    assert cameras.guess_depth_scale(stored * 0.001) == 1.0
    assert cameras.guess_depth_scale(stored * 10) == 1e-4


def test_depth_holes_and_constant_depth():
    rng = np.random.default_rng(12)
    depth = rng.uniform(0.4, 1.5, (24, 32)).astype(np.float32)
    holes = depth.copy()
    holes[:, :20] = 0
    finding = only(cameras.depth_smells([holes], 0.001, "wrist"))
    assert finding.rule == "depth holes"
    assert "62 %" in finding.evidence
    flat = np.full((24, 32), 0.7, np.float32)
    assert only(cameras.depth_smells([flat], 0.001, "wrist")).rule == "depth constant"
    assert only(cameras.depth_smells([flat * 0], 0.001, "wrist")).rule == "depth holes"


def camera(fx=300.0, fy=300.0, cx=160.0, cy=120.0):
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def test_intrinsics():
    size = (320, 240)
    assert cameras.intrinsics_smells(camera(), size, "primary") == []
    assert cameras.intrinsics_smells(camera(cx=150, cy=131, fy=280), size, "primary") == []
    other = only(cameras.intrinsics_smells(camera(600, 600, 322, 239), size, "primary"))
    assert other.rule == "K of another picture size"
    assert "644 x 478" in other.evidence
    assert only(cameras.intrinsics_smells(camera(cx=80), size, "p")).rule == "K off centre"
    odd = only(cameras.intrinsics_smells(camera(3000, 3000), size, "p"))
    assert odd.rule == "K with an odd field of view"
    assert "6 degrees" in odd.evidence
    assert only(cameras.intrinsics_smells(camera(fx=-3), size, "p")).rule.startswith("K is no")
    assert only(cameras.intrinsics_smells(camera().T, size, "p")).rule.startswith("K is no")


def test_field_of_view_by_a_point_at_the_edge():
    angle = np.radians(cameras.field_of_view(camera(), 320))
    edge = camera() @ [np.tan(angle / 2), 0, 1]
    assert edge[0] / edge[2] == pytest.approx(320)


def test_missing_intrinsics():
    assert cameras.missing_intrinsics(["primary"], ["primary"]) == []
    finding = only(cameras.missing_intrinsics(["primary", "wrist"], ["primary"]))
    assert finding.where == "camera wrist"
    assert "1 of 2 cameras" in finding.evidence
