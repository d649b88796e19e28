"""A simulated mixture is read as a real one, and its start does not grow with it."""

import numpy as np

from spatialvla_ft.bench.mixture_start import measure_start, simulate_mixture
from spatialvla_ft.data.mixtures import open_mixture
from spatialvla_ft.data.reading import Reading
from spatialvla_ft.data.stats.statistics import compute_statistics, dataset_statistics


def test_a_simulated_mixture_is_read(tmp_path):
    parts = simulate_mixture(tmp_path, datasets=2, steps=3000, episode_steps=50)
    opened = open_mixture(parts, root=tmp_path, reading=Reading(card=None))
    assert [len(dataset) for dataset in opened.datasets] == [1500, 1500]
    np.testing.assert_allclose(opened.weights, [1 / 3, 2 / 3])
    dataset = opened.datasets[1]
    wanted = compute_statistics(dataset.actions(), np.arange(7) < 6)
    np.testing.assert_allclose(dataset_statistics(dataset).q99, wanted.q99, rtol=1e-12)
    np.testing.assert_array_equal(dataset[1499].valid, [True, False, False, False])


def test_a_second_start_in_a_process_of_its_own(tmp_path):
    parts = simulate_mixture(tmp_path, datasets=3, steps=6000)
    first, second = (measure_start(tmp_path, parts) for _ in range(2))
    assert first.steps == second.steps == 6000
    assert second.seconds < 20
    assert second.private_mib < 64
