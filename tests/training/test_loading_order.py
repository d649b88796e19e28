"""What the training loop's own DataLoader delivers: whatever the world, the workers, the resume."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from array_store import array_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialvla_ft.data.sampler import BLOCK, Sampler
from spatialvla_ft.training.batches import epoch_words, make_loader, make_sampler

GLOBAL = 1680  # divides among 1 to 8 ranks with two micro-batches each


def collate(samples):
    """Which steps they are, and their chunk, so that both must be right."""
    return [(s.dataset, s.episode, s.step, s.actions.tobytes(), s.valid.tobytes()) for s in samples]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Two datasets of 67 and 39 steps."""
    rng = np.random.default_rng(0)
    made = []
    for name, lengths in (("a/1", (20, 7, 40)), ("b/1", (9, 30))):
        episodes = [{"action": rng.normal(size=(n, 7)).astype(np.float32)} for n in lengths]
        folder = tmp_path_factory.mktemp("arrays")
        made.append(array_dataset(episodes, folder, label=name, horizon=3))
    return made


def run_of(datasets, *, batch, workers=0, seed=5, micro=1, weights=(2.0, 1.0)):
    """As much of a run as loading needs."""
    return SimpleNamespace(
        datasets=datasets,
        weights=list(weights[: len(datasets)]),
        depth=None,
        augment=None,
        points=(),
        collate=collate,
        processor=SimpleNamespace(image_size=8),
        recipe=SimpleNamespace(
            seed=seed,
            data=SimpleNamespace(workers=workers, images="fast"),
            train=SimpleNamespace(batch_size=batch, gradient_accumulation=micro),
        ),
    )


def global_batches(datasets, world, start, stop, *, total, workers=0, micro=1, seed=5):
    """Steps `start` to `stop` of all ranks: one loader per rank, joined in the order of ranks."""
    run = run_of(datasets, batch=total // micro // world, workers=workers, micro=micro, seed=seed)
    ranks = [
        list(make_loader(run, make_sampler(run, world, rank), start * micro, stop * micro))
        for rank in range(world)
    ]
    micros = [[row for rank in ranks for row in rank[k]] for k in range((stop - start) * micro)]
    starts = range(0, len(micros), micro)
    return [[row for part in micros[k : k + micro] for row in part] for k in starts]


@settings(max_examples=6, deadline=None)
@given(
    worlds=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    micros=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    at=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_worlds_accumulation_and_resume_change_nothing(datasets, worlds, micros, at, seed):
    """Three steps on one rank, or `at` steps on some ranks and the rest on others."""
    whole = global_batches(datasets, 1, 0, 3, total=GLOBAL, seed=seed)
    first = global_batches(datasets, worlds[0], 0, at, total=GLOBAL, micro=micros[0], seed=seed)
    rest = global_batches(datasets, worlds[1], at, 3, total=GLOBAL, micro=micros[1], seed=seed)
    assert first + rest == whole
    assert all(len(batch) == GLOBAL for batch in whole)


@pytest.mark.parametrize("world", range(1, 9))
def test_every_world_size(datasets, world):
    expected = global_batches(datasets, 1, 2, 4, total=GLOBAL)
    assert global_batches(datasets, world, 2, 4, total=GLOBAL) == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_every_number_of_workers(datasets, workers):
    expected = global_batches(datasets, 1, 1, 9, total=24)
    world = {1: 2, 2: 1, 3: 1, 4: 2}[workers]
    assert global_batches(datasets, world, 1, 9, total=24, workers=workers) == expected


def test_frames_come_equally_often_within_an_epoch(datasets):
    """Through the loader on 3 ranks; in a dataset, counts never differ by more than one."""
    seen = Counter()
    lengths = [67, 39]
    for batch in global_batches(datasets, 3, 0, BLOCK // 96, total=96):
        seen.update(row[:3] for row in batch)
        for dataset, length in zip(datasets, lengths, strict=True):
            counts = [n for (name, *_), n in seen.items() if name == dataset.name]
            counts += [0] * (length - len(counts))
            assert max(counts) - min(counts) <= 1
    drawn = Counter()
    for (name, *_), n in seen.items():
        drawn[name] += n
    assert drawn["a/1"] == pytest.approx(2 * drawn["b/1"], rel=1e-2)


def test_an_epoch_of_one_dataset_has_every_frame_once(datasets):
    run = run_of(datasets[:1], batch=67 // 1)
    steps = make_sampler(run).steps_per_epoch
    assert steps == 1.0
    (batch,) = global_batches(datasets[:1], 1, 0, 1, total=67)
    assert len({row[:3] for row in batch}) == 67


def test_the_length_of_an_epoch_is_told(datasets):
    run = run_of(datasets, batch=5, micro=2)
    assert make_sampler(run, 4, 1).steps_per_epoch == pytest.approx(106 / 20)
    words = epoch_words(run, 4)
    assert words.startswith(
        "one epoch = 2.6 steps, as many samples as there are frames; in it come"
    )
    assert "a/1 1.05 times, b/1 0.91 times" in words
    assert epoch_words(run_of(datasets[:1], batch=1)) == (
        "one epoch = 67.0 steps, as many samples as there are frames"
    )


def test_passes_are_counted_as_drawn():
    sampler = Sampler(1, [3, 1, 0], [50, 400, 9], batch=64)
    steps = BLOCK // 64 * 5
    seen = Counter(d for step in range(steps) for d, _ in sampler.batch(step))
    assert sampler.passes(steps).tolist() == [seen[0] / 50, seen[1] / 400, 0]
    assert sampler.steps_per_epoch == 450 / 64


@pytest.mark.parametrize("share", [1 / 5000, 1 / 100_000])
def test_the_block_grows_for_small_weights(share):
    weights = [1 - share, share]
    sampler = Sampler(0, weights, [1000, 10], batch=4096)
    assert sampler.block >= 1 / share / 2
    assert sampler.block & (sampler.block - 1) == 0
    assert sampler.quotas.min() == 1
    drawn = sum(d for step in range(sampler.block // 4096) for d, _ in sampler.batch(step))
    assert drawn == 1


def test_ordinary_weights_keep_the_block():
    assert Sampler(0, [1, 1 / 4000], [5, 5]).block == BLOCK
    with pytest.raises(ValueError, match="would never be drawn"):
        Sampler(0, [1, 1 / 9000], [5, 5], block=BLOCK)
