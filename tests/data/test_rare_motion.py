"""Rare motion through statistics, normalisation, grid and back, in robot units against an oracle.

The oracle knows the recorded numbers and asks one thing of every step: what comes back is as near
as the grid says, or as the ends of the range that the statistics state, and a dimension that loses
motion is named.
"""

import json

import numpy as np
import pytest
from array_store import JOINTS, array_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialvla_ft.actions.fit import KINDS
from spatialvla_ft.actions.grid import ActionGrid
from spatialvla_ft.actions.normalise import ActionStatistics, normalise, unnormalise
from spatialvla_ft.actions.ranges import CLIPPED, lost_dimensions, lost_words, widened_words
from spatialvla_ft.actions.reconstruction import motion_errors
from spatialvla_ft.actions.spaces import end_effector_delta, joint_space, two_arms_delta
from spatialvla_ft.data.stats.fits import MixtureActions
from spatialvla_ft.data.stats.statistics import (
    compute_statistics,
    dataset_statistics,
    normalised_dimensions,
    streamed_statistics,
)
from spatialvla_ft.inspection import motion
from spatialvla_ft.inspection.series import Series
from spatialvla_ft.training.preflight.grid import coarse_motion

YAW = 5


def recorded(steps=4000, share=0.012, size=0.2, noise=0.0, seed=0):
    """(steps, 7) of an arm that moves all the time, but turns its hand in a small share of them."""
    rng = np.random.default_rng(seed)
    actions = rng.normal(size=(steps, 7)) * [0.02, 0.03, 0.01, 0.1, 0.08, noise, 0]
    turning = np.zeros(steps, bool)
    turning[rng.choice(steps, max(1, round(share * steps)), replace=False)] = True
    actions[turning, YAW] = size * rng.choice([-1, 1], turning.sum())
    actions[:, 6] = rng.random(steps) < 0.5
    return actions.astype(np.float32), turning


