"""Some rows of an episode against the same rows of the whole one: equal to the last bit."""

import numpy as np
import pytest
from array_store import ARM, array_dataset
from recorded_cards import CARDS, recorded

from spatialvla_ft.data import samples as module
from spatialvla_ft.data import standardise
from spatialvla_ft.data.cards.ops import apply_op, binarize_backward, parse_op
from spatialvla_ft.data.cards.standardise import RowsOfCard, wanted_keys
from spatialvla_ft.data.samples import compact


class Reader:
    """Columns of one episode; remembers the keys that were read whole, and the steps of others."""

    def __init__(self, raw):
        self.raw, self.whole, self.steps = raw, set(), []

    def __call__(self, keys, steps):
        if steps is None:
            self.whole |= set(keys)
            return {key: self.raw[key] for key in keys}
        self.steps.append(steps)
        assert 0 <= steps.start <= steps.stop <= len(next(iter(self.raw.values())))
        return {key: self.raw[key][steps.start : steps.stop] for key in keys}


def assert_same_rows(part, whole, rows):
    some = slice(rows.start, rows.stop)
    np.testing.assert_array_equal(part.action, whole.action[some], strict=True)
    np.testing.assert_array_equal(part.steps, whole.steps[some], strict=True)
    assert (part.proprio is None) == (whole.proprio is None)
    if part.proprio is not None:
        np.testing.assert_array_equal(part.proprio, whole.proprio[some], strict=True)
    assert part.language == (None if whole.language is None else whole.language[some])
    assert part.images == whole.images


@pytest.mark.parametrize("dataset", sorted(CARDS))
def test_every_part_of_every_recorded_trajectory(dataset):
    card = CARDS[dataset]
    rows_of_card = RowsOfCard(card)
    checked = 0
    for raw, _ in recorded(dataset):
        whole = standardise(card, raw)
        count = len(whole.steps)
        for start in range(count):
            for stop in {start + 1, min(start + 4, count), count}:
                read = Reader(raw)
                found = rows_of_card.standardise(read, range(start, stop))
                assert_same_rows(found, whole, range(start, stop))
                assert all(len(steps) <= stop - start + 1 for steps in read.steps)
                checked += 1
    assert checked >= 45


def test_only_columns_that_look_along_the_episode_are_read_whole():
    whole = {}
    for name, card in CARDS.items():
        raw, _ = next(recorded(name))
        read = Reader(raw)
        RowsOfCard(card).standardise(read, range(1))
        whole[name] = read.whole
        assert read.whole <= set(wanted_keys(card))
    assert whole["fractal20220817_data"] == {"action.gripper_closedness_action"}
    assert whole["bridge_orig"] == {"action"}
    assert whole["fmb_dataset"] == set()
    assert 30 < sum(not keys for keys in whole.values()) < len(CARDS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["quat_to_euler", "axis_angle_to_euler"])
def test_angles_do_not_depend_on_how_many_there_are(name, dtype):
    """Vector instructions must treat the last few numbers of a column as all others."""
    columns = 4 if name == "quat_to_euler" else 3
    raw = {name: "xyzw"} if columns == 4 else {name: {"norm_eps": 1e-6}}
    op = parse_op(raw)
    values = np.random.default_rng(2).normal(size=(70, 9)).astype(dtype)[:, 2 : 2 + columns]
    if columns == 4:
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    whole = apply_op(op, values)
    for count in (1, 2, 3, 4, 5, 8, 17):
        for start in range(len(values) - count + 1):
            part = slice(start, start + count)
            np.testing.assert_array_equal(apply_op(op, values[part]), whole[part], strict=True)


def loop(values, above, below):
    """The scan, a step and a column at a time."""
    out = np.empty_like(values)
    for column in range(values.shape[1]):
        state = values[-1, column]
        for t in range(len(values) - 1, -1, -1):
            if values[t, column] > above:
                state = 1
            elif values[t, column] < below:
                state = 0
            out[t, column] = state
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binarize_backward_against_a_loop(dtype):
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 40):
        values = rng.choice([-1.0, 0.02, 0.3, 0.5, 0.9, 0.99, np.nan], (count, 3)).astype(dtype)
        values[-1, 0] = 0.5
        np.testing.assert_array_equal(
            binarize_backward(values, 0.95, 0.05), loop(values, 0.95, 0.05), strict=True
        )
    assert binarize_backward(np.empty((0, 2), dtype), 0.95, 0.05).shape == (0, 2)


