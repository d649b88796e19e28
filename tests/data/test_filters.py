"""Filters of a mixture against loops over the same episodes, and chunks at the end of episodes."""

import logging

import numpy as np
import pytest
from array_store import JOINTS, array_dataset
from pydantic import ValidationError

from spatialvla_ft.data import DatasetError
from spatialvla_ft.data.filters import Failed, NoOps, Validation, divide, drop_failed
from spatialvla_ft.data.mixtures import Part
from spatialvla_ft.data.stats.statistics import dataset_statistics


def robot_episodes(count=14, seed=0):
    """Episodes that stand still for stretches, close the gripper at times, and end in success."""
    rng = np.random.default_rng(seed)
    episodes = []
    for number in range(count):
        length = int(rng.integers(3, 30))
        action = rng.normal(size=(length, 7)) * [0.02, 0.03, 0.01, 0.1, 0.1, 0.2, 0]
        action[rng.random(length) < 0.4, :6] = 0
        small = rng.random(length) < 0.2
        action[small, :6] *= 1e-5
        action[:, 6] = np.cumsum(rng.random(length) < 0.15) % 2
        episodes.append(
            {
                "action": action.astype(np.float32),
                "success": np.arange(length) == length - 1
                if number % 3
                else np.zeros(length, bool),
                "outcome": np.array(b"good" if number % 3 else b"bad", object),
                "uid": np.array(1000 + 7 * number),
                "state": rng.normal(size=(length, 4)).astype(np.float32),
            }
        )
    return episodes


def moving(action, spread, tolerance, *, positions):
    """The rule, one step at a time."""
    keep = []
    kept_place, kept_hand = None, action[0][6]
    for step in action.astype(np.float64):
        arm = 2 * step[:6] / spread[:6]
        if positions:
            still = kept_place is not None and np.abs(arm - kept_place).max() <= tolerance
        else:
            still = np.abs(arm).max() <= tolerance
        still = still and abs(step[6] - kept_hand) <= tolerance
        if not still:
            kept_place, kept_hand = arm, step[6]
        keep.append(not still)
    return np.array(keep)


@pytest.mark.parametrize("kind", ["deltas", "joint positions", "soft gripper"])
def test_steps_without_motion(tmp_path, kind, caplog):
    episodes = robot_episodes()
    positions = kind == "joint positions"
    for episode in episodes:
        if positions:  # creeps at less than the tolerance per step, too
            creep = np.cumsum(episode["action"][:, :6] + 3e-6, axis=0)
            episode["action"][:, :6] = creep
        if kind == "soft gripper":
            episode["action"][:, 6] = np.linspace(0, 0.02, len(episode["action"]))
    whole = array_dataset(episodes, tmp_path, **({"action": JOINTS} if positions else {}))
    everything = np.concatenate([episode["action"] for episode in episodes])
    q01, q99 = np.quantile(everything, [0.01, 0.99], axis=0)
    with caplog.at_level(logging.INFO):
        dataset, held = divide(whole, split="train", no_ops=NoOps(tolerance=1e-3))
    assert held is None
    kept = [
        moving(episode["action"], q99 - q01 + 1e-8, 1e-3, positions=positions)
        for episode in episodes
    ]
    assert dataset.episode_lengths.tolist() == [int(k.sum()) for k in kept]
    frame = 0
    for number, (episode, keep) in enumerate(zip(episodes, kept, strict=True)):
        left = episode["action"][keep]
        for row in range(len(left)):
            sample = dataset[frame]
            frame += 1
            chunk = [left[min(row + k, len(left) - 1)] for k in range(4)]
            np.testing.assert_array_equal(sample.actions, chunk)
            assert sample.valid.tolist() == [row + k < len(left) for k in range(4)]
            assert (sample.episode, sample.step) == (number, np.flatnonzero(keep)[row])
    assert frame == len(dataset) < len(whole)
    gone = len(everything) - frame
    assert dataset.dropped == {"steps without motion": (gone, len(everything))}
    assert f"{gone} of {len(everything)} steps without motion dropped" in caplog.text
    # Statistics are of the steps that are left.
    found = dataset_statistics(dataset)
    left = np.concatenate([e["action"][k] for e, k in zip(episodes, kept, strict=True)])
    np.testing.assert_allclose(found.mean, left.astype(np.float64).mean(0), atol=1e-12)
    assert found.num_transitions == frame
    assert dataset_statistics(whole).num_transitions == len(everything)


def test_nothing_is_read_again(tmp_path):
    rules = {
        "no_ops": NoOps(),
        "failed": Failed(key="success"),
        "validation": Validation(fraction=0.3),
    }
    episodes = robot_episodes()
    for turn in range(2):
        whole = array_dataset(episodes, tmp_path)
        train, held = divide(whole, split="train", **rules)
        for part in (train, held):
            dataset_statistics(part)
            assert len(part) > 0
        assert bool(whole.store.reads) == (turn == 0)
    changed = array_dataset(episodes, tmp_path)
    divide(changed, split="train", **{**rules, "no_ops": NoOps(tolerance=0.1)})
    assert changed.store.reads


@pytest.mark.parametrize(
    "rule",
    [Failed(key="success"), Failed(key="outcome", value="bad"), Failed(key="success", value=0)],
)
def test_failed_episodes(tmp_path, rule):
    """Per step the last counts: success is false in nearly every step of good episodes."""
    dataset = drop_failed(array_dataset(robot_episodes(), tmp_path), rule)
    assert dataset.episodes.tolist() == [n for n in range(14) if n % 3]
    assert dataset.dropped == {"failed episodes": (5, 14)}


