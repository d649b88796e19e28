"""The sampler is a function of its arguments: properties, and counts by brute force."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialvla_ft.data import Sampler
from spatialvla_ft.data.sampler import evenly_spaced, permute, quotas


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size, key):
    key = np.array([key], np.uint64)
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_permutations_differ_and_look_random():
    key = np.array([1], np.uint64), np.array([2], np.uint64)
    one, two = (permute(np.arange(5000), 5000, k) for k in key)
    assert (one == two).mean() < 0.01
    assert abs(np.corrcoef(one, np.arange(5000))[0, 1]) < 0.05
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.05


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    step=st.integers(0, 10**7),
    world=st.sampled_from([1, 2, 4, 8]),
)
def test_the_global_batch_does_not_depend_on_the_world(seed, lengths, step, world):
    weights = [1.0 + i for i in range(len(lengths))]
    alone = Sampler(seed, weights, lengths, world=1, rank=0, batch=16).batch(step)
    ranks = [
        Sampler(seed, weights, lengths, world=world, rank=rank, batch=16 // world).batch(step)
        for rank in range(world)
    ]
    assert [pair for rank in ranks for pair in rank] == alone
    assert all(0 <= frame < lengths[dataset] for dataset, frame in alone)


def test_quotas_are_exact_in_every_block():
    sampler = Sampler(3, [1, 2, 5], [100, 7, 900], world=1, rank=0, batch=4096)
    for step in (0, 1, 17):
        drawn = Counter(dataset for dataset, _ in sampler.batch(step))
        assert drawn == {0: 512, 1: 1024, 2: 2560}


def test_every_frame_comes_equally_often():
    sampler = Sampler(0, [1, 3], [1000, 77], world=1, rank=0, batch=4096)
    drawn = Counter(pair for step in range(5) for pair in sampler.batch(step))
    for dataset, length in ((0, 1000), (1, 77)):
        counts = [drawn[dataset, frame] for frame in range(length)]
        assert max(counts) - min(counts) <= 1


def test_an_epoch_has_every_frame_once_and_the_next_another_order():
    sampler = Sampler(0, [1], [512], batch=512)
    first, second = ([frame for _, frame in sampler.batch(step)] for step in (0, 1))
    sampled = Counter(f for step in range(8) for _, f in sampler.batch(step))
    assert set(sampled.values()) == {8}
    assert first != second


def test_the_seed_matters_and_the_order_is_pinned():
    pinned = Sampler(7, [2, 1], [50, 60], batch=6).batch(3)
    assert pinned != Sampler(8, [2, 1], [50, 60], batch=6).batch(3)
    assert pinned == PINNED


PINNED = [(0, 37), (0, 36), (0, 18), (0, 29), (0, 17), (1, 54)]
# A stored run must draw the same frames in every later version.


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"weights": [1], "lengths": [1, 2]}, "1 weights for 2 lengths"),
        ({"weights": [1], "lengths": [0]}, "no frames"),
        ({"weights": [1, 1e-9], "lengths": [5, 5]}, "would never be drawn"),
        ({"weights": [-1, 2], "lengths": [5, 5]}, "not negative"),
        ({"weights": [0], "lengths": [5]}, "are 0"),
        ({"weights": [1], "lengths": [5], "world": 2, "rank": 2}, "rank 2"),
        ({"weights": [1], "lengths": [5], "batch": 0}, "at least 1"),
    ],
)
def test_errors(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        Sampler(0, **arguments)


@given(st.lists(st.floats(1, 100), min_size=1, max_size=30))
def test_quotas_are_near_the_weights(weights):
    quota = quotas(weights)
    exact = np.array(weights) / sum(weights) * 4096
    assert quota.sum() == 4096
    assert (abs(quota - exact) < 1).all()


def test_evenly_spaced_picks_are_those_of_before():
    """Of the formulas that twelve places had: NumPy's, cut to whole numbers, each only once."""
    for length in range(150):
        for most in (*range(9), 24, 100, 200):
            got = evenly_spaced(length, most)
            at = np.linspace(0, length - 1, min(most, length))
            assert got == np.unique(at.astype(int)).tolist() == sorted({int(i) for i in at})
            assert got == at.astype(int).tolist()
            assert all(isinstance(place, int) for place in got)


@pytest.mark.parametrize(
    ("length", "most", "wanted"),
    [(7, 3, [0, 3, 6]), (10, 4, [0, 3, 6, 9]), (6, 4, [0, 1, 3, 5]), (3, 9, [0, 1, 2]),
     (5, 1, [0]), (1, 4, [0]), (0, 4, []), (4, 0, [])],
)  # fmt: skip
def test_evenly_spaced_picks_by_hand(length, most, wanted):
    assert evenly_spaced(length, most) == wanted
