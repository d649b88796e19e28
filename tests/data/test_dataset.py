"""Samples against what tfds reads from the same files."""

import multiprocessing
import pickle

import numpy as np
import pytest

from spatialvla_ft.data import DatasetError, Sample, build_index, holdout, load_cards, open_dataset
from spatialvla_ft.data.cards.fields import Intrinsics
from spatialvla_ft.inspection import inspect_dataset


def by_name(tfds_read, split="train"):
    """Decoded episodes by their own number, since both readers have their order."""
    episodes = (decoded for _, decoded in tfds_read("demo", split))
    return [(int(e["episode_metadata"]["episode_id"]), e["steps"]) for e in episodes]


def test_every_sample_equals_tfds(demo, tfds_read):
    dataset = open_dataset(demo, card=None, horizon=4)
    frame = 0
    for episode, (number, steps) in enumerate(by_name(tfds_read)):
        for t, step in enumerate(steps):
            sample = dataset[frame]
            frame += 1
            assert isinstance(sample, Sample)
            assert (sample.dataset, sample.episode, sample.step) == ("demo/1.0.0", episode, t)
            observation = step["observation"]
            np.testing.assert_array_equal(sample.images["primary"], observation["image_front"])
            np.testing.assert_array_equal(sample.images["wrist"], observation["image_wrist"])
            metres = observation["depth_front"][..., 0] * np.float32(1e-4)
            np.testing.assert_allclose(sample.depth["primary"], metres, rtol=1e-6)
            assert sample.depth["primary"].dtype == np.float32
            assert (sample.depth["primary"][0, :5] == 0).all()
            K = sample.intrinsics["primary"]
            np.testing.assert_array_equal(K, observation["intrinsics_front"])
            assert K.dtype == np.float64
            assert sample.instruction == f"püt the block {number} down"
            chunk = [steps[min(t + k, len(steps) - 1)]["action"] for k in range(4)]
            np.testing.assert_array_equal(sample.actions, chunk)
            assert sample.valid.tolist() == [t + k < len(steps) for k in range(4)]
            state = observation["state"]
            np.testing.assert_array_equal(sample.proprio, [*state[:6], 0, state[6]])
            np.testing.assert_array_equal(
                sample.extrinsics["primary"], observation["extrinsics_front"]
            )
    assert frame == len(dataset) == dataset.num_frames == 27


def test_a_static_camera_is_scaled_to_the_image(demo):
    K = open_dataset(demo, card=None)[0].intrinsics["wrist"]
    assert K.tolist() == [[50, 0, 16], [0, 45, 12], [0, 0, 1]]


def test_intrinsics_can_be_replaced_and_may_be_missing(demo, tmp_path):
    camera = Intrinsics(fx=32, fy=24, cx=16, cy=12, width=32, height=24)
    dataset = open_dataset(demo, card=None, intrinsics={"primary": np.eye(3), "wrist": camera})
    np.testing.assert_array_equal(dataset[0].intrinsics["primary"], np.eye(3))
    assert dataset[0].intrinsics["wrist"][0].tolist() == [32, 0, 16]
    with pytest.raises(DatasetError, match=r"intrinsics for \['left'\]"):
        open_dataset(demo, card=None, intrinsics={"left": camera})
    card = load_cards(demo / "card.yaml")["demo"].model_copy(update={"intrinsics": {}})
    assert open_dataset(demo, card=card)[0].intrinsics == {}


def test_actions_and_lengths_without_images(demo, tfds_read):
    dataset = open_dataset(demo, card=None)
    episodes = by_name(tfds_read)
    expected = np.concatenate([[step["action"] for step in steps] for _, steps in episodes])
    np.testing.assert_array_equal(dataset.actions(), expected)
    assert dataset.episode_lengths.tolist() == [len(steps) for _, steps in episodes]


