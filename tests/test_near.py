"""What somebody may have meant."""

import pytest

from spatialvla_ft.near import near_names, near_path


def test_names():
    assert near_names("rnak", ["rank", "alpha"]) == ["rank"]
    assert near_names("learning_rat", ["learning_rate", "learning"]) == ["learning_rate"]
    assert near_names("zzz", ["rank"]) == []
    both = near_names("kave_every", ["save_evry", "keep_every", "steps"])
    assert set(both) == {"save_evry", "keep_every"}


@pytest.fixture
def place(tmp_path):
    for name in ("robot_a/1.0.0", "robot_b/1.0.0", "runs/final"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "robot_a/1.0.0/features.json").write_text("{}")
    (tmp_path / "runs/final/adapter_config.json").write_text("{}")
    (tmp_path / "card.yaml").write_text("")
    return tmp_path


def test_paths(place):
    assert near_path(place / "robt_a/1.0.0") == f" (did you mean {place}/robot_a/1.0.0?)"
    assert near_path(place / "robot_a") == f" (did you mean {place}/robot_a/1.0.0?)"
    assert near_path(place / "runs") == f" (did you mean {place}/runs/final?)"
    assert near_path(place / "cart.yaml") == f" (did you mean {place}/card.yaml?)"
    assert near_path(place / "robot_b") == ""
    assert near_path(place / "elsewhere/x/y") == f" (there is no folder {place}/elsewhere)"
    assert near_path(place / "zzz") == ""


def test_a_relative_path(place, monkeypatch):
    monkeypatch.chdir(place)
    assert near_path("runz/final") == " (did you mean runs/final?)"
    assert near_path("OWNER/NAME") == " (there is no folder OWNER)"
