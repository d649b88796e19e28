"""Wilson's interval against SciPy's."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from spatialvla_ft.evaluation.outcome import wilson_interval


@pytest.mark.parametrize("trials", [1, 2, 7, 50, 333])
def test_against_scipy(trials):
    for successes in {0, 1, trials // 3, trials - 1, trials}:
        wanted = binomtest(successes, trials).proportion_ci(method="wilson")
        got = wilson_interval(successes, trials)
        assert got == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_another_level():
    wanted = binomtest(9, 20).proportion_ci(0.8, method="wilson")
    assert wilson_interval(9, 20, z=1.2815515655446004) == pytest.approx(tuple(wanted), abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match="need 0 <= successes <= trials and trials >= 1"):
        wilson_interval(successes, trials)
