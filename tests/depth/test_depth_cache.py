"""Depth on disk: what hits, what does not, several writers, and damage."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spatialvla_ft.depth.cache import (
    RELATIVE_ERROR,
    CachedDepth,
    DepthCache,
    from_bytes,
    pack,
    picture_key,
    unpack,
)

KEY = bytes(range(16))


class Counting:
    """Depth that tells the picture and the estimator; counts what it was asked."""

    name = "counting"

    def __init__(self, fingerprint="a", uses_intrinsics=False):
        self.fingerprint, self.uses_intrinsics, self.asked = fingerprint, uses_intrinsics, 0

    def __call__(self, pictures, intrinsics=None):
        self.asked += len(pictures)
        depth = 1 + pictures.mean(1) + len(self.fingerprint)
        return depth * (intrinsics[:, 0, 0].view(-1, 1, 1) if self.uses_intrinsics else 1)


@pytest.fixture
def cache(tmp_path):
    return DepthCache(tmp_path / "cache")


def smooth(height=40, width=57):
    y, x = np.mgrid[:height, :width]
    return (0.4 + 0.01 * x + 0.02 * y + 3 * (x > 30)).astype(np.float32)


def pictures(count, seed=0, size=(8, 12)):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)


# ---------------------------------------------------------------- packing


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (33, 21)])
def test_packing_keeps_eleven_binary_digits(shape):
    rng = np.random.default_rng(2)
    metres = np.exp(rng.uniform(np.log(1e-4), np.log(6e4), shape)).astype(np.float32)
    metres.flat[0] = 65504
    got = unpack(pack(metres), *shape)
    assert got.dtype == np.float32
    worst = np.abs(got.astype(np.float64) / metres - 1).max()
    assert worst <= RELATIVE_ERROR
    if metres.size > 100:
        assert worst > 0.9 * RELATIVE_ERROR  # the stated error is met, not merely an upper bound


def test_a_smooth_map_takes_less_than_its_half_floats():
    metres = smooth(240, 320)
    assert len(pack(metres)) < 0.6 * metres.size * 2


@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf, 1e-6, 1e6])
def test_what_cannot_be_stored_is_refused(bad):
    metres = smooth()
    metres[3, 4] = bad
    with pytest.raises(ValueError, match=r"must be finite and .* fill holes before storing"):
        pack(metres)


# ---------------------------------------------------------------- keys


def test_keys_tell_pictures_estimators_and_cameras_apart():
    one, two = pictures(2)
    K = np.diag([50.0, 50, 1])
    keys = [
        picture_key(one, "a"),
        picture_key(two, "a"),
        picture_key(one, "b"),
        picture_key(one.reshape(12, 8, 3), "a"),
        picture_key(one.astype(np.float32), "a"),
        picture_key(one, "a", K),
        picture_key(one, "a", 1.01 * K),
    ]
    assert len(set(keys)) == len(keys)
    assert picture_key(one.copy(order="F"), "a") == keys[0]
    assert picture_key(one, "a", K.astype(np.float32)) == keys[5]


# ---------------------------------------------------------------- files


def test_a_file_comes_back_and_nothing_else_does(cache):
    assert cache.get(KEY) is None
    cache.put(KEY, smooth())
    np.testing.assert_allclose(cache.get(KEY), smooth(), rtol=RELATIVE_ERROR)
    assert cache.get(KEY[::-1]) is None
    size = cache.size()
    assert size.entries == 1
    assert size.bytes == cache.path(KEY).stat().st_size
    assert [p.suffix for p in cache.folder.rglob("*") if p.is_file()] == [".depth"]


def damage(data, how):
    middle = len(data) // 2
    return {
        "truncated": data[:middle],
        "one byte short": data[:-1],
        "empty": b"",
        "one bit": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :],
        "size": data[:8] + bytes([data[8] ^ 1]) + data[9:],
        "something else": b"PNG" * 100,
        "more behind": data + b"x",
    }[how]


@pytest.mark.parametrize(
    "how",
    ["truncated", "one byte short", "empty", "one bit", "size", "something else", "more behind"],
)
def test_damage_is_seen_said_and_repaired(cache, caplog, how):
    estimator = Counting()
    asked = CachedDepth(estimator, cache)
    batch = from_bytes(pictures(1))
    first = asked(batch)
    path = next(cache.folder.glob("??/*.depth"))
    path.write_bytes(damage(path.read_bytes(), how))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(asked(batch), first)
    assert estimator.asked == 2
    assert "damaged and will be computed again" in caplog.text
    caplog.clear()
    assert torch.equal(asked(batch), first)
    assert estimator.asked == 2
    assert not caplog.text


def test_a_file_under_another_name_is_not_believed(cache, caplog):
    cache.put(KEY, smooth())
    other = KEY[::-1]
    cache.path(other).parent.mkdir()
    cache.path(KEY).rename(cache.path(other))
    assert cache.get(other) is None
    assert "belongs to another key" in caplog.text


WRITER = """
import sys, time, numpy as np
from pathlib import Path
from spatialvla_ft.depth.cache import DepthCache
cache = DepthCache(sys.argv[1])
metres = np.full((60, 80), float(sys.argv[2]), np.float32)
while not Path(sys.argv[3]).exists():
    time.sleep(0.001)