def test_failed_without_the_column(tmp_path):
    dataset = array_dataset(robot_episodes(), tmp_path)
    with pytest.raises(
        DatasetError, match=r"no column 'succes'; there are \['action', 'outcome', "
    ):
        drop_failed(dataset, Failed(key="succes"))
    with pytest.raises(DatasetError, match="holds 'bad', which cannot be compared with False"):
        drop_failed(dataset, Failed(key="outcome"))
    for episode in dataset.store.episodes:
        episode["success"] = np.zeros(1, bool)
    with pytest.raises(DatasetError, match="is False in all 14 episodes, so none is left"):
        drop_failed(dataset, Failed(key="success"))


def test_nothing_moves(tmp_path):
    dataset = array_dataset(robot_episodes(), tmp_path)
    with pytest.raises(DatasetError, match="no step moves by more than 1e\\+09"):
        divide(dataset, split="train", no_ops=NoOps(tolerance=1e9))


@pytest.mark.parametrize("key", [None, "uid"])
def test_more_episodes_leave_the_earlier_ones_on_their_side(tmp_path, key):
    rule = Validation(fraction=0.2, key=key)
    held = {}
    for count in (60, 200):
        dataset = array_dataset(robot_episodes(count), tmp_path / str(count))
        train, out = divide(dataset, split="train", validation=rule)
        assert sorted([*train.episodes, *out.episodes]) == list(range(count))
        held[count] = set(out.episodes.tolist())
    assert {n for n in held[200] if n < 60} == held[60]
    assert 20 <= len(held[200]) <= 60
    assert held[200] != set(range(len(held[200])))


def test_a_tiny_share_takes_one_episode(tmp_path):
    dataset = array_dataset(robot_episodes(5), tmp_path)
    train, held = divide(dataset, split="train", validation=Validation(fraction=1e-6))
    assert (len(train.episodes), len(held.episodes)) == (4, 1)
    with pytest.raises(DatasetError, match="holds out 1 of 1 episodes"):
        divide(dataset.subset([3]), split="train", validation=Validation(fraction=0.5))


def test_a_named_split_is_held_out_and_filtered(tmp_path):
    splits = {"train": range(9), "val": range(9, 14)}
    dataset = array_dataset(robot_episodes(), tmp_path, splits=splits)
    rules = {"validation": Validation(split="val"), "failed": Failed(key="success")}
    train, held = divide(dataset, split="train", no_ops=NoOps(), **rules)
    assert train.episodes.tolist() == [1, 2, 4, 5, 7, 8]
    assert held.episodes.tolist() == [10, 11, 13]
    alone, _ = divide(dataset, split="train", no_ops=NoOps(), failed=rules["failed"])
    assert train.episode_lengths.tolist() == alone.episode_lengths.tolist()
    assert (held.episode_lengths < held.store.episode_lengths[held.episodes]).any()
    for name in ("test", "train"):
        with pytest.raises(DatasetError, match=f"validation.split is '{name}'; it must be another"):
            divide(dataset, split="train", validation=Validation(split=name))


def test_the_share_counts_within_its_split(tmp_path):
    """A split that grows must not move the episodes of another."""
    rule = Validation(fraction=0.3)
    sides = []
    for first in (6, 20):
        episodes = robot_episodes(60)
        splits = {"other": range(first), "train": range(first, 40 + first)}
        dataset = array_dataset(episodes, tmp_path, splits=splits)
        _, held = divide(dataset, split="train", validation=rule)
        sides.append((held.episodes - first).tolist())
    assert sides[0] == sides[1]


def test_card_filters_keep_their_own_rule(tmp_path):
    """A frame stays if anything in its chunk moves; the chunk itself is not shortened."""
    rule = {
        "kind": "drop_if_motion_is_zero",
        "stage": "after_normalisation",
        "dims": [0, 6],
        "tol": 1e-3,
        "q01": [-0.1] * 6,
        "q99": [0.1] * 6,
    }
    episodes = robot_episodes()
    dataset = array_dataset(episodes, tmp_path, card={"filters": [rule]})
    expected = []
    for number, episode in enumerate(episodes):
        action = episode["action"]
        for t in range(len(action)):
            chunk = [action[min(t + k, len(action) - 1)] for k in range(4)]
            if max(np.abs(2 * a[:6] / (0.2 + 1e-8)).max() for a in chunk) > 1e-3:
                expected.append((number, t, chunk))
    assert len(dataset) == len(expected) < sum(len(e["action"]) for e in episodes)
    for frame, (number, t, chunk) in enumerate(expected):
        sample = dataset[frame]
        assert (sample.episode, sample.step) == (number, t)
        np.testing.assert_array_equal(sample.actions, chunk)
        left = len(episodes[number]["action"]) - t
        assert sample.valid.tolist() == [k < left for k in range(4)]
    again = array_dataset(episodes, tmp_path, card={"filters": [rule]})
    assert len(again) == len(expected)
    assert not again.store.reads


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"validation": {"fraction": 0.1, "split": "val"}}, "not both"),
        ({"validation": {}}, "not both"),
        ({"validation": 1.5}, "less than 1"),
        ({"validation": {"split": "val", "key": "uid"}}, "needs no key"),
        ({"no_ops": {"tolerance": 0}}, "greater than 0"),
        ({"no_ops": {"tolerence": 1}}, "tolerence"),
        ({"failed": {}}, "key"),
    ],
)
def test_mistakes(content, message):
    with pytest.raises(ValidationError, match=message):
        Part.model_validate(content)
    assert Part.model_validate({"validation": 0.25}).validation == Validation(fraction=0.25)
