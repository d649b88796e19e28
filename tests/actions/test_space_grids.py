"""Grids of two arms, of joints and without rotation, against one-arm grids and plain loops."""

import json

import numpy as np
import pytest

from spatialvla_ft.actions import ActionGrid, adapt_embeddings, fit_gaussians
from spatialvla_ft.actions.grid_io import (
    from_processor_config,
    load_grid,
    save_grid,
    to_processor_config,
)
from spatialvla_ft.actions.spaces import (
    ActionGroup,
    ActionSpace,
    end_effector_delta,
    joint_space,
    translation_delta,
    two_arms_delta,
)

RNG = np.random.default_rng(3)
ARM = (5, 7, 3, 4, 6, 2, 2)
OTHER = (3, 4, 2, 5, 2, 3, 2)
TWO = np.concatenate(
    [RNG.normal(0.1, 0.3, (400, 7)), RNG.normal(-0.2, 0.5, (400, 7))], axis=1
).clip(-1, 1)
JOINTS = RNG.uniform(-1, 1, (300, 8))
FLAT = RNG.normal(0, 0.4, (300, 4)).clip(-1, 1)


def one_arm(columns, bins):
    return ActionGrid.from_gaussians(fit_gaussians(columns), bins=bins)


def two_arms():
    space = two_arms_delta()
    return ActionGrid.from_gaussians(fit_gaussians(TWO, space), space=space, bins=ARM + OTHER)


SPACES = {
    "one arm": (end_effector_delta(), TWO[:, :7]),
    "two arms": (two_arms_delta(5.0), TWO),
    "joints": (joint_space(7, 10.0), JOINTS),
    "no rotation": (translation_delta(), FLAT),
}


@pytest.fixture(params=SPACES)
def robot(request):
    return SPACES[request.param]


def test_two_arms_are_two_grids_side_by_side():
    grid = two_arms()
    parts = [one_arm(TWO[:, :7], ARM), one_arm(TWO[:, 7:], OTHER)]
    ids = [part.encode(TWO[:, 7 * i : 7 * i + 7]) for i, part in enumerate(parts)]
    wanted = np.concatenate([ids[0], ids[1] + parts[0].total], axis=1)
    np.testing.assert_array_equal(grid.encode(TWO), wanted)
    decoded = np.concatenate([p.decode(i) for p, i in zip(parts, ids, strict=True)], axis=1)
    np.testing.assert_array_equal(grid.decode(wanted), decoded)
    assert (grid.dim, grid.tokens, grid.total) == (14, 6, parts[0].total + parts[1].total)
    assert [slot.name for slot in grid.slots[3:]] == [
        "right_translation", "right_rotation", "right_gripper",
    ]  # fmt: skip


def test_joints_have_a_token_each():
    space = joint_space(7)
    grid = ActionGrid.uniform(space=space, bins=(*range(40, 47), 2))
    ids = grid.encode(JOINTS)
    first = 0
    for joint, n in enumerate(range(40, 47)):
        bin_of = np.minimum(np.floor((JOINTS[:, joint] + 1) / 2 * n), n - 1)
        np.testing.assert_array_equal(ids[:, joint], first + bin_of)
        centre = (bin_of + 0.5) / n * 2 - 1
        np.testing.assert_allclose(grid.decode(ids)[:, joint], centre, atol=1e-12)
        first += n
    np.testing.assert_array_equal(ids[:, 7], first + (JOINTS[:, 7] >= 0.5))
    assert ActionGrid.uniform(space=space).bins == (256,) * 7 + (2,)


def test_a_robot_that_cannot_turn_has_two_tokens():
    arm = np.concatenate([FLAT[:, :3], np.zeros((300, 3)), FLAT[:, 3:]], axis=1)
    grid = ActionGrid.uniform(space=translation_delta(), bins=(5, 7, 3, 2))
    whole = ActionGrid.uniform(bins=(5, 7, 3, 1, 1, 1, 2))
    ids = whole.encode(arm)
    wanted = np.stack([ids[:, 0], ids[:, 2] - 1], axis=1)
    np.testing.assert_array_equal(grid.encode(FLAT), wanted)
    np.testing.assert_array_equal(grid.decode(wanted), whole.decode(ids)[:, [0, 1, 2, 6]])