for _ in range(300):
    cache.put(bytes(range(16)), metres)
    got = cache.get(bytes(range(16)))
    assert got is not None and (got == got[0, 0]).all() and got[0, 0] in (1, 2), got
"""


def test_two_processes_write_and_read_the_same_key(cache, tmp_path):
    start = tmp_path / "start"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(cache.folder), value, str(start)],
            env={**os.environ, "SPATIALVLA_FT_LIGHT": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for value in ("1", "2")
    ]
    start.touch()
    for process in running:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
        assert not error
    assert cache.size().entries == 1
    assert not list(cache.folder.rglob("*.writing"))


# ---------------------------------------------------------------- the estimator around it


def test_only_what_is_missing_is_estimated(cache):
    estimator = Counting()
    asked = CachedDepth(estimator, cache)
    batch = from_bytes(pictures(4))
    some = asked(batch[1:3])
    everything = asked(batch)
    assert estimator.asked == 4
    assert (asked.hits, asked.misses) == (2, 4)
    assert torch.equal(everything[1:3], some)
    torch.testing.assert_close(everything, Counting()(batch), rtol=RELATIVE_ERROR, atol=0)
    again = CachedDepth(Counting(), DepthCache(cache.folder))
    assert torch.equal(again(batch), everything)
    assert again.estimator.asked == 0


def test_a_changed_estimator_never_hits(cache):
    batch = from_bytes(pictures(2))
    CachedDepth(Counting("a"), cache)(batch)
    changed = CachedDepth(Counting("ab"), cache)
    torch.testing.assert_close(changed(batch), Counting("ab")(batch), rtol=RELATIVE_ERROR, atol=0)
    assert changed.misses == 2


def test_k_is_part_of_the_key_only_where_it_matters(cache):
    batch = from_bytes(pictures(2))
    K = torch.eye(3).expand(2, 3, 3)
    for uses, misses in ((False, 2), (True, 4)):
        asked = CachedDepth(Counting(f"uses {uses}", uses), cache)
        asked(batch, K)
        depth = asked(batch, 2 * K)
        assert asked.misses == misses
        wanted = Counting(f"uses {uses}", uses)(batch, 2 * K)
        torch.testing.assert_close(depth, wanted, rtol=RELATIVE_ERROR, atol=0)


def test_bytes_and_the_floats_made_of_them_share_an_entry(cache):
    asked = CachedDepth(Counting(), cache)
    some = pictures(1)
    asked(from_bytes(some))
    assert cache.get(asked.key(some[0], None)) is not None
    asked(from_bytes(some) * 0.999)  # no bytes make these
    assert asked.misses == 2


def test_what_the_cache_cannot_write_leaves_no_rest(cache, monkeypatch):
    def full(self, target):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        cache.put(KEY, smooth())
    assert [p for p in cache.folder.rglob("*") if p.is_file()] == []
