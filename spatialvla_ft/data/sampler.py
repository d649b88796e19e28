"""Which frames a step trains on: a pure function of (seed, slot), so resuming is one integer.

The global slots 0, 1, 2, ... come in blocks. In a block every dataset has a fixed quota, and a
Feistel permutation, another one for every block, says which slot belongs to which. The n-th draw
of a dataset of L frames, counted in the order of the slots, takes entry n mod L of the permutation
of its epoch n // L: without replacement, so that at any step the frames of a dataset have come
equally often or once more, in memory that does not depend on the number of frames. Rank r at step
s takes the slots (s * world + r) * batch ..., so the global batch does not depend on how it is
divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 4096
LARGEST_BLOCK = 1 << 20
_ROUND_KEYS = tuple(np.uint64(i * 0xD1B54A32D192ED03 % 2**64) for i in range(1, 7))
_BLOCK_STREAM, _EPOCH_STREAM = 0, 1


def evenly_spaced(length: int, most: int) -> list[int]:
    """At most `most` of the places 0 to length - 1, evenly spaced, first and last among them.

    What lies between two places counts as the earlier one; a single pick is the first place.
    """
    places: list[int] = np.linspace(0, length - 1, min(most, length)).astype(int).tolist()
    return places


def quotas(weights: Sequence[float], block: int = BLOCK) -> NDArray[np.int64]:
    """Slots of every dataset in a block, by largest remainder; they add up to `block`.

    Every one is within one slot of its exact share.

    Raises:
        ValueError: no or negative weights, or a positive weight too small for one slot.
    """
    share = np.asarray(weights, np.float64)
    if share.ndim != 1 or share.size == 0 or not np.isfinite(share).all() or (share < 0).any():
        raise ValueError(f"weights must be finite and not negative, got {list(weights)}")
    if share.sum() == 0:
        raise ValueError(f"all {share.size} weights are 0; give one dataset a positive weight")
    exact = share / share.sum() * block
    quota = _largest_remainder(exact)
    lost = np.flatnonzero((quota == 0) & (share > 0))
    if lost.size:
        raise ValueError(
            f"dataset {int(lost[0])} has {exact[lost[0]]:.3g} of {block} slots and would never be "
            f"drawn; raise its weight, remove it, or pass a larger block"
        )
    return quota


def _largest_remainder(exact: NDArray[np.float64]) -> NDArray[np.int64]:
    quota: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    rest = round(float(exact.sum())) - int(quota.sum())
    quota[np.argsort(-(exact - quota), kind="stable")[:rest]] += 1
    return quota


def _all_drawn(share: NDArray[np.float64], block: int) -> bool:
    quota = _largest_remainder(share / share.sum() * block)
    return bool((quota[share > 0] > 0).all())


def fitting_block(weights: Sequence[float]) -> int:
    """The block that gives every dataset with a weight a slot: 4096, doubled as often as needed.

    It depends on the weights alone, so that a run draws the same frames whenever it is resumed.
    """
    share = np.asarray(weights, np.float64)
    block = BLOCK
    if np.isfinite(share).all() and share.sum() > 0 and (share >= 0).all():
        while block < LARGEST_BLOCK and not _all_drawn(share, block):
            block *= 2
    return block


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 finaliser: 64 bits in, 64 well-mixed bits out."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(*parts: int | NDArray[Any]) -> NDArray[np.uint64]:
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = _mix(key + np.uint64(0x9E3779B97F4A7C15) + np.asarray(part).astype(np.uint64))
    return key


def permute(
    index: NDArray[np.int64], size: NDArray[np.int64] | int, key: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Entry `index` of the permutation of 0..size-1 that `key` names; all broadcast.

    A balanced Feistel network over the next even number of bits, walked until it falls in range.
    """
    index, size, key = np.broadcast_arrays(np.asarray(index, np.int64), size, key)
    sizes, inverse = np.unique(size, return_inverse=True)
    bits = np.array([max(1, (n - 1).bit_length()) for n in sizes.tolist()])
    half = ((bits + 1) // 2).astype(np.uint64)[inverse].reshape(size.shape)
    mask = (np.uint64(1) << half) - np.uint64(1)
    value = index.astype(np.uint64)
    limit = size.astype(np.uint64)
    open_ = np.ones(value.shape, bool)
    while open_.any():
        h, m, k = half[open_], mask[open_], key[open_]
        left, right = value[open_] >> h, value[open_] & m
        for round_key in _ROUND_KEYS:
            scrambled = _mix(right ^ (k + round_key))
            left, right = right, (left ^ scrambled) & m
        value = value.copy()
        value[open_] = (left << h) | right
        open_ = value >= limit
    return value.astype(np.int64)


class Sampler:
    """Mixture sampling by arithmetic; see the module for how.

    Args:
        seed: names the order.
        weights: share of every dataset, any positive scale.
        lengths: frames of every dataset.
        world: number of ranks.
        rank: this rank.
        batch: samples of one rank at one step.
        block: slots per block; None for 4096, doubled until every dataset with a weight has a slot.

    Raises:
        ValueError: sizes that do not fit, an empty dataset with a weight, a weight too small.
    """

    def __init__(
        self,
        seed: int,
        weights: Sequence[float],
        lengths: Sequence[int],
        *,
        world: int = 1,
        rank: int = 0,
        batch: int = 1,
        block: int | None = None,
    ) -> None:
        if len(weights) != len(lengths):
            raise ValueError(f"{len(weights)} weights for {len(lengths)} lengths")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not in a world of {world}")
        block = fitting_block(weights) if block is None else block
        if batch < 1 or block < 1:
            raise ValueError(f"batch and block must be at least 1, got {batch} and {block}")
        self.seed, self.world, self.rank, self.batch_size = seed, world, rank, batch
        self.block = block
        self.quotas = quotas(weights, block)
        self.lengths = np.asarray(lengths, np.int64)
        empty = np.flatnonzero((self.lengths < 1) & (self.quotas > 0))
        if empty.size:
            raise ValueError(f"dataset {int(empty[0])} has a weight but no frames; remove it")
        self._ends = np.cumsum(self.quotas)
        self._block: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def _layout(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(block,) dataset of each slot of a block, and how many of its own came before it."""
        if self._block is None or self._block[0] != block:
            key = _key(self.seed, _BLOCK_STREAM, np.array([block]))
            place = permute(np.arange(self.block), self.block, key)
            dataset = np.searchsorted(self._ends, place, side="right")
            order = np.argsort(dataset, kind="stable")
            before = np.empty(self.block, np.int64)
            before[order] = np.arange(self.block) - (self._ends - self.quotas)[dataset[order]]
            self._block = block, dataset, before
        return self._block[1:]

    @property
    def steps_per_epoch(self) -> float:
        """Steps of the world in which as many samples are drawn as the datasets drawn from have.

        With one dataset every frame comes once in them. Of several each comes as its weight says:
        `passes` tells how often.
        """
        frames = int(self.lengths[self.quotas > 0].sum())
        return frames / (self.world * self.batch_size)

    def passes(self, steps: float) -> NDArray[np.float64]:
        """(datasets,) how often the frames of each dataset come, on average, in so many steps."""
        drawn = steps * self.world * self.batch_size * self.quotas / self.block
        return np.asarray(drawn / np.maximum(self.lengths, 1))

    def draw(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n, 2) dataset and frame of global slots (n,)."""
        block, place = np.divmod(np.asarray(slots, np.int64), self.block)
        dataset, nth = np.empty_like(place), np.empty_like(place)
        for number in np.unique(block).tolist():
            here = block == number
            datasets, before = self._layout(number)
            dataset[here] = datasets[place[here]]
            nth[here] = number * self.quotas[dataset[here]] + before[place[here]]
        epoch, entry = np.divmod(nth, self.lengths[dataset])
        frame = permute(
            entry, self.lengths[dataset], _key(self.seed, _EPOCH_STREAM, dataset, epoch)
        )
        return np.stack([dataset, frame], axis=1)

    def slots(self, step: int) -> NDArray[np.int64]:
        """(batch,) global slots of this rank at a step; augmentation is seeded from them."""
        first = (step * self.world + self.rank) * self.batch_size
        return np.arange(first, first + self.batch_size, dtype=np.int64)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """(dataset, frame) of every sample of this rank at a step."""
        return [(int(d), int(f)) for d, f in self.draw(self.slots(step))]
