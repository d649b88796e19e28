import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation

from spatialvla_ft.inspection.tcp_kind import tcp_kind

DOWN = Rotation.from_euler("x", 180, degrees=True)


def path(seed, *, speed=0.15, hz=5.0, seconds=12.0, noise=0.0, origin=(0.45, -0.1, 0.3)):
    """Poses (T, 7), w first, of a spline through random points in front of a robot; and times."""
    rng = np.random.default_rng(seed)
    knots = np.arange(0, seconds + 3, 1.5)
    ways = CubicSpline(knots, rng.uniform(-1, 1, (len(knots), 3)) * speed * 0.75)
    turns = CubicSpline(knots, rng.uniform(-0.4, 0.4, (len(knots), 3)))
    times = np.arange(0, seconds, 1 / hz)
    xyz = np.array(origin) + ways(times) + rng.normal(scale=noise, size=(len(times), 3))
    quat = (Rotation.from_rotvec(turns(times)) * DOWN).as_quat(scalar_first=True)
    return np.concatenate([xyz, quat], axis=1), times


def differences(poses):
    """What converters store: next minus current, the turn as a relative rotation."""
    rotation = Rotation.from_quat(poses[:, 3:], scalar_first=True)
    turn = (rotation[1:] * rotation[:-1].inv()).as_quat(scalar_first=True)
    return np.concatenate([np.diff(poses[:, :3], axis=0), turn], axis=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("speed", [0.02, 0.15, 0.5])
@pytest.mark.parametrize("hz", [3.0, 10.0, 100.0])
@pytest.mark.parametrize("noise", [0.0, 0.001])
def test_each_kind_is_told(seed, speed, hz, noise):
    poses, times = path(seed, speed=speed, hz=hz, noise=noise)
    assert tcp_kind(poses, times).kind == "absolute"
    assert tcp_kind(differences(poses), times[1:]).kind == "difference"


@pytest.mark.parametrize("seed", range(5))
def test_positions_alone_and_angles_are_enough(seed):
    poses, times = path(seed)
    steps = differences(poses)
    assert tcp_kind(poses[:, :3], times).kind == "absolute"
    assert tcp_kind(steps[:, :3], times[1:]).kind == "difference"
    for stream, want in ((poses, "absolute"), (steps, "difference")):
        euler = Rotation.from_quat(stream[:, 3:], scalar_first=True).as_euler("xyz")
        with_angles = np.concatenate([stream[:, :3], euler], axis=1)
        assert tcp_kind(with_angles).kind == want


def test_differences_of_angles_that_were_not_wrapped_and_of_quaternions():
    poses, _ = path(3)
    euler = Rotation.from_quat(poses[:, 3:], scalar_first=True).as_euler("xyz")
    raw = np.diff(np.concatenate([poses[:, :3], euler], axis=1), axis=0)
    assert np.abs(raw[:, 3]).max() > 6  # the roll jumps from pi to -pi
    assert tcp_kind(raw).kind == "difference"
    assert tcp_kind(np.diff(poses, axis=0)).kind == "difference"


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_robot_that_stands_still_tells_neither(noise):
    poses, times = path(0, speed=0.0, noise=noise)
    for stream, when in ((poses, times), (differences(poses), times[1:])):
        verdict = tcp_kind(stream, when)
        assert verdict.kind == "ambiguous"
        assert "nothing moves" in str(verdict)


def test_too_short_not_in_metres_or_broken_is_ambiguous():
    poses, times = path(0)
    assert tcp_kind(poses[:19], times[:19]).kind == "ambiguous"
    assert tcp_kind(poses[:20], times[:20]).kind == "absolute"
    millimetres = poses * [1000, 1000, 1000, 1, 1, 1, 1]
    assert tcp_kind(millimetres, times).kind == "ambiguous"
    poses[7, 1] = np.nan
    assert tcp_kind(poses, times).kind == "ambiguous"


def test_noise_is_no_path_and_translation_must_not_contradict_rotation():
    rng = np.random.default_rng(0)
    poses, times = path(0)
    noise = poses.copy()
    noise[:, :3] = np.array([0.5, 0, 0.3]) + rng.normal(scale=0.05, size=(len(poses), 3))
    assert tcp_kind(noise, times).kind == "ambiguous"
    mixed = np.concatenate([differences(poses)[:, :3], poses[1:, 3:]], axis=1)
    assert tcp_kind(mixed, times[1:]).kind == "ambiguous"


def test_two_possible_stories_are_ambiguous():
    """One slow sample a second from a tool that circles its base: long steps that cancel."""
    angle = np.arange(60) * 0.5
    circle = 0.3 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    verdict = tcp_kind(circle, np.arange(60.0))
    assert (verdict.against_absolute, verdict.against_difference) == ((), ())
    assert verdict.kind == "ambiguous"


def test_the_numbers_are_what_their_names_say():
    poses, times = path(1)
    numbers = tcp_kind(poses, times).numbers
    x = poses[:, :3]
    assert numbers["interval s"] == pytest.approx(0.2)
    assert numbers["5% norm m"] == pytest.approx(np.percentile([sum(p * p) ** 0.5 for p in x], 5))
    total = [sum(x[: i + 1, k]) for i in range(len(x)) for k in range(3)]
    total = np.reshape(total, (-1, 3))
    assert numbers["travel of the sum m"] == pytest.approx(
        np.linalg.norm(total.max(axis=0) - total.min(axis=0))
    )
    ratio = np.diff(x, axis=0).ravel() @ np.diff(x, axis=0).ravel() / (x.var(axis=0).sum() * len(x))
    assert numbers["variance of steps / of values"] == pytest.approx(ratio)
    mean = x.mean(axis=0)
    lag = sum((x[i] - mean) @ (x[i + 1] - mean) for i in range(len(x) - 1))
    assert numbers["lag-1 autocorrelation"] == pytest.approx(lag / (x.var(axis=0).sum() * len(x)))
    assert numbers["median angle rad"] == pytest.approx(
        np.median(Rotation.from_quat(poses[:, 3:], scalar_first=True).magnitude())
    )


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"stream: got shape \(30, 8\)"):
        tcp_kind(np.zeros((30, 8)))
    with pytest.raises(ValueError, match=r"timestamps: got shape \(3,\)"):
        tcp_kind(np.zeros((30, 3)), [0, 1, 2])
    with pytest.raises(ValueError, match="must increase"):
        tcp_kind(np.zeros((30, 3)), np.zeros(30))


def test_what_no_arm_does_is_no_path():
    far, times = path(0, origin=(3.0, 0, 0.3))
    assert tcp_kind(far, times).kind == "ambiguous"
    near, times = path(0)
    verdict = tcp_kind(near, times / 50)
    assert verdict.kind == "ambiguous"
    assert "too fast" in str(verdict)


def test_small_turns_may_be_written_as_almost_a_whole_one():
    poses, times = path(2)
    steps = differences(poses)
    euler = Rotation.from_quat(steps[:, 3:], scalar_first=True).as_euler("xyz") % (2 * np.pi)
    stream = np.concatenate([steps[:, :3], euler], axis=1)
    assert tcp_kind(stream, times[1:]).kind == "difference"
