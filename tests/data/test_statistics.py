"""Statistics against plain NumPy and the layout of a released checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest

from spatialvla_ft.actions.normalise import ActionStatistics
from spatialvla_ft.data import DatasetError, load_cards, open_dataset
from spatialvla_ft.data.statistics import compute_statistics, dataset_statistics

RELEASED = Path(__file__).parents[1] / "golden/checkpoint/processor_config.json"
MASK = np.array([True] * 6 + [False])


def sorted_quantile(values, q):
    """Linear interpolation between order statistics, by hand."""
    values = np.sort(values.astype(np.float64))
    place = q * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def test_numbers():
    rng = np.random.default_rng(0)
    actions = (rng.gamma(2, size=(1237, 7)) * [1, 2, 3, 4, 5, 6, 0.5] - 3).astype(np.float32)
    found = compute_statistics(actions, MASK, num_trajectories=3)
    for i in range(7):
        column = actions[:, i].tolist()
        mean = sum(column) / len(column)
        assert found.mean[i] == pytest.approx(mean, rel=1e-9)
        variance = sum((x - mean) ** 2 for x in column) / len(column)
        assert found.std[i] == pytest.approx(variance**0.5, rel=1e-9)
        assert (found.min[i], found.max[i]) == (min(column), max(column))
        assert found.q01[i] == pytest.approx(sorted_quantile(actions[:, i], 0.01), rel=1e-6)
        assert found.q99[i] == pytest.approx(sorted_quantile(actions[:, i], 0.99), rel=1e-6)
    assert (found.num_transitions, found.num_trajectories) == (1237, 3)


def test_layout_is_that_of_a_released_checkpoint():
    released = json.loads(RELEASED.read_text())["statistics"]
    entry = next(iter(released.values()))
    ours = ActionStatistics.from_dict(entry).to_dict()
    assert ours["action"] == entry["action"]
    assert {k: ours[k] for k in ("num_transitions", "num_trajectories")} == {
        k: entry[k] for k in ("num_transitions", "num_trajectories")
    }
    assert set(ours) <= set(entry)


@pytest.mark.parametrize(
    ("actions", "complaint"),
    [
        (np.zeros((0, 7)), "N > 0"),
        (np.zeros((3, 6)), r"got shape \(3, 6\)"),
        (np.full((3, 7), np.nan), "21 of 21 .* NaN or infinite, the first at step 0, dimension 0"),
    ],
)
def test_errors(actions, complaint):
    with pytest.raises(DatasetError, match=complaint):
        compute_statistics(actions, MASK)


def test_of_a_dataset_and_cached_by_content(demo, monkeypatch):
    dataset = open_dataset(demo, card=None)
    found = dataset_statistics(dataset)
    np.testing.assert_allclose(found.mean, dataset.actions().mean(axis=0), atol=1e-6)
    assert found.mask.tolist() == MASK.tolist()
    assert (found.num_transitions, found.num_trajectories) == (27, 6)

    def never():
        raise AssertionError("computed again")

    monkeypatch.setattr(dataset, "actions", never)
    again = dataset_statistics(dataset)
    np.testing.assert_array_equal(again.q99, found.q99)
    other = open_dataset(demo, card=None, split="val")
    monkeypatch.setattr(other, "actions", never)
    with pytest.raises(AssertionError, match="computed again"):
        dataset_statistics(other)
    text = (demo / "card.yaml").read_text()
    (demo / "card.yaml").write_text(text.replace('"action[-1:]"', "zeros(1)"))
    changed = open_dataset(demo, card=load_cards(demo / "card.yaml")["demo"])
    assert dataset_statistics(changed).constant.tolist() == [False] * 6 + [True]
