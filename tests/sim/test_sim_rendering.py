import numpy as np
import pytest

from spatialvla_ft.processes import Worker
from spatialvla_ft.sim import rendering
from spatialvla_ft.sim.cameras import episode_cameras, intrinsics, look_at
from spatialvla_ft.sim.robots import ROBOTS


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("mode", ["fixed", "random"])
def test_back_projected_pixels_lie_on_the_blocks(robot, mode):
    with Worker("sim_checks:surface_errors", robot, range(6), mode) as worker:
        found = worker.recv()
    front = [(n, error) for camera, n, error in found if camera == "front"]
    wrist = [(n, error) for camera, n, error in found if camera == "wrist"]
    assert sum(n >= 15 for n, _ in front) >= len(front) - 1  # hardly ever hidden by the arm
    assert sum(n >= 15 for n, _ in wrist) >= len(wrist) // 2
    assert max(error for _, error in front + wrist) < 0.0005


def test_look_at_matches_the_axes_convention():
    # From the base's +x side, looking back at the robot: its left (+y) is on the image's right.
    rotation = look_at(np.array([1.0, 0, 0.5]), np.zeros(3), np.array([0, 0, 1.0]))
    right, down, forward = rotation.T
    np.testing.assert_allclose(right, [0, 1, 0], atol=1e-12)
    assert down[2] < 0
    assert forward[0] < 0
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_intrinsics_of_a_known_angle():
    K = intrinsics(np.pi / 2, 200, 100)
    np.testing.assert_allclose(K, [[50, 0, 100], [0, 50, 50], [0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize("robot", ROBOTS.values(), ids=ROBOTS)
def test_random_front_cameras_see_the_workspace(robot):
    for seed in range(100):
        pose = episode_cameras(robot, "random", np.random.default_rng(seed))["front"]
        K = intrinsics(pose.fov, 64, 64)
        corners = [(x, y, 0.03) for x in robot.workspace.x for y in robot.workspace.y]
        for corner in corners:
            u, v, z = K @ pose.rotation.T @ (np.array(corner) - pose.position)
            assert z > 0
            assert 0 <= u / z <= 64, (seed, corner)
            assert 0 <= v / z <= 64, (seed, corner)


def test_random_cameras_really_vary():
    robot = ROBOTS["robot_a"]
    poses = [episode_cameras(robot, "random", np.random.default_rng(s))["front"] for s in range(50)]
    assert np.std([pose.position for pose in poses], axis=0).min() > 0.05
    assert np.ptp([pose.fov for pose in poses]) > 0.1


def test_no_gl_library_names_the_cure(monkeypatch):
    def missing(backend):
        raise ImportError(f"lib{backend} not found")

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_context_class", missing)
    with pytest.raises(
        RuntimeError, match=r"(?s)egl.*osmesa.*libegl1 libgl1.*MUJOCO_GL.*libosmesa6"
    ):
        rendering.open_gl_context()


def test_unknown_gl_backend(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(RuntimeError, match=r"vulkan.*egl"):
        rendering.open_gl_context()
