"""`data inspect` on datasets that tfds wrote, with and without a card."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.data import DatasetError, load_cards, open_dataset
from spatialvla_ft.data.store import Field
from spatialvla_ft.inspection import inspect_dataset
from spatialvla_ft.inspection.draft import draft_card
from spatialvla_ft.inspection.series import Series

RUN = CliRunner()


def rules(seen):
    return [finding.rule for finding in seen.findings]


def test_with_its_card(demo):
    seen = inspect_dataset(demo)
    dataset = open_dataset(demo, card=None)
    assert seen.draft is None
    assert seen.card == dataset.card
    assert (seen.num_episodes, seen.num_steps) == (6, 27)
    np.testing.assert_array_equal(seen.action.values, dataset.actions())
    np.testing.assert_allclose(seen.q99, np.quantile(dataset.actions(), 0.99, axis=0), rtol=1e-6)
    assert set(seen.views) == {"primary", "wrist"}
    first = dataset[0]
    view = seen.views["primary"]
    np.testing.assert_array_equal(view.K, first.intrinsics["primary"])
    np.testing.assert_array_equal(view.sheet[0][1][0][1], first.images["primary"])
    # Random normal actions: the gripper goes below 0 and above 1.
    assert "gripper range" in rules(seen)


def test_a_drafted_card_reads_what_its_author_wrote(demo, tmp_path):
    (demo / "card.yaml").rename(tmp_path / "own.yaml")
    seen = inspect_dataset(demo)
    own = load_cards(tmp_path / "own.yaml")["demo"]
    draft = seen.draft.to_card()
    for field in ("version", "cameras", "depth", "extrinsics", "language"):
        assert getattr(draft, field) == getattr(own, field), field
    assert draft.intrinsics == {"primary": "observation.intrinsics_front"}
    assert draft.action.terms[:2] == own.action.terms[:2]
    assert {"control rate missing", "K missing"} <= set(rules(seen))
    text = seen.draft.to_yaml()
    path = tmp_path / "drafted.yaml"
    path.write_text(text)
    loaded = load_cards(path)["demo"]
    assert loaded.action == draft.action
    assert text.count("CHECK") >= 3
    dataset = open_dataset(demo, card=path)
    np.testing.assert_array_equal(dataset.actions(), seen.action.values.astype(np.float32))


def test_every_kind_of_feature(zoo):
    seen = inspect_dataset(zoo)
    kinds = {field.key: field.kind for field in seen.source.fields}
    assert kinds["observation.depth16"] == kinds["observation.depth32"] == "depth"
    assert kinds["observation.jpeg"] == kinds["observation.pixels"] == "picture"
    assert kinds["text"] == "words"
    assert kinds["observation.embedding"] == "numbers"
    assert "observation.some_images" not in seen.draft.card["cameras"].values()
    assert seen.card.language.key == "text"
    json.dumps(seen.to_dict())


def test_fewer_episodes_evenly_spread(demo):
    assert inspect_dataset(demo, episodes=3).episodes == (0, 2, 5)
    assert inspect_dataset(demo, episodes=1).episodes == (0,)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"split": "test"}, "has no split 'test'"),
        ({"episodes": 0}, "at least 1, got 0"),
    ],
)
def test_refusals(demo, options, complaint):
    with pytest.raises(DatasetError, match=complaint):
        inspect_dataset(demo, **options)


def test_a_card_that_does_not_fit(demo, tmp_path):
    text = (demo / "card.yaml").read_text().replace("observation.state", "observation.pose")
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"not fit, .* no feature 'observation.pose'; it has"):
        inspect_dataset(demo, card=path)


def test_an_infinite_action_is_told_and_shown(demo, tmp_path):
    text = (demo / "card.yaml").read_text()
    huge = '[{src: "action[0:1]", ops: [{scale: .inf}]}, "action[1:3]"]'
    path = tmp_path / "card.yaml"
    path.write_text(text.replace('["action[0:3]"]', huge))
    done = RUN.invoke(
        app, ["data", "inspect", str(demo), "--card", str(path), "--out", str(tmp_path / "p.html")]
    )
    assert done.exit_code == 0, done.output
    assert "error not finite, action" in done.stdout
    seen = json.loads(
        json.dumps(inspect_dataset(demo, card=path).to_dict()), parse_constant=pytest.fail
    )
    assert seen["action"]["max"][0] is None


class Bare:
    """A source of columns alone."""

    name, version, format, fps, robot = "mine", "1.0.0", "RLDS", None, None

    def __init__(self, *keys):
        self.fields = tuple(Field(key, "picture", "uint8", (8, 8, 3), "step") for key in keys)


def drafted(keys=(), **columns):
    series = {
        key.replace("__", "."): Series.join([np.asarray(part, float) for part in parts])
        for key, parts in columns.items()
    }
    return draft_card(Bare(*keys), series).to_card()


def test_drafted_slots():
    card = drafted(
        ("observation.wrist_cam", "observation.side", "observation.agentview_rgb", "observation.x2")
    )
    paths = {slot: term.path for slot, term in card.cameras.items()}
    assert paths == {
        "primary": "observation.agentview_rgb",
        "secondary": "observation.side",
        "wrist": "observation.wrist_cam",
        "x2": "observation.x2",
    }


@pytest.mark.parametrize(
    ("width", "encoding", "total"),
    [(2, "EEF_POS", 7), (3, "EEF_POS", 7), (4, "EEF_POS", 7), (6, "EEF_POS", 7), (7, "EEF_POS", 7),
     (8, "JOINT_POS", 8), (14, "JOINT_POS_BIMANUAL", 14)],
)  # fmt: skip
def test_drafted_actions_have_the_right_width(width, encoding, total):
    from spatialvla_ft.data import standardise

    action = np.random.default_rng(width).normal(size=(20, width)).astype(np.float32)
    card = drafted(action=[action])
    assert card.action.encoding == encoding
    got = standardise(card, {"action": action}).action
    assert got.shape == (20, total)
    np.testing.assert_array_equal(got[:, :2], action[:, :2])


def test_a_drafted_quaternion_is_turned_to_euler():
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(3)
    turns = Rotation.random(40, random_state=3)
    action = np.concatenate([rng.normal(size=(40, 3)), turns.as_quat(), np.ones((40, 1))], axis=1)
    rotation = drafted(action=[action]).action.rotation
    assert rotation.raw == "quat_xyzw"
    euler = rotation.terms[0].evaluate({"action": action}, 40)
    np.testing.assert_allclose(euler, turns.as_euler("xyz"), atol=1e-5)


@pytest.mark.parametrize(
    ("raw", "standard"),
    [
        ([0, 0, 1, 1, 0], [1, 1, 0, 0, 1]),  # starts low in all episodes: inverted
        ([1, 1, 0, 0, 1], [1, 1, 0, 0, 1]),
        ([100, 100, 0, 0, 100], [1, 1, 0, 0, 1]),
        ([-1, -1, 1, 1, -1], [1, 1, 0, 0, 1]),
        ([0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, 1]),
        ([0.08, 0.08, 0, 0, 0.08], [1, 1, 0, 0, 1]),  # metres
    ],
)
def test_drafted_grippers(raw, standard):
    action = np.zeros((len(raw), 7))
    action[:, 6] = raw
    card = drafted(action=[action] * 3)
    got = card.action.gripper[0].evaluate({"action": action}, len(raw))
    np.testing.assert_allclose(got[:, 0], standard, atol=1e-6)


def test_columns_by_name():
    rng = np.random.default_rng(4)
    card = drafted(
        action__world_vector=[rng.normal(size=(9, 3))],
        action__rotation_delta=[rng.normal(size=(9, 3))],
        action__gripper_closedness_action=[rng.integers(0, 2, (9, 1))],
    )
    assert [str(term) for term in card.action.terms] == [
        "action.world_vector", "action.rotation_delta", "action.gripper_closedness_action"
    ]  # fmt: skip
    assert [op.name for op in card.action.gripper[0].ops] == ["invert"]


def test_without_any_action_the_draft_says_so():
    series = {"observation.temperature": Series.join([np.ones((5, 1))])}
    text = draft_card(Bare("observation.image"), series).to_yaml()
    assert "CHECK no action was found" in text


def test_command(demo, tmp_path):
    page, card = tmp_path / "sub/page.html", tmp_path / "sub/card.yaml"
    arguments = ["data", "inspect", str(demo), "--out", str(page), "--draft-card", str(card)]
    done = RUN.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "27 steps in 6 episodes" in done.stdout
    assert "gripper range" in done.stdout
    assert "observation.state" in done.stdout
    assert set(load_cards(card)) == {"demo"}
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 2
    assert "http" not in html
    assert 'src="data:' in html
    done = RUN.invoke(app, arguments)
    assert done.exit_code == 1
    assert "exists; give another file" in done.stderr


def test_command_json(demo):
    done = RUN.invoke(app, ["data", "inspect", str(demo), "--json", "--split", "val"])
    seen = json.loads(done.stdout)
    assert seen["episodes"] == 3
    assert seen["cameras"]["wrist"]["size"] == [32, 24]
    assert seen["action"]["names"][:3] == ["x", "y", "z"]
    assert {"rule", "severity", "where", "evidence", "cure"} == set(seen["findings"][0])


def test_command_fails_with_the_cure(tmp_path):
    done = RUN.invoke(app, ["data", "inspect", str(tmp_path)])
    assert done.exit_code == 1
    assert "give the version directory" in " ".join(done.stderr.split())


def test_help_has_an_example_of_inspect():
    done = RUN.invoke(app, ["data", "inspect", "--help"])
    assert "spatialvla-ft data inspect" in done.stdout
