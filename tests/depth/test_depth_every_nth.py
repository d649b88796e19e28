"""Every n-th picture: which depth an episode gets when; and what a cheaper way costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spatialvla_ft.bench.depth import compare
from spatialvla_ft.depth import every_nth
from spatialvla_ft.depth.every_nth import EveryNth


class Brightness:
    """Depth is 1 + the picture's red channel, times `factor`."""

    uses_intrinsics = False

    def __init__(self, factor=1.0):
        self.name, self.fingerprint, self.factor = "brightness", f"b{factor}", factor
        self.asked = []

    def __call__(self, pictures, intrinsics=None):
        self.asked.append([round(float(p[0, 0, 0]), 4) for p in pictures])
        return self.factor * (1 + pictures[:, 0])


def frames(*values, size=(4, 6)):
    return torch.stack([torch.full((3, *size), value) for value in values])


def read(depth):
    return [round(float(d[0, 0]) - 1, 4) for d in depth]


def test_each_episode_counts_its_own_pictures():
    asked = EveryNth(Brightness(), 3)
    got = [
        read(asked(frames(0.1, 0.5), episodes=["a", "b"])),
        read(asked(frames(0.2), episodes=["a"])),
        read(asked(frames(0.6, 0.3), episodes=["b", "a"])),
        read(asked(frames(0.4, 0.7), episodes=["a", "b"])),
        read(asked(frames(0.8), episodes=["b"])),
    ]
    assert got == [[0.1, 0.5], [0.1], [0.5, 0.1], [0.4, 0.5], [0.8]]
    assert asked.estimator.asked == [[0.1, 0.5], [0.4], [0.8]]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_picture_k_gets_the_depth_of_the_last_multiple_of_n(n):
    asked = EveryNth(Brightness(), n)
    for k in range(12):
        assert read(asked(frames(k / 20), episodes=[7])) == [n * (k // n) / 20]


def test_what_starts_an_episode_anew(monkeypatch):
    asked = EveryNth(Brightness(), 10)
    asked(frames(0.1), episodes=[1])
    assert read(asked(frames(0.2), episodes=[1])) == [0.1]
    assert read(asked(frames(0.3), episodes=[1], fresh=[True])) == [0.3]
    assert read(asked(frames(0.4), episodes=[1], fresh=[False])) == [0.3]
    assert read(asked(frames(0.5, size=(6, 4)), episodes=[1])) == [0.5]
    monkeypatch.setattr(every_nth, "REMEMBERED_EPISODES", 2)
    asked(frames(0.6, 0.7), episodes=[2, 3])
    assert read(asked(frames(0.8, size=(6, 4)), episodes=[1])) == [0.8]
    assert read(asked(frames(0.9), episodes=[3])) == [0.7]


def test_without_episodes_every_picture_is_estimated():
    asked = EveryNth(Brightness(), 4)
    for value in (0.1, 0.2):
        assert read(asked(frames(value))) == [value]


@pytest.mark.parametrize("episodes", [[1, 1], [1], [1, 2, 3]])
def test_episodes_must_name_each_picture_once(episodes):
    with pytest.raises(ValueError, match="must name each of the 2 pictures once"):
        EveryNth(Brightness(), 2)(frames(0.1, 0.2), episodes=episodes)


def test_n_must_be_positive_and_counts_in_the_fingerprint():
    with pytest.raises(ValueError, match=r"n must be at least 1 .* got 0"):
        EveryNth(Brightness(), 0)
    prints = {EveryNth(Brightness(), n).fingerprint for n in (1, 2)} | {Brightness().fingerprint}
    assert len(prints) == 3


def test_a_comparison_counts_pixels():
    """Half of the pixels 20 % too far, half 30 % too near, against a loop by hand."""

    class Off(Brightness):
        def __call__(self, pictures, intrinsics=None):
            depth = super().__call__(pictures)
            return torch.where(torch.arange(depth.shape[-1]) % 2 == 0, 1.2 * depth, 0.7 * depth)

    batches = [frames(0.1, 0.9), frames(0.4, size=(2, 8))]
    got = compare(Brightness(), Off(), batches)
    errors, near = [], []
    for batch in batches:
        for picture in batch:
            for column in range(picture.shape[-1]):
                factor = 1.2 if column % 2 == 0 else 0.7
                errors += [abs(factor - 1)] * picture.shape[1]
                near += [max(factor, 1 / factor) < 1.25] * picture.shape[1]
    assert got.pictures == 3
    assert got.abs_rel == pytest.approx(np.mean(errors), rel=1e-5)
    assert got.delta1 == pytest.approx(np.mean(near))
    assert got.to_dict()["ms_ratio"] == got.cheaper_ms / got.full_ms > 0


def test_a_comparison_of_equals_and_of_nothing():
    same = compare(Brightness(), Brightness(), [frames(0.3)])
    assert (same.abs_rel, same.delta1) == (0, 1)
    with pytest.raises(ValueError, match="no pictures to compare on"):
        compare(Brightness(), Brightness(), [])