def episodes(count=9, seed=1):
    rng = np.random.default_rng(seed)
    found = []
    for length in rng.integers(3, 12, count):
        action = rng.normal(size=(length, 7)).astype(np.float32)
        action[:, 6] = rng.choice([-1, 0, 1], length)
        text = np.array([f"{length} {t}".encode() for t in range(length)], object)
        state = rng.normal(size=(length, 7)).astype(np.float32)
        found.append({"action": action, "state": state, "text": text})
    return found


GRIPPER = [{"src": "action[6:7]", "ops": [{"rel_to_abs": {"eps": 0.1, "positive_is": "open"}}]}]
KINDS = {
    "plain": {},
    "dropped": {"drop": {"first": 2}},
    "differences": {
        "drop": {"first": 1},
        "relabel": {"from": "state[0:6]", "dims": [0, 6], "rule": "next_minus_current"},
    },
    "poses": {
        "action": {**ARM, "reference": "absolute", "gripper": GRIPPER},
        "relabel": {"from": "state[0:6]", "dims": [0, 6], "rule": "target_minus_current"},
    },
    "events": {"action": {**ARM, "gripper": GRIPPER}, "drop": {"first": 1}},
}


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_same_from_parts_as_from_whole_episodes(
    kind, window, tmp_path, monkeypatch
):
    fields = {
        "language": {"kind": "string", "key": "text"},
        "proprio": {"encoding": "POS_EULER", "terms": ["state"]},
        "action": ARM,
        **KINDS[kind],
    }
    action = fields.pop("action")
    dataset = array_dataset(episodes(), tmp_path, action=action, card=fields, horizon=4)
    dataset.window = window
    whole = list(dataset)
    assert len(dataset._cache) == 9
    monkeypatch.setattr(module, "CACHED_EPISODES", 8)
    part = dataset.subset(dataset.episodes)
    part._cache.clear()
    assert len(part) == len(whole) > 30
    for ours, theirs in zip(part, whole, strict=True):
        np.testing.assert_array_equal(ours.actions, theirs.actions, strict=True)
        np.testing.assert_array_equal(ours.valid, theirs.valid)
        np.testing.assert_array_equal(ours.proprio, theirs.proprio, strict=True)
        assert len(ours.history) == window - 1
        for past, then in zip(ours.history, theirs.history, strict=True):
            np.testing.assert_array_equal(past.proprio, then.proprio, strict=True)
        assert ours.instruction == theirs.instruction
        assert (ours.episode, ours.step) == (theirs.episode, theirs.step)
        assert ours.instruction.endswith(f" {ours.step}")
    assert not part._cache


def test_numbers_of_episodes_are_as_narrow_as_they_can_be(tmp_path):
    dataset = array_dataset(episodes(), tmp_path)
    assert dataset.episodes.dtype == dataset._ends.dtype == np.int32
    assert dataset.episode_lengths.dtype == np.int64
    assert dataset.episode_lengths.tolist() == dataset.store.episode_lengths.tolist()
    top = 2**31
    for numbers, bytes_each in (
        ([-top, top - 1], 4),
        ([0, top], 8),
        ([-top - 1], 8),
        ([], 4),
    ):
        found = compact(np.array(numbers, np.int64))
        assert found.tolist() == numbers
        assert found.itemsize == bytes_each


def test_more_steps_than_four_bytes_can_count(tmp_path, monkeypatch):
    dataset = array_dataset(episodes(3), tmp_path)
    lengths = np.array([5, 2**31, 7])
    monkeypatch.setattr(type(dataset.store), "episode_lengths", lengths)
    assert len(dataset) == lengths.sum()
    places = [(4, (0, 4)), (5, (1, 0)), (5 + 2**31, (2, 0)), (11 + 2**31, (2, 6))]
    assert [dataset.locate(frame) for frame, _ in places] == [place for _, place in places]
