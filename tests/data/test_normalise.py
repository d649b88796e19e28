"""Robot units to [-1, 1] and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialvla_ft.actions.normalise import ActionStatistics, normalise, unnormalise

LOW = np.array([-0.5, -2.0, 0.25, -0.1, -0.2, -0.3, 0.0])
HIGH = np.array([0.7, 1.0, 0.75, 0.4, 0.5, 0.6, 1.0])


def statistics(low=LOW, high=HIGH, least=None, most=None):
    least = low - 1 if least is None else least
    most = high + 1 if most is None else most
    middle = (low + high) / 2
    mask = np.array([True] * (len(low) - 1) + [False])
    return ActionStatistics(middle, middle, least, most, low, high, mask)


def test_the_quantiles_become_the_ends():
    np.testing.assert_allclose(normalise(LOW, statistics())[:6], -1, atol=1e-6)
    np.testing.assert_allclose(normalise(HIGH, statistics())[:6], 1, atol=1e-6)
    middle = (LOW + HIGH) / 2
    np.testing.assert_allclose(normalise(middle, statistics())[:6], 0, atol=1e-6)


def test_outliers_are_clipped_and_the_gripper_passes():
    wild = np.array([[9, -9, 9, -9, 9, -9, 0.37]])
    expected = [[1, -1, 1, -1, 1, -1, np.float32(0.37)]]
    np.testing.assert_array_equal(normalise(wild, statistics()), expected)
    assert unnormalise(wild, statistics())[0, 6] == np.float32(0.37)


@given(st.lists(st.floats(-1, 1), min_size=7, max_size=7))
def test_there_and_back(values):
    values = np.array(values)
    back = normalise(unnormalise(values, statistics()), statistics())
    np.testing.assert_allclose(back, values, atol=1e-5)


def test_a_constant_dimension_becomes_zero_and_comes_back():
    low, high = LOW.copy(), HIGH.copy()
    low[2] = high[2] = 0.25
    constant = statistics(low, high, *(np.where(np.arange(7) == 2, 0.25, x) for x in (-9, 9)))
    raw = (low + high) / 2
    assert normalise(raw, constant)[2] == 0
    np.testing.assert_allclose(unnormalise(normalise(raw, constant), constant), raw, atol=1e-6)
    assert constant.constant.tolist() == [False, False, True, False, False, False, False]


def test_a_gripper_that_is_always_open_stays_open():
    low, high = LOW.copy(), HIGH.copy()
    low[6] = high[6] = 1.0
    always = statistics(low, high, *(np.where(np.arange(7) == 6, 1.0, x) for x in (-9, 9)))
    assert normalise((low + high) / 2, always)[6] == 1.0


def test_a_dimension_that_hardly_changes_is_found():
    low, high = LOW.copy(), HIGH.copy()
    high[1] = low[1]
    assert statistics(low, high).degenerate.tolist() == [False, True] + [False] * 5


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 4, 7)])
def test_shapes_and_type(shape):
    out = normalise(np.zeros(shape), statistics())
    assert out.shape == shape
    assert out.dtype == unnormalise(out, statistics()).dtype == np.float32


@pytest.mark.parametrize("convert", [normalise, unnormalise])
def test_errors(convert):
    with pytest.raises(ValueError, match=r"shape \(3, 6\) for statistics of 7 dimensions"):
        convert(np.zeros((3, 6)), statistics())
    with pytest.raises(ValueError, match="1 action values are NaN or infinite"):
        convert(np.array([0, 0, 0, np.inf, 0, 0, 0]), statistics())


def test_from_dict_refuses_what_does_not_fit():
    entry = statistics().to_dict()
    del entry["action"]["q99"]
    with pytest.raises(ValueError, match=r"without \['q99'\]"):
        ActionStatistics.from_dict(entry)
    entry = statistics().to_dict()
    entry["action"]["mask"] = [True]
    with pytest.raises(ValueError, match="different lengths"):
        ActionStatistics.from_dict(entry)
