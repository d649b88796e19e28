import mujoco
import numpy as np
import pytest

from spatialvla_ft.sim.env import TabletopEnv
from spatialvla_ft.sim.expert import expert
from spatialvla_ft.sim.layout import block_count
from spatialvla_ft.sim.robots import ROBOTS
from spatialvla_ft.sim.tasks import TASKS, get_task, is_success

EVERY = [(robot, task) for robot in ROBOTS for task in TASKS]
NOTHING = np.array([0, 0, 0, 0, 0, 0, 1.0])


def run_expert(env, seed):
    env.reset(seed)
    while not env.done:
        result = env.step(expert(env))
    return result


@pytest.mark.parametrize(("robot", "task"), EVERY)
def test_expert_solves_a_sample(robot, task):
    env = TabletopEnv(robot, task, distractors=1)
    results = [run_expert(env, seed) for seed in range(100, 106)]
    assert sum(result.success for result in results) >= 5
    assert not any(result.wrong_object for result in results)


@pytest.mark.slow
@pytest.mark.parametrize(("robot", "task"), EVERY)
def test_expert_solves_95_percent_of_200(robot, task):
    env = TabletopEnv(robot, task, distractors=1)
    assert sum(run_expert(env, seed).success for seed in range(200)) >= 190


@pytest.mark.parametrize(("robot", "task"), EVERY)
def test_doing_nothing_solves_nothing(robot, task):
    env = TabletopEnv(robot, task, distractors=1)
    for seed in range(40):
        env.reset(seed)
        assert not is_success(env.task, env.state())
    hold = NOTHING.copy()
    hold[6] = env.task.start_opening
    while not env.done:
        result = env.step(hold)
    assert (result.success, result.wrong_object, result.steps) == (False, False, env.max_steps)


def test_equal_seeds_give_bit_identical_episodes():
    def states(env):
        env.reset(5)
        rng = np.random.default_rng(0)
        found = [env.data.qpos.copy()]
        for _ in range(12):
            env.step(np.append(rng.normal(0, 0.03, 6), rng.random()))
            found.append(np.concatenate([env.data.qpos, env.data.qvel]))
        return found

    fresh = states(TabletopEnv("robot_b", "pick", distractors=2, camera_mode="random"))
    used = TabletopEnv("robot_b", "pick", distractors=2, camera_mode="random")
    run_expert(used, 3)
    for one, two in zip(fresh, states(used), strict=True):
        np.testing.assert_array_equal(one, two)


def test_seeds_differ():
    env = TabletopEnv("robot_a", "touch")
    env.reset(0)
    first = env.data.qpos.copy()
    env.reset(1)
    assert np.abs(env.data.qpos - first).max() > 0.01


@pytest.mark.parametrize("robot", ROBOTS)
def test_blocks_rest_where_the_layout_puts_them(robot):
    # Catches a riser that is drawn but does not carry (bounding volumes of the compiled model).
    env = TabletopEnv(robot, "pick", distractors=2)
    risers = 0
    for seed in range(60):
        env.reset(seed)
        for block, start in zip(env.state().blocks, env.layout.blocks, strict=True):
            table = -env.robot.base_position[2]
            assert block.bottom == pytest.approx(table + start.riser, abs=1e-3)
            np.testing.assert_allclose(block.position[:2], start.position, atol=1e-3)
            assert block.speed < 0.01
            risers += start.riser > 0
    assert risers > 30


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_grip_holds_by_friction_alone(robot):
    env = TabletopEnv(robot, "pick")
    kinds = set(env.model.eq_type.tolist())
    assert kinds == {int(mujoco.mjtEq.mjEQ_JOINT)}  # the two fingers, nothing else
    assert run_expert(env, 1).success
    step = 0.8 * env.robot.max_translation
    for _ in range(round(0.10 / step)):
        env._move(np.array([0, 0, step, 0, 0, 0, 0]))  # env.step would stop: the task is solved
    block = env.state().blocks[0]
    grip = block.rotation.T @ (env.state().tool - block.position)
    for axis in (0, 1, 2, 5):
        for sign in (1, -1, 1, -1, 1, -1):
            shake = np.zeros(7)
            shake[axis] = sign * (step if axis < 3 else 0.1)
            env._move(shake)
    for _ in range(round(5 * env.robot.control_hz)):
        env._move(np.zeros(7))
    block = env.state().blocks[0]
    assert block.held
    assert not block.supported
    slip = block.rotation.T @ (env.state().tool - block.position) - grip
    assert np.abs(slip).max() < 0.004
    for _ in range(round(env.robot.control_hz)):
        env._move(NOTHING)
    dropped = env.state().blocks[0]
    assert dropped.supported
    assert not dropped.robot_contact


