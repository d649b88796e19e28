"""Mixtures: the published ones, one's own, and everything that is wrong with one at once."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import yaml

from spatialvla_ft.data.cards.files import load_cards
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.mixtures import (
    CARDS,
    MIXTURES,
    Part,
    assumed_camera,
    find_mixture,
    load_mixtures,
    mixture_weights,
    open_mixture,
)
from spatialvla_ft.data.opening import open_dataset
from spatialvla_ft.data.reading import Reading
from spatialvla_ft.shipped import shipped


def test_published_mixtures():
    known = load_mixtures()
    plus, stage2 = known["oxe_spatial_vla_plus"], known["oxe_spatial_vla_plus_stage2"]
    assert len(plus) == 28
    assert plus["rh20t_rlds/1.0.0"].weight == 0.015
    assert set(plus) - set(stage2) == {"droid/1.0.0"}
    assert known["openvla/oxe_magic_soup"]["cmu_stretch/0.1.0"].weight == 1.0
    raw = yaml.safe_load(shipped(MIXTURES).read_text())
    count = sum(len(raw[section]) for section in ("mixtures", "openvla", "octo"))
    assert len(known) == count
    for name, part in known["rtx"].items():
        assert part.weight == raw["mixtures"]["rtx"][name]


def test_every_dataset_of_the_pre_training_mixtures_has_a_card():
    cards = load_cards(shipped(CARDS))
    for name in ("oxe_spatial_vla_plus", "oxe_spatial_vla_plus_stage2", "oxe_magic_soup_plus"):
        for dataset in find_mixture(name):
            short, version = dataset.split("/")
            assert cards[short].version == version, dataset


def test_a_name_is_found_or_the_nearest_are_told():
    assert find_mixture("bridge") == {"bridge_orig/1.0.0": Part(weight=1.0)}
    with pytest.raises(DatasetError, match="did you mean openvla/oxe_magic_soup or octo/oxe_magic"):
        find_mixture("oxe_magic_soup")
    with pytest.raises(DatasetError, match="did you mean oxe_spatial_vla_plus"):
        find_mixture("oxe_spatial_vla_puls")
    with pytest.raises(DatasetError, match="there are toto, kuka"):
        find_mixture("zzzzzz")


def test_mistakes_in_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "schema_version: 2\nmixtures:\n  a:\n    x/1: -1\n    y/1: {wieght: 2}\n  b: {}\n"
    )
    with pytest.raises(DatasetError) as raised:
        load_mixtures(path)
    text = str(raised.value)
    for wanted in ("mine.yaml:1: schema_version 2", "mine.yaml:4: a.x/1: weight",
                   "mine.yaml:5: a.y/1: wieght", "mine.yaml:6: mixture 'b' names"):  # fmt: skip
        assert wanted in text, text
    path.write_text("a: 1\n")
    with pytest.raises(DatasetError, match="a mixture file has schema_version and mixtures"):
        load_mixtures(path)


def test_balanced_weights_multiply_by_transitions():
    got = mixture_weights([0.5, 2, 1], [100, 10, 0], balance=True)
    np.testing.assert_allclose(got, [50 / 70, 20 / 70, 0])
    np.testing.assert_allclose(
        mixture_weights([0.5, 2, 1], [100, 10, 0], balance=False), np.array([0.5, 2, 1]) / 3.5
    )
    with pytest.raises(DatasetError, match="nothing to draw from"):
        mixture_weights([1, 2], [0, 0], balance=True)


def test_opened_from_a_root(demo):
    opened = open_mixture(
        {"demo/1.0.0": Part(weight=3)},
        root=demo.parent.parent,
        reading=Reading(card=None, horizon=2, cameras=["primary"]),
    )
    (dataset,) = opened.datasets
    assert dataset.horizon == 2
    assert opened.weights == [1.0]
    assert opened.parts == [Part(weight=3)]
    assert opened.excused == {}
    plain = open_dataset(demo, card=None, horizon=2)
    np.testing.assert_array_equal(dataset[3].actions, plain[3].actions)


@pytest.mark.parametrize("wrong", [{"split": "val"}, {"card": "cards.yaml"}])
def test_card_and_split_are_those_of_the_parts(demo, wrong):
    reading = Reading(**{"card": None, **wrong})
    with pytest.raises(DatasetError, match="give card and split to its parts"):
        open_mixture({"demo/1.0.0": Part()}, root=demo.parent.parent, reading=reading)


BAD = {
    "absent/1.0.0": Part(),
    "unversioned": Part(),
    "nocard/1.0.0": Part(),
    "broken/1.0.0": Part(),
}


@pytest.fixture
def root(demo, tmp_path):
    """The demo dataset, one without a card, one whose features are no JSON."""
    folder = tmp_path / "root"
    for name in ("demo", "nocard", "broken"):
        shutil.copytree(demo, folder / name / "1.0.0")
    (folder / "nocard/1.0.0/card.yaml").unlink()
    (folder / "broken/1.0.0/features.json").write_text("{")
    return folder


def test_all_that_is_wrong_is_told_at_once(root):
    parts = {"demo/1.0.0": Part(split="test"), **BAD}
    with pytest.raises(DatasetError) as raised:
        open_mixture(parts, root=root)
    text = str(raised.value)
    for wanted in (
        "5 of 5 datasets cannot be used",
        f"- absent/1.0.0: {root}/absent/1.0.0 is no folder; fetch the dataset",
        "- unversioned: 'unversioned' has no version; write unversioned/<version>",
        "- nocard/1.0.0: ",
        "none of the 74 cards",
        "- broken/1.0.0: ",
        "- demo/1.0.0: demo has no split 'test'",
        "excused by name (data.mixture.excuse)",
    ):
        assert wanted in text, text


def test_only_what_is_excused_by_name_is_left_out(root, caplog):
    parts = {"demo/1.0.0": Part(), **BAD}
    with pytest.raises(DatasetError, match=r"1 of 5 datasets cannot be used:\n- broken/1"):
        open_mixture(parts, root=root, excuse=["absent", "unversioned", "nocard/1.0.0"])
    with caplog.at_level(logging.WARNING):
        opened = open_mixture(
            parts, root=root, excuse=["absent", "unversioned", "nocard/1.0.0", "broken"]
        )
    assert [d.name for d in opened.datasets] == ["demo/1.0.0"]
    assert set(opened.excused) == set(BAD)
    assert caplog.text.count("is left out of the mixture, as excused") == 4
    with pytest.raises(DatasetError, match=r"excused datasets that the mixture has not: \['demmo'"):
        open_mixture(parts, root=root, excuse=["demmo"])
    with pytest.raises(DatasetError, match="all 1 datasets of the mixture are excused"):
        open_mixture({"absent/1.0.0": Part()}, root=root, excuse=["absent"])


def test_intrinsics_are_never_guessed_unasked(root):
    place = root / "demo/1.0.0/card.yaml"
    card = yaml.safe_load(place.read_text())
    del card["cards"]["demo"]["intrinsics"]
    place.write_text(yaml.safe_dump(card))
    parts = {"demo/1.0.0": Part()}
    with pytest.raises(DatasetError, match=r"intrinsics of \['primary'\] are not known: put them"):
        open_mixture(parts, root=root)
    opened = open_mixture(parts, root=root, assume_intrinsics="default")
    sample = opened.datasets[0][0]
    height, width = sample.images["primary"].shape[:2]
    K = assumed_camera("default").matrix(width, height)
    np.testing.assert_allclose(sample.intrinsics["primary"], K)
    with pytest.raises(DatasetError, match=r"no camera 'bridge' in oxe_intrinsics.yaml; there are"):
        open_mixture(parts, root=root, assume_intrinsics="bridge")
    with pytest.raises(DatasetError, match=r"no camera \['left'\]; it has \['primary', 'wrist'\]"):
        open_mixture(parts, root=root, reading=Reading(card=None, cameras=["left"]))