def test_val_is_another_split_and_unknown_ones_are_refused(demo, tfds_read):
    dataset = open_dataset(demo, card=None, split="val")
    assert len(dataset) == 9
    assert dataset[0].instruction == f"püt the block {by_name(tfds_read, 'val')[0][0]} down"
    with pytest.raises(DatasetError, match=r"no split 'test'; it has \['train', 'val'\].*holdout"):
        open_dataset(demo, card=None, split="test")


def test_holdout_is_a_partition_by_episode(demo):
    dataset = open_dataset(demo, card=None)
    rest, held = holdout(dataset, 0.3, seed=1)
    again = holdout(dataset, 0.3, seed=1)
    assert sorted([*rest.episodes, *held.episodes]) == list(range(6))
    assert held.episodes.tolist() == again[1].episodes.tolist()
    assert len(held.episodes) == 2
    assert {sample.episode for sample in held} == set(held.episodes.tolist())
    assert len(rest) + len(held) == len(dataset)
    with pytest.raises(DatasetError, match=r"cannot hold out 1\.0 of 6"):
        holdout(dataset, 1.0, seed=0)


def test_drops_and_relabels_shift_the_steps(demo, tfds_read):
    text = (demo / "card.yaml").read_text()
    text += (
        "    drop: {first: 1}\n"
        "    relabel: {dims: [0, 6], from: 'observation.state[0:6]', rule: next_minus_current}\n"
    )
    (demo / "card.yaml").write_text(text)
    dataset = open_dataset(demo, card=None)
    episodes = [steps for _, steps in by_name(tfds_read)]
    assert dataset.episode_lengths.tolist() == [max(0, len(steps) - 2) for steps in episodes]
    seen = [(sample.episode, sample.step) for sample in dataset]
    assert seen == [(e, t) for e, s in enumerate(episodes) for t in range(1, len(s) - 1)]
    sample = dataset[0]
    now, then = (episodes[0][t]["observation"]["state"][:6] for t in (1, 2))
    np.testing.assert_allclose(sample.actions[0, :6], then - now, rtol=1e-6)
    np.testing.assert_array_equal(
        sample.images["primary"], episodes[0][1]["observation"]["image_front"]
    )


def test_a_motion_filter_drops_still_chunks(demo):
    dataset = open_dataset(demo, card=None)
    card = dataset.card
    still = card.model_copy(
        update={
            "filters": load_cards_text(
                demo,
                "    filters:\n      - {kind: drop_if_motion_is_zero, stage: after_normalisation, "
                "dims: [0, 1], tol: 1.0, q01: [-1], q99: [1]}\n",
            ).filters
        }
    )
    filtered = open_dataset(demo, card=still, horizon=2)
    expected = [
        (sample.episode, sample.step)
        for sample in open_dataset(demo, card=None, horizon=2)
        if (np.abs(sample.actions[:, 0]) > 1.0).any()
    ]
    assert [(s.episode, s.step) for s in filtered] == expected
    assert 0 < len(filtered) < 27
    assert len(filtered.actions()) == 27


def load_cards_text(demo, extra):
    path = demo / "other.yaml"
    path.write_text((demo / "card.yaml").read_text() + extra)
    return load_cards(path)["demo"]


def test_indexing_like_a_sequence(demo):
    dataset = open_dataset(demo, card=None)
    assert (dataset[-1].episode, dataset[-1].step) == (5, dataset.episode_lengths[-1] - 1)
    assert [s.step for s in dataset[1:3]] == [dataset[1].step, dataset[2].step]
    with pytest.raises(IndexError, match="there are 27"):
        dataset[27]


def test_opening_by_index_path_object_and_card_file(demo, tmp_path):
    index = build_index(demo, out=tmp_path / "index")
    card = demo / "card.yaml"
    sizes = {
        len(open_dataset(index, card=None)),
        len(open_dataset(tmp_path / "index", card=card)),
        len(open_dataset(str(demo), card=load_cards(card)["demo"])),
    }
    assert sizes == {27}
    with pytest.raises(DatasetError, match=r"cannot read .*nothing.yaml"):
        open_dataset(index, card=tmp_path / "nothing.yaml")


