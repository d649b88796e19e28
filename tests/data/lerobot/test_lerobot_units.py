"""Depth in and out of 0.1 mm, moments, and features that cannot go along."""

import json
import shutil

import numpy as np
import pytest

from spatialvla_ft.converters.lerobot_meta import Moments
from spatialvla_ft.converters.report import DepthLoss, from_units, psnr, to_units
from spatialvla_ft.converters.rlds_to_lerobot import to_lerobot
from spatialvla_ft.data import DatasetError, build_index, load_cards
from spatialvla_ft.data.lerobot.store import LeRobotStore


def test_tenths_of_a_millimetre_are_exact():
    stored = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    loss = DepthLoss()
    units = to_units(stored, 1e-4, loss)
    np.testing.assert_array_equal(units, stored)
    np.testing.assert_array_equal(from_units(units, 1e-4, stored.dtype), stored)
    assert loss.sentence() is None


def test_millimetres_are_exact_up_to_six_and_a_half_metres():
    stored = np.array([[0, 1, 777, 6553, 6554, 65535]], np.uint16)
    loss = DepthLoss()
    units = to_units(stored, 1e-3, loss)
    assert units.tolist() == [[0, 10, 7770, 65530, 0, 0]]
    assert from_units(units, 1e-3, stored.dtype).tolist() == [[0, 1, 777, 6553, 0, 0]]
    assert (loss.changed, loss.too_far, loss.largest) == (2, 2, 0.0)
    assert "2 beyond 6.5535 m became unknown" in loss.sentence()


def test_floats_are_rounded_and_it_is_said():
    stored = np.array([[0.0, np.nan, -1.0, 1.00004, 2.5]], np.float32)
    loss = DepthLoss()
    assert to_units(stored, 1.0, loss).tolist() == [[0, 0, 0, 10000, 25000]]
    assert loss.changed == 1
    assert loss.largest == pytest.approx(4e-5, rel=1e-2)
    assert "by up to 0.040 mm" in loss.sentence()


def test_moments_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    parts = [rng.normal(i, i + 1, (n, 3)) for i, n in enumerate((4, 9, 1))]
    total = Moments.of(parts[0]) + Moments.of(parts[1]) + Moments.of(parts[2])
    found, whole = total.to_json(picture=False), np.concatenate(parts)
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(found[name], getattr(whole, name)(axis=0), rtol=1e-12)
    assert found["count"] == [14]


def test_psnr_of_a_known_error():
    one = np.full((4, 5, 3), 100, np.uint8)
    assert psnr(one, one) == float("inf")
    assert psnr(one, one + np.uint8(5)) == pytest.approx(20 * np.log10(255 / 5))


CARD = """
schema_version: 1
cards:
  zoo:
    version: 1.0.0
    cameras: {primary: observation.jpeg, wrist: observation.png}
    language: {kind: string, key: text}
    action:
      translation: ["action[0:3]"]
      rotation: {raw: labelled_euler, terms: ["action[3:6]"]}
      gripper: ["action[6:7]"]
"""


def test_what_cannot_go_along_is_named(zoo, tmp_path):
    (tmp_path / "zoo.yaml").write_text(CARD)
    index = build_index(zoo)
    card = load_cards(tmp_path / "zoo.yaml")["zoo"]
    with pytest.raises(DatasetError, match="no control_hz"):
        to_lerobot(index, card, tmp_path / "zoo.yaml", tmp_path / "d")
    report = to_lerobot(index, card, tmp_path / "zoo.yaml", tmp_path / "d", fps=5)
    assert "observation.words" in report.left_out
    assert "a sequence whose length varies" in report.left_out["observation.numbers"]
    assert report.left_out["observation.depth16"] == "neither colour nor depth that the card names"
    assert "a picture of the whole episode" in report.left_out["episode_metadata.photo"]
    store = LeRobotStore(tmp_path / "d")
    missing = set(index.leaves) - set(report.left_out)
    named = {e["rlds"] for e in json.loads((tmp_path / "d/meta/rlds.json").read_text())["entries"]}
    assert missing == named
    for key in ("observation.i64", "observation.u32", "observation.f64", "observation.flags"):
        for episode in range(index.num_episodes):
            was = index.column(key, episode)
            now = store.trajectory(episode, (key,))[key]
            np.testing.assert_array_equal(was, now)
            assert was.dtype == now.dtype
    shutil.rmtree(tmp_path / "d")
