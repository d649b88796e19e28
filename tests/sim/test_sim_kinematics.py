import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spatialvla_ft.sim.env import TabletopEnv
from spatialvla_ft.sim.robots import ROBOTS


def forward(robot, angles):
    """Tool pose in the base frame, as a plain product of the declared links."""
    position, rotation = np.array([0.0, 0.0, robot.pedestal]), Rotation.identity()
    for joint, angle in zip(robot.joints, angles, strict=True):
        rotation = rotation * Rotation.from_euler(joint.axis, angle)
        position = position + rotation.apply([0.0, 0.0, joint.length])
    position = position + rotation.apply([0.0, 0.0, robot.gripper.reach])
    return position, (rotation * Rotation.from_euler("y", np.pi)).as_matrix()


def angles_of(env):
    return [env.data.joint(f"joint{i}").qpos[0] for i in range(len(env.robot.joints))]


@pytest.mark.parametrize("name", ROBOTS)
def test_state_is_the_forward_kinematics_of_the_joint_angles(name):
    env = TabletopEnv(name, "touch")
    for seed in range(5):
        env.reset(seed)
        env.step(np.array([0.01, -0.02, 0.01, 0.05, -0.04, 0.1, 0.0]))
        position, rotation = forward(env.robot, angles_of(env))
        np.testing.assert_allclose(env.state().tool, position, atol=1e-6)
        np.testing.assert_allclose(env.state().rotation, rotation, atol=1e-6)


@pytest.mark.parametrize("name", ROBOTS)
def test_a_commanded_step_is_made(name):
    env = TabletopEnv(name, "pick")
    rng = np.random.default_rng(3)
    env.reset(0)
    for _ in range(12):
        position, rotation = forward(env.robot, angles_of(env))
        limit = [env.robot.max_translation] * 3 + [env.robot.max_rotation] * 3
        action = np.append(rng.uniform(-1, 1, 6) * limit, 1.0)
        env.step(action)
        now, turned = forward(env.robot, angles_of(env))
        want = Rotation.from_euler("xyz", action[3:6]).as_matrix() @ rotation
        np.testing.assert_allclose(now, position + action[:3], atol=0.001)
        error = Rotation.from_matrix(want.T @ turned).magnitude()
        assert error < 0.01


@pytest.mark.parametrize("name", ROBOTS)
def test_steps_are_clipped(name):
    env = TabletopEnv(name, "pick")
    env.reset(0)
    start = env.state().tool
    env.step(np.array([9.0, 0, 0, 0, 0, 0, 1]))
    moved = env.state().tool - start
    assert moved[0] == pytest.approx(env.robot.max_translation, abs=0.003)


@pytest.mark.parametrize("name", ROBOTS)
def test_standing_still_does_not_drift(name):
    env = TabletopEnv(name, "pick")
    env.reset(2)
    start = env.state().tool
    for _ in range(20):
        env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    np.testing.assert_allclose(env.state().tool, start, atol=0.002)


def test_robots_differ():
    a, b = ROBOTS["robot_a"], ROBOTS["robot_b"]
    assert len(a.joints) != len(b.joints)
    assert a.control_hz != b.control_hz
    assert a.max_translation != b.max_translation
    assert a.action_space().control_hz == a.control_hz
    assert a.action_space().dim == 7
