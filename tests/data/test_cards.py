"""Card files: everything that ships loads; every mistake is told, with its line."""

from pathlib import Path

import pytest
import yaml

from spatialvla_ft.data import DatasetError, load_cards

SHIPPED = Path(__file__).parents[2] / "data_mixtures"

CARD = """\
schema_version: 1
cards:
  mine:
    version: 1.0.0
    cameras: {primary: observation.image}
    action:
      translation: ["action[0:3]"]
      rotation: {raw: labelled_euler, terms: ["action[3:6]"]}
      gripper: ["action[-1:]"]
"""


def write(tmp_path, text):
    path = tmp_path / "card.yaml"
    path.write_text(text)
    return path


def test_shipped_cards_load():
    cards = load_cards(SHIPPED / "oxe_cards.yaml")
    assert len(cards) == 74
    assert cards["bridge_dataset"].version == "0.1.0"
    assert cards["bridge_dataset"].action == cards["bridge_orig"].action
    assert cards["berkeley_mvp_converted_externally_to_rlds"].action_space_of(8).dim == 8


def test_shipped_intrinsics_are_in_the_cards():
    cards = load_cards(SHIPPED / "oxe_cards.yaml")
    assert {name for name, card in cards.items() if card.intrinsics} == {
        "bridge_orig",
        "bridge_dataset",
        "fractal20220817_data",
        "language_table",
        "stanford_robocook_converted_externally_to_rlds",
        "roboset",
    }
    for card in cards.values():
        for camera in card.intrinsics.values():
            assert camera.grade
            assert camera.source
    google = cards["fractal20220817_data"].intrinsics["primary"].matrix(320, 256)
    assert google.tolist() == [[212.5, 0, 160], [0, 212.5, 128], [0, 0, 1]]


def test_shipped_mixtures_name_known_cards():
    cards = load_cards(SHIPPED / "oxe_cards.yaml")
    content = yaml.safe_load((SHIPPED / "oxe_mixtures.yaml").read_text())
    for name, mixture in content["mixtures"].items():
        for dataset in mixture:
            assert dataset.split("/")[0] in cards, (name, dataset)


def test_a_card_of_ones_own(tmp_path):
    card = load_cards(write(tmp_path, CARD))["mine"]
    assert card.name == "mine"
    assert card.action_space.dim == 7
    assert card.language.key == "language_instruction"


def test_all_mistakes_at_once_with_lines(tmp_path):
    text = (
        CARD.replace("cameras:", "camera:")
        .replace("action[0:3]", "action[0:3")
        .replace("labelled_euler", "euler")
    )
    path = write(tmp_path, text)
    with pytest.raises(DatasetError) as error:
        load_cards(path)
    lines = str(error.value).splitlines()
    assert f"{path}:5: cards.mine.camera: unknown key, did you mean 'cameras'?" in lines
    assert any(line.startswith(f"{path}:7: cards.mine.action.translation.0") for line in lines)
    assert any(line.startswith(f"{path}:8: cards.mine.action.rotation.raw") for line in lines)
    assert len(lines) == 3


def test_a_slot_must_be_a_camera(tmp_path):
    text = CARD + "    depth: {wrist: observation.depth}\n"
    with pytest.raises(DatasetError, match=r":3: .*depth for \['wrist'\].*\['primary'\]"):
        load_cards(write(tmp_path, text))


def test_a_key_that_stands_twice(tmp_path):
    text = CARD + "    version: 2.0.0\n"
    with pytest.raises(DatasetError, match=r":10: 'version' stands twice, first in line 4"):
        load_cards(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("- a", "a card file has"),
        ("a: [", "no valid YAML"),
        (CARD.replace("schema_version: 1", "schema_version: 2"), ":1: schema_version 2 is not 1"),
        (CARD + "extras: 1\n", "unknown key 'extras'"),
    ],
)
def test_no_card_file(tmp_path, text, complaint):
    with pytest.raises(DatasetError, match=complaint):
        load_cards(write(tmp_path, text))


def test_the_hash_follows_the_content(tmp_path):
    one = load_cards(write(tmp_path, CARD))["mine"].source_hash
    same = load_cards(write(tmp_path, "# a comment\n" + CARD))["mine"].source_hash
    other = load_cards(write(tmp_path, CARD.replace("3:6", "4:7")))["mine"].source_hash
    assert one == same != other
