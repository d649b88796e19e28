import numpy as np
import pytest
from sim_checks import digest

from spatialvla_ft.processes import Worker
from spatialvla_ft.sim.env import TabletopEnv
from spatialvla_ft.sim.expert import expert
from spatialvla_ft.sim.pool import SimPool

OPTIONS = {"image_size": 48, "camera_mode": "random", "distractors": 1}


def test_pool_equals_single_environment():
    seeds = [3, 9, 4]
    rng = np.random.default_rng(0)
    actions = [np.append(rng.normal(0, 0.01, 6), 0.0) for _ in range(3)]
    with Worker("sim_checks:episode_digest", "robot_b", "touch", seeds, OPTIONS, actions) as worker:
        want = dict(zip(seeds, worker.recv(), strict=True))
    with SimPool("robot_b", "touch", seeds, workers=2, **OPTIONS) as pool:
        for action in actions:
            pool.step(np.tile(action, (3, 1)))
        batch = pool.observe()
    assert sorted(batch.seeds.tolist()) == sorted(seeds)
    assert batch.steps.tolist() == [3, 3, 3]
    for row, seed in enumerate(batch.seeds.tolist()):
        assert digest(batch.images["front"][row], batch.depth["front"][row]) == want[seed][0]
        np.testing.assert_array_equal(batch.state[row], want[seed][1])


def test_every_seed_gets_its_result():
    # The expert runs here on twin environments without rendering, by seed.
    seeds = [11, 12, 13, 14, 15]
    twins = {seed: TabletopEnv("robot_a", "touch", distractors=1) for seed in seeds}
    for seed, twin in twins.items():
        twin.reset(seed)
    want = {}
    with SimPool(
        "robot_a", "touch", seeds, workers=2, parallel=2, image_size=16, distractors=1
    ) as pool:
        while not pool.done:
            batch = pool.observe()
            assert len(batch) <= 2
            actions = np.array([expert(twins[seed]) for seed in batch.seeds.tolist()])
            for seed, action in zip(batch.seeds.tolist(), actions, strict=True):
                want[seed] = twins[seed].step(action)
            pool.step(actions)
        results = pool.results
    assert [result.seed for result in results] == seeds
    for result in results:
        assert result.success
        assert not result.wrong_object
        assert result.steps == want[result.seed].steps
        assert result.instruction == twins[result.seed].instruction


def test_bad_use():
    with pytest.raises(ValueError, match="seeds"):
        SimPool("robot_a", "touch", [1, 1])
    with pytest.raises(ValueError, match="distractors"):
        SimPool("robot_a", "touch", [1], distractors=40)
    with (
        SimPool("robot_a", "touch", [1], image_size=16) as pool,
        pytest.raises(ValueError, match="1 x 7"),
    ):
        pool.step(np.zeros((2, 7)))