def test_grasping_needs_yaw():
    # The gap is wider than the short side of a block and narrower than the long one.
    for robot in ROBOTS.values():
        env = TabletopEnv(robot, "pick", distractors=3)
        for seed in range(20):
            env.reset(seed)
            for block in env.layout.blocks:
                assert 2 * block.half_size[1] < robot.gripper.opening - 0.01
                assert 2 * block.half_size[0] > robot.gripper.opening


def test_touching_another_block_ends_the_episode():
    env = TabletopEnv("robot_a", "touch", distractors=1)
    env.reset(0)
    other = env.state().blocks[1]
    while not env.done:
        way = other.position + np.array([0, 0, other.half_height]) - env.state().tool
        result = env.step(np.append(0.5 * way, [0, 0, 0, 0]))
    assert (result.success, result.wrong_object) == (False, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"robot": "robot_c"}, "robot_c.*robot_a"),
        ({"task": "dance"}, "dance.*place_left_of"),
        ({"cameras": ("top",)}, "top.*front"),
        ({"camera_mode": "shaky"}, "shaky.*random"),
        ({"distractors": 9}, "distractors: got 9"),
        ({"image_size": 0}, "image_size: got 0"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        TabletopEnv(**{"robot": "robot_a", "task": "touch", **arguments})


@pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan)])
def test_bad_actions(action):
    env = TabletopEnv("robot_a", "touch")
    env.reset(0)
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step(action)


def test_block_count():
    assert block_count(get_task("touch"), 0) == 1
    assert block_count(get_task("place_behind"), 2) == 4


def test_the_seed_says_how_many_distractors():
    """Of several numbers, that at the seed's place; each scene as with that number alone."""
    several = TabletopEnv("robot_b", "touch", distractors=(0, 2, 1), camera_mode="random")
    for seed in (9, 10, 11, 13):
        several.reset(seed)
        alone = TabletopEnv(
            "robot_b", "touch", distractors=(0, 2, 1)[seed % 3], camera_mode="random"
        )
        alone.reset(seed)
        assert several.layout == alone.layout
        assert several.instruction == alone.instruction
        np.testing.assert_array_equal(
            several.observe().images["front"], alone.observe().images["front"]
        )


def test_the_other_word_names_another_block_of_the_same_scene():
    plain = TabletopEnv("robot_a", "touch", distractors=2)
    other = TabletopEnv("robot_a", "touch", distractors=2, other_word=True)
    for env in (plain, other):
        env.reset(5)
    first, second, third = plain.layout.blocks
    assert other.layout.blocks == (second, first, third)
    assert plain.instruction == f"touch the {first.colour} block"
    assert other.instruction == f"touch the {second.colour} block"
    one, two = (env.observe() for env in (plain, other))
    difference = np.abs(one.images["front"].astype(int) - two.images["front"])
    assert difference.max() <= 2  # blocks change their order in the drawing, not their places
    np.testing.assert_allclose(one.depth["front"], two.depth["front"], atol=1e-4)


@pytest.mark.parametrize(
    ("task", "distractors"), [("touch", 0), ("touch", (0, 1)), ("place_left_of", 2)]
)
def test_there_must_be_another_block_to_name(task, distractors):
    with pytest.raises(ValueError, match=r"other_word: needs a task without a reference block"):
        TabletopEnv("robot_a", task, distractors=distractors, other_word=True)