def test_ids_of_slots_follow_one_another(robot):
    space, actions = robot
    grid = ActionGrid.from_quantiles(actions, space=space)
    assert grid.offsets[0] == 0
    assert sum(grid.counts) == grid.total
    for start, count, after in zip(
        grid.offsets, grid.counts, (*grid.offsets[1:], grid.total), strict=True
    ):
        assert start + count == after
    ids = grid.encode(actions)
    assert ((ids >= grid.offsets) & (ids < np.add(grid.offsets, grid.counts))).all()


def test_few_rows_and_many_agree(robot):
    space, actions = robot
    for grid in (
        ActionGrid.from_quantiles(actions, space=space),
        ActionGrid.from_gaussians(fit_gaussians(actions, space), space=space),
    ):
        few = np.concatenate([grid.encode(actions[i : i + 3]) for i in range(0, 60, 3)])
        ids = grid.encode(actions)
        np.testing.assert_array_equal(ids[:60], few)
        for mode in ("mean", "midpoint"):
            parts = [grid.decode(ids[i : i + 3], mode=mode) for i in range(0, 60, 3)]
            np.testing.assert_array_equal(grid.decode(ids, mode=mode)[:60], np.concatenate(parts))
        for wrong in (grid.total, grid.offsets[-1] - 1, -1):
            ids[1, -1] = wrong
            with pytest.raises(ValueError, match=rf"ids\[1, {grid.tokens - 1}\] is {wrong}"):
                grid.decode(ids[:3])


def test_quantile_edges_hold_equal_numbers():
    space = joint_space(7)
    grid = ActionGrid.from_quantiles(JOINTS, space=space, bins=(10,) * 7 + (2,))
    for axis, edges in grid.edges.items():
        column = JOINTS[:, space.names.index(axis)]
        assert np.ptp(np.histogram(column, edges)[0]) <= 2


def test_with_means_is_the_mean_of_each_bin():
    grid = ActionGrid.uniform(space=joint_space(7), bins=(9,) * 7 + (2,)).with_means(JOINTS[:20])
    for axis, edges in grid.edges.items():
        column = JOINTS[:20, grid.action_space.names.index(axis)]
        for i, mean in enumerate(grid.means[axis]):
            inside = [v for v in column if edges[i] <= v < edges[i + 1]]
            wanted = sum(inside) / len(inside) if inside else (edges[i] + edges[i + 1]) / 2
            assert mean == pytest.approx(wanted, abs=1e-12)


def test_data_means_mend_a_pile_at_the_edge():
    """Actions clipped at 1 pile up there; the mean of the fitted Gaussian's last bin does not."""
    actions = np.zeros((1000, 7))
    actions[:, 5] = np.clip(RNG.normal(0, 1.5, 1000), -1, 1)
    actions[:, :5] = RNG.normal(0, 0.2, (1000, 5))
    grid = ActionGrid.from_gaussians(fit_gaussians(actions), bins=(4, 4, 4, 4, 4, 5, 2))

    def error(which, mode):
        decoded = which.decode(which.encode(actions), mode=mode)
        return np.sqrt(np.mean((decoded - actions)[:, 5] ** 2))

    ours = error(grid.with_means(actions), "mean")
    assert ours < 0.8 * error(grid, "mean")
    assert ours < 0.8 * error(grid, "midpoint")


def test_files(robot, tmp_path):
    space, actions = robot
    grid = ActionGrid.from_quantiles(actions, space=space, zero_bin=space.deltas.any())
    config = json.loads(json.dumps(to_processor_config(grid)))
    assert ("action_grid" in config) == (space.dim != 7)
    assert ("bin_policy" in config) == (space.dim == 7)
    again = from_processor_config(config)
    save_grid(grid, tmp_path / "grid.json")
    for other in (again, load_grid(tmp_path / "grid.json")):
        assert other == grid
        np.testing.assert_array_equal(other.decode(other.encode(actions)), grid.decode(
            grid.encode(actions)))  # fmt: skip
    assert again.action_space.names == space.names
    if space.dim != 7:
        assert again.action_space == space
        config["action_grid"]["token_counts"][0] += 1
        with pytest.raises(ValueError, match="token_counts says"):
            from_processor_config(config)


