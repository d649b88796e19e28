"""Statistics against plain NumPy and the layout of a released checkpoint."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from spatialvla_ft.actions.normalise import ActionStatistics
from spatialvla_ft.actions.summaries import Summary
from spatialvla_ft.data import DatasetError, build_index, load_cards, open_dataset
from spatialvla_ft.data.rlds.episodes import RldsStore
from spatialvla_ft.data.stats.statistics import (
    compute_statistics,
    dataset_statistics,
    proprio_statistics,
    streamed_statistics,
)

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


@pytest.fixture
def reads(monkeypatch):
    """How many episodes were read from disk."""
    count = Counter()
    read = RldsStore.trajectory

    def counting(self, episode, keys):
        count["episodes"] += 1
        return read(self, episode, keys)

    monkeypatch.setattr(RldsStore, "trajectory", counting)
    return count


def test_of_a_dataset_and_cached_by_content(demo, reads):
    dataset = open_dataset(demo, card=None)
    found = dataset_statistics(dataset)
    assert reads["episodes"] == 6
    np.testing.assert_allclose(found.mean, dataset.actions().mean(axis=0), atol=1e-6)
    assert found.mask.tolist() == MASK.tolist()
    assert (found.num_transitions, found.num_trajectories) == (27, 6)
    reads.clear()
    again = dataset_statistics(open_dataset(demo, card=None))
    assert not reads
    for name in ("mean", "std", "min", "max", "q01", "q99"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    dataset_statistics(open_dataset(demo, card=None, split="val"))
    assert reads["episodes"] == 3
    reads.clear()
    dataset_statistics(dataset.subset(dataset.episodes[:3]))
    assert reads["episodes"] == 3
    text = (demo / "card.yaml").read_text()
    (demo / "card.yaml").write_text(text.replace('"action[-1:]"', "zeros(1)"))
    reads.clear()
    changed = open_dataset(demo, card=load_cards(demo / "card.yaml")["demo"])
    assert dataset_statistics(changed).constant.tolist() == [False] * 6 + [True]
    assert reads["episodes"] == 6


def test_changed_data_is_read_again(demo, reads):
    """The index is rebuilt when a shard changes; its statistics must not survive it."""
    dataset_statistics(open_dataset(demo, card=None))
    for shard in demo.glob("*.tfrecord*"):
        os.utime(shard, ns=(1, 1))
    reads.clear()
    dataset_statistics(open_dataset(build_index(demo, rebuild=True), card=None))
    assert reads["episodes"] == 6


def test_a_card_without_text_is_never_cached(demo, reads):
    card = open_dataset(demo, card=None).card.model_copy(update={"source_hash": ""})
    for _ in range(2):
        dataset_statistics(open_dataset(demo, card=card))
    assert reads["episodes"] == 12


def blocks_of(actions, *sizes):
    """The actions in blocks of the given sizes, over and over."""

    def blocks():
        start, turn = 0, 0
        while start < len(actions):
            size = sizes[turn % len(sizes)]
            yield actions[start : start + size], 1.0
            start, turn = start + size, turn + 1

    return blocks


HARD = {
    "gamma": lambda rng, n: rng.gamma(2, size=(n, 7)) * [1, 2, 3, 4, 5, 6, 0.5] - 3,
    "far from 0": lambda rng, n: 1e6 + rng.normal(size=(n, 7)),
    "tiny": lambda rng, n: rng.normal(size=(n, 7)) * 1e-38,
    "repeats": lambda rng, n: rng.integers(-2, 3, size=(n, 7)) / 4,
    "mostly still": lambda rng, n: rng.normal(size=(n, 7)) * (rng.random((n, 7)) < 0.03),
    "constant": lambda rng, n: np.full((n, 7), -0.3),
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("n", [1, 2, 99, 100, 101, 5003])
@pytest.mark.parametrize("buffer_rows", [0, 10**6])
def test_a_stream_gives_what_all_actions_at_once_give(kind, n, buffer_rows):
    """With a buffer that holds everything, and by counting bits."""
    actions = HARD[kind](np.random.default_rng(n), n).astype(np.float32)
    expected = compute_statistics(actions, MASK, num_trajectories=2)
    blocks = blocks_of(actions, 64, 1, 700)
    found = streamed_statistics(blocks, MASK, num_trajectories=2, buffer_rows=buffer_rows)
    for name in ("mean", "std", "min", "max", "q01", "q99"):
        got, wanted = getattr(found, name), getattr(expected, name)
        scale = np.abs(actions).max()
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12 * scale, err_msg=name)
    assert found.num_transitions == n
    assert found.num_trajectories == 2


@pytest.mark.parametrize("buffer_rows", [0, 10**6])
def test_weighted_quantiles(buffer_rows):
    """Whole-number weights must do what repeating the rows does."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(400, 2)), rng.normal(3, 2, size=(700, 2))
    first, second = first.astype(np.float32), second.astype(np.float32)
    scale = 1100 / (400 * 3 + 700)  # so that the weights add up to the rows
    blocks = lambda: iter([(first, 3.0), (second, 1.0)])  # noqa: E731
    found = Summary(blocks, buffer_rows=buffer_rows)
    repeated = np.concatenate([first, first, first, second]).astype(np.float64)
    np.testing.assert_allclose(found.moments.mean, repeated.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.moments.std, repeated.std(0), rtol=1e-12)
    for share in (0.0, 0.01, 0.3, 0.99, 1.0):
        got = found.quantiles([share])[0]
        # the same number of rows to either side, within the weight of one row
        for column in range(2):
            below = (repeated[:, column] < got[column] - 1e-9).mean()
            above = (repeated[:, column] > got[column] + 1e-9).mean()
            slack = 2 * 3 / len(repeated)
            assert below <= share + slack
            assert above <= 1 - share + slack
    assert scale < 1


def test_bad_actions_are_named(demo):
    dataset = open_dataset(demo, card=None)
    plain = dataset.standardised

    def broken(episode):
        found = plain(episode)
        if episode == 2:
            found.action[1, 3] = np.nan
        return found

    dataset.standardised = broken
    with pytest.raises(DatasetError, match=r"demo/1.0.0, episode 2: action 1, dimension 3 is nan"):
        dataset_statistics(dataset, cache_dir=demo / "elsewhere")


def test_proprio_is_streamed_and_cached(demo, reads):
    dataset = open_dataset(demo, card=None)
    values = dataset.proprio()
    found = proprio_statistics(dataset)
    np.testing.assert_allclose(found.mean, values.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.q99, np.quantile(values, [0.99], axis=0)[0], rtol=1e-12)
    assert dataset.proprio_dim == values.shape[1]
    reads.clear()
    proprio_statistics(open_dataset(demo, card=None))
    assert not reads