def test_a_card_that_does_not_fit_fails_at_once(demo):
    path = demo / "card.yaml"
    text = path.read_text()
    path.write_text(text.replace("observation.image_wrist", "observation.image_hand"))
    with pytest.raises(DatasetError, match="has no feature"):
        open_dataset(demo, card=None)
    path.write_text(text.replace("    depth_scale: 1.0e-4\n", ""))
    assert open_dataset(demo, card=None)[0].depth is None
    with pytest.raises(DatasetError, match="no depth_scale; say how many metres"):
        open_dataset(demo, card=None, depth=True)


def test_all_keys_that_do_not_fit_are_told_at_once(demo):
    path = demo / "card.yaml"
    wrong = {"observation.image_wrist": "observation.image_wrst", "action[3:6]": "actoin[3:6]",
             "observation.depth_front": "observation.zzz"}  # fmt: skip
    text = path.read_text()
    for good, bad in wrong.items():
        assert good in text
        text = text.replace(good, bad)
    path.write_text(text)
    for look in (lambda: open_dataset(demo, card=None), lambda: inspect_dataset(demo)):
        with pytest.raises(DatasetError, match="card 'demo' does not fit, mend it") as raised:
            look()
        told = str(raised.value)
        assert "'observation.image_wrst'; did you mean 'observation.image_wrist'?" in told
        assert "no feature 'actoin'; did you mean 'action'?" in told
        assert "no feature 'observation.zzz'; it has ['action', " in told
        assert told.count("no feature") == 3


def test_crosses_processes_and_caches_a_bounded_number(demo, monkeypatch):
    from spatialvla_ft.data import samples as module

    monkeypatch.setattr(module, "CACHED_EPISODES", 2)
    dataset = open_dataset(demo, card=None)
    before = [sample.actions for sample in dataset]
    for episode in range(6):
        dataset._trajectory(episode)
    assert len(dataset._cache) == 2
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal([sample.actions for sample in copy], before)


def test_empty_images_mean_no_image(demo, monkeypatch):
    from spatialvla_ft.data import FrameIndex

    read = FrameIndex.image_bytes

    def without_wrist(self, episode, step, key):
        return b"" if "wrist" in key else read(self, episode, step, key)

    monkeypatch.setattr(FrameIndex, "image_bytes", without_wrist)
    sample = open_dataset(demo, card=None)[0]
    assert set(sample.images) == {"primary"} == set(sample.intrinsics)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_samples(demo, method, monkeypatch):
    monkeypatch.setenv("SPATIALVLA_FT_LIGHT", "1")
    dataset = open_dataset(demo, card=None)
    here = [(s.episode, s.step, int(s.images["primary"].sum())) for s in dataset]
    with multiprocessing.get_context(method).Pool(1) as pool:
        samples = pool.map(dataset.__getitem__, range(len(dataset)))
    assert [(s.episode, s.step, int(s.images["primary"].sum())) for s in samples] == here


def test_only_the_cameras_asked_for_are_decoded(demo, monkeypatch):
    """Nothing of another camera is read: not its picture, depth, K or pose."""
    whole = open_dataset(demo, card=None, window=2)
    wrist = open_dataset(demo, card=None, window=2, cameras=["wrist"])
    read = []
    kept = type(wrist.store).rgb

    def rgb(store, key, episode, step):
        read.append(key)
        return kept(store, key, episode, step)

    monkeypatch.setattr(type(wrist.store), "rgb", rgb)
    monkeypatch.setattr(type(wrist.store), "stored_depth", None)
    sample = wrist[3]
    assert set(read) == {"observation.image_wrist"}
    assert sample.depth == {}
    assert sample.extrinsics == {}
    assert set(sample.intrinsics) == set(sample.history[0].images) == {"wrist"}
    monkeypatch.undo()
    np.testing.assert_array_equal(sample.images["wrist"], whole[3].images["wrist"])
    with pytest.raises(
        DatasetError, match=r"its card has no camera \['left'\]; it has \['primary'"
    ):
        open_dataset(demo, card=None, cameras=["left"])