def one_arm(actions, folder, length=100, **more):
    episodes = [{"action": part} for part in np.split(actions, len(actions) // length)]
    return array_dataset(episodes, folder, **more)


def there_and_back(actions, known, grid):
    return unnormalise(grid.decode(grid.encode(normalise(actions, known))), known)


@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rare_turn_comes_back_in_radians(tmp_path, kind, noise):
    actions, turning = recorded(noise=noise)
    dataset = one_arm(actions, tmp_path)
    known = dataset_statistics(dataset)
    grid = MixtureActions([dataset], {dataset.name: known}, [1.0]).grid(kind)
    back = there_and_back(actions, known, grid)
    turns = actions[turning, YAW]
    assert np.abs(turns).min() == pytest.approx(0.2)
    np.testing.assert_allclose(back[turning, YAW], turns, atol=0.02)
    # Resting stays resting: to a width of the uniform grid, to the noise of the others.
    assert np.abs(back[~turning, YAW]).max() < (0.03 if kind == "uniform" else 5 * noise + 1e-6)
    # The released numbers lose all of it; that is what is told of them.
    plain = known.by_quantiles()
    lost = there_and_back(actions, plain, grid)
    assert np.abs(lost[turning, YAW]).max() < 4 * noise + 1e-9
    assert lost_dimensions(plain, actions.astype(float)).tolist() == [i == YAW for i in range(7)]
    assert not lost_dimensions(known, actions.astype(float)).any()


def test_what_is_told(tmp_path):
    actions, _ = recorded()
    space = end_effector_delta()
    known = dataset_statistics(one_arm(actions, tmp_path))
    plain = known.by_quantiles()
    assert lost_words(plain, plain.degenerate, space.names, space.units) == [
        "every yaw decodes to 0 rad; the data reach 0.2"
    ]
    assert widened_words(known, space.names, space.units) == [
        "yaw seldom moves: its range is -0.2 to 0.2 rad, since q01..q99 (0 to 0) would clip the "
        "motion away"
    ]
    assert widened_words(plain, space.names, space.units) == []


def test_only_what_is_lost_is_widened_and_the_layout_says_both():
    actions, _ = recorded()
    known = compute_statistics(actions, np.arange(7) < 6)
    assert known.widened.tolist() == [i == YAW for i in range(7)]
    q01, q99 = np.quantile(actions, [0.01, 0.99], axis=0)
    ordinary = np.arange(7) != YAW
    np.testing.assert_array_equal(known.q01[ordinary], q01[ordinary].astype(float))
    np.testing.assert_array_equal(known.q99[ordinary], q99[ordinary].astype(float))
    assert (known.q01[YAW], known.q99[YAW]) == pytest.approx((-0.2, 0.2))
    entry = json.loads(json.dumps(known.to_dict()))
    # What every reader of the released layout takes is the range in use.
    assert entry["action"]["q99"][YAW] == pytest.approx(0.2)
    assert entry["action"]["quantiles"]["q99"][YAW] == 0
    again = ActionStatistics.from_dict(entry)
    assert again.to_dict() == known.to_dict()
    assert again.widened.tolist() == known.widened.tolist()
    # Statistics without a word of quantiles, as released ones are, are taken as they are.
    released = ActionStatistics.from_dict(known.by_quantiles().to_dict())
    assert "quantiles" not in released.to_dict()["action"]
    assert released.degenerate.tolist() == [i == YAW for i in range(7)]
    assert released.q99[YAW] == 0


def test_joints_rest_where_they_rest(tmp_path):
    """A joint that hardly ever leaves 1.2 rad: rest is the middle of its range, not 0."""
    rng = np.random.default_rng(3)
    actions = rng.normal(size=(3000, 7))
    actions[:, 2] = 1.2
    actions[:9, 2] = np.linspace(0.9, 1.1, 9)
    dataset = one_arm(actions.astype(np.float32), tmp_path, action=JOINTS)
    known = dataset_statistics(dataset)
    assert known.widened.tolist() == [i == 2 for i in range(7)]
    assert (known.q01[2], known.q99[2]) == pytest.approx((0.9, 1.5))
    grid = MixtureActions([dataset], {dataset.name: known}, [1.0]).grid("quantile")
    back = there_and_back(dataset.actions(), known, grid)
    np.testing.assert_allclose(back[:, 2], actions[:, 2], atol=2e-3)


def test_two_arms_and_a_gripper_that_seldom_closes():
    actions = np.concatenate([recorded(seed=1)[0], recorded(seed=2)[0]], axis=1)
    actions[:, [6, 13]] = 1
    actions[:20, [6, 13]] = 0
    space = two_arms_delta()
    known = compute_statistics(actions, normalised_dimensions(space), units=space.units)
    assert np.flatnonzero(known.widened).tolist() == [YAW, 7 + YAW]
    assert normalise(actions, known)[:, 6].tolist() == actions[:, 6].tolist()
    names = [words.split()[0] for words in widened_words(known, space.names, space.units)]
    assert names == ["left_yaw", "right_yaw"]


ORDINARY = {
    "normal": lambda rng, n: rng.normal(size=n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "heavy tails": lambda rng, n: rng.standard_t(3, n),
    "one-sided": lambda rng, n: rng.exponential(size=n),
    "two poses": lambda rng, n: rng.choice([0.1, 1.2], n, p=[0.1, 0.9]) + rng.normal(size=n) / 99,
    "moves in a tenth": lambda rng, n: rng.normal(size=n) * (rng.random(n) < 0.1),
    "constant": lambda rng, n: np.full(n, 0.3),
}


@pytest.mark.parametrize("glitches", [0, 1, 2])
@pytest.mark.parametrize("n", [300, 5000])
@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_dimensions_keep_their_quantiles(kind, n, glitches):
    """Even where a step or two are a thousand times too far out."""
    column = ORDINARY[kind](np.random.default_rng(n), n)
    if kind != "constant":
        column[:glitches] = 1000
    column = column[:, None].astype(np.float32)
    known = compute_statistics(column, np.ones(1, bool), units=["rad"])
    assert known.quantiles is None
    low, high = np.quantile(column, [0.01, 0.99])
    assert (known.q01[0], known.q99[0]) == (np.float64(low), np.float64(high))


@pytest.mark.parametrize("buffer_rows", [0, 10**6])
@pytest.mark.parametrize("share", [0.0005, 0.03])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_stream_finds_the_same_ranges(share, noise, buffer_rows):
    actions, _ = recorded(share=share, noise=noise)
    mask, units = np.arange(7) < 6, end_effector_delta().units
    wanted = compute_statistics(actions, mask, units=units)
    blocks = [(part, 1.0) for part in np.array_split(actions, 7)]
    found = streamed_statistics(lambda: iter(blocks), mask, units=units, buffer_rows=buffer_rows)
    assert found.widened.tolist() == wanted.widened.tolist()
    np.testing.assert_allclose(found.q01, wanted.q01, rtol=1e-12)
    np.testing.assert_allclose(found.q99, wanted.q99, rtol=1e-12)


def test_statistics_kept_before_are_made_anew(tmp_path):
    """Those on disk that know nothing of wider ranges are not taken for those that do."""
    actions, _ = recorded()
    plain = compute_statistics(actions, np.arange(7) < 6).by_quantiles()
    dataset = one_arm(actions, tmp_path)
    from spatialvla_ft.data.stats.kept import content_key

    (tmp_path / f"{content_key(dataset)}.actions.json").write_text(json.dumps(plain.to_dict()))
    assert dataset_statistics(dataset).widened[YAW]


def test_the_inspection_tells_rare_motion_from_noise():
    actions, turning = recorded(noise=1e-5)
    lengths = np.full(40, 100)
    names, units = end_effector_delta().names[:6], end_effector_delta().units[:6]
    series = Series(actions[:, :6].astype(np.float64), lengths)
    (finding,) = motion.rare_motion(series, names, units)
    assert finding.where == "action yaw"
    assert "reach" in finding.evidence
    assert "0.2 rad" in finding.evidence
    assert "-0.2..0.2" in finding.cure
    assert motion.hardly_moves(series, names, units) == []
    assert [f.where for f in motion.outliers(series, names, range(40))] == ["action yaw"]
    assert motion.outliers(series, names, range(40), [finding.where]) == []
    still = actions[~turning][:3900]
    series = Series(still[:, :6].astype(np.float64), np.full(39, 100))
    assert motion.rare_motion(series, names, units) == []
    (noise,) = motion.hardly_moves(series, names, units)
    assert noise.where == "action yaw"


# ------------------------------------------------------------------ any data at all

COLUMNS = {
    "dense": lambda rng, n: rng.normal(size=n) * rng.uniform(0.01, 1),
    "constant": lambda rng, n: np.full(n, rng.choice([0.0, 0.7, -2.0])),
    "rare": lambda rng, n: rng.normal(size=n) * (rng.random(n) < rng.uniform(0.0005, 0.08)),
    "rare, one size": lambda rng, n: 0.2 * (rng.random(n) < rng.uniform(0.0005, 0.08)),
    "rare over noise": lambda rng, n: (
        rng.normal(size=n) * 10 ** rng.uniform(-6, -3)
        + 0.3 * (rng.random(n) < rng.uniform(0.002, 0.05))
    ),
    "noise": lambda rng, n: rng.normal(size=n) * 10 ** rng.uniform(-7, -4.5),
    "heavy tails": lambda rng, n: rng.standard_t(3, n) * 0.05,
    "a glitch": lambda rng, n: np.where(np.arange(n) == n // 2, 50.0, rng.normal(size=n) * 0.1),
    "rests off zero": lambda rng, n: 1.3 - 0.4 * (rng.random(n) < 0.01),
}
SPACES = [end_effector_delta(), two_arms_delta(), joint_space(5), joint_space(3, delta=True)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.sampled_from([150, 900, 3000]),
    space=st.sampled_from(SPACES),
    kind=st.sampled_from(KINDS),
)
def test_no_motion_is_lost_unsaid(seed, steps, space, kind):
    rng = np.random.default_rng(seed)
    chosen = rng.choice(list(COLUMNS), space.dim)
    raw = np.stack([COLUMNS[name](rng, steps) for name in chosen], axis=1)
    arm = normalised_dimensions(space)
    raw[:, ~arm] = rng.random((steps, int((~arm).sum()))) < 0.5
    raw = raw.astype(np.float32)
    known = compute_statistics(raw, arm, units=space.units)
    values = normalise(raw, known)
    grid = _fitted(kind, values, space)
    back = unnormalise(grid.decode(grid.encode(values)), known).astype(np.float64)
    stated = np.abs(grid.decode(grid.encode(values)) - values).max(axis=0)
    wide = raw.astype(np.float64)
    for i in np.flatnonzero(arm):
        half = (known.q99[i] - known.q01[i]) / 2
        slack = 1e-5 * (half + np.abs(wide[:, i]).max()) + 1e-7
        inside = np.clip(wide[:, i], known.q01[i], known.q99[i])
        # Within the range the grid's loss bounds the error, in robot units.
        assert np.abs(back[:, i] - inside).max() <= stated[i] * half + slack, chosen[i]
        # What the range itself takes away is little, or it would have been widened.
        rest = np.median(wide[:, i])
        few = 2 + steps // 1000  # on either side count for nothing: they may be glitches
        order = np.argsort(wide[:, i])[few:-few]
        moved = np.abs(wide[order, i] - rest).sum()
        kept = np.abs(inside[order] - rest).sum()
        assert kept >= (1 - CLIPPED) * moved, chosen[i]
        assert not known.degenerate[i]
    # The bins keep it apart from rest, or it is said of which dimension they do not.
    errors, told = motion_errors(grid, values), " ".join(coarse_motion(grid, values))
    for slot in grid.slots:
        for i in range(slot.start, slot.stop) if slot.shape == "lines" else ():
            if kind == "quantile":
                assert errors[i] < 0.5, chosen[i]
            assert errors[i] < 0.5 or f"{space.names[i]} by " in told, (chosen[i], errors[i])
    assert not lost_dimensions(known, wide).any()


def _fitted(kind, values, space):
    if kind == "quantile":
        return ActionGrid.from_quantiles(values, space=space)
    if kind == "uniform":
        return ActionGrid.uniform(space=space).with_means(values)
    from spatialvla_ft.actions.fit import fit_grid

    return fit_grid("gaussian", values, space=space)