def test_refusals():
    grid = two_arms()
    with pytest.raises(ValueError, match=r"\(n, 14\).*right_yaw.*\(3, 7\)"):
        grid.encode(np.zeros((3, 7)))
    with pytest.raises(ValueError, match=r"\[0, 9\] \(right_z\) is nan"):
        grid.encode(np.where(np.arange(14) == 9, np.nan, 0.0)[None])
    with pytest.raises(ValueError, match=r"shape \(n, 6\).*\(n, 6\)|chunk, 6"):
        grid.decode(np.zeros((2, 3), int))
    ids = grid.encode(TWO[:20])
    ids[12, 3] = grid.offsets[4]
    with pytest.raises(ValueError, match=r"ids\[12, 3\] is \d+, no right_translation id"):
        grid.decode(ids)
    with pytest.raises(ValueError, match="bins needs 14 counts"):
        ActionGrid.uniform(space=two_arms_delta(), bins=ARM)
    arm = end_effector_delta().groups
    with pytest.raises(ValueError, match="several dimensions called"):
        ActionGrid.uniform(space=ActionSpace((*arm, *arm)))
    with pytest.raises(ValueError, match="role 'wheel'"):
        ActionSpace.from_dict({"groups": [{"role": "wheel", "names": [], "unit": "", "frame": ""}]})


def test_two_arms_adapt_from_one():
    base = one_arm(TWO[::2, :7], ARM)
    grid = two_arms()
    table = RNG.normal(0, 1, (base.total, 6))
    wanted = [
        adapt_embeddings(table, base, one_arm(TWO[:, 7 * i : 7 * i + 7], bins))
        for i, bins in enumerate((ARM, OTHER))
    ]
    np.testing.assert_array_equal(adapt_embeddings(table, base, grid), np.concatenate(wanted))


def test_equal_slots_are_copied_bit_by_bit():
    base = one_arm(TWO[:, :7], ARM)
    table = RNG.normal(0, 1, (base.total, 4)).astype(np.float16)
    grid = ActionGrid.from_boundaries(
        {a: base.edges[a] for a in ("theta", "phi", "r")}, space=translation_delta()
    )
    got = adapt_embeddings(table, base, grid)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, np.concatenate([table[: base.counts[0]], table[-2:]]))
    joints = ActionGrid.uniform(space=joint_space(3), bins=(4, 5, 6, 2))
    rows = RNG.normal(0, 1, (joints.total, 4))
    np.testing.assert_array_equal(adapt_embeddings(rows, joints, joints), rows)


def test_joints_learn_from_their_own_name_or_start_fresh():
    base = ActionGrid.uniform(space=joint_space(2), bins=(4, 4, 2))
    more = ActionGrid.uniform(space=joint_space(3), bins=(8, 4, 5, 2))
    table = np.repeat(
        [[0.0], [1.0], [2.0], [3.0], [7.0], [7.5], [8.0], [9.0], [-1.0], [-2.0]], 2, 1
    )
    with pytest.raises(ValueError, match="no slot for 'joint_3'"):
        adapt_embeddings(table, base, more)
    fresh = np.arange(more.total * 2.0).reshape(-1, 2) + 100
    got = adapt_embeddings(table, base, more, fresh=fresh)
    centres = np.linspace(-1, 1, 9)[:-1] + 1 / 8
    np.testing.assert_allclose(got[:8, 0], np.interp(centres, [-0.75, -0.25, 0.25, 0.75], range(4)))
    np.testing.assert_array_equal(got[8:12], table[4:8])
    np.testing.assert_array_equal(got[12:17], fresh[12:17])
    np.testing.assert_array_equal(got[17:], table[8:])


def test_a_lone_rotation_axis_is_a_line():
    groups = (ActionGroup("rotation", ("yaw",), "rad", "base", delta=True),)
    grid = ActionGrid.uniform(space=ActionSpace(groups))
    assert (grid.tokens, grid.bins) == (1, (256,))
