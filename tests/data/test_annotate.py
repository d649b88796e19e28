"""`data annotate`: known points in a new dataset in which all else is what it was."""

import itertools
import pickle
import shutil

import numpy as np
import points_checks
import pytest
import yaml
from annotate_command import annotate, known
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.converters.hindsight import NEVER_CLOSES, NO_POSITION, ONLY_OPENS
from spatialvla_ft.converters.rlds_column import add_column
from spatialvla_ft.data import DatasetError, build_index, open_dataset
from spatialvla_ft.processes import Worker

RUN = CliRunner()


@pytest.fixture(scope="module")
def annotated(acted, tmp_path_factory):
    """(report, version directory of the new RLDS dataset)."""
    out = tmp_path_factory.mktemp("annotated")
    report = annotate(acted, "--out", out, "--name", "told", "--plot", out / "sub/points.png")
    return report, out / "told/1.0.0", out / "sub/points.png"


def test_every_step_has_the_known_point(acted, annotated):
    report, path, _ = annotated
    index = build_index(path)
    for number in range(len(points_checks.COMMANDS)):
        got = index.column("target_point", number)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, known(number), atol=1e-6)
    assert (report["episodes"], report["found"]) == (6, 4)
    assert (report["closings"], report["releases"], report["ends"]) == (3, 1, 1)
    assert report["nothing"] == {ONLY_OPENS: [2], NO_POSITION: [4]}
    assert report["steps"] == sum(map(len, points_checks.COMMANDS))
    assert report["with_point"] == 10 + 6 + 6 + 6
    assert report["followed"]["gain"] == pytest.approx(points_checks.GAIN, rel=1e-4)
    assert report["seen"] == {"primary": 1.0}
    assert report["warnings"] == []
    sample = open_dataset(path, card=None)[len(points_checks.COMMANDS[0]) - 1]
    assert (sample.episode, sample.step) == (1, 1)  # the card drops the first
    np.testing.assert_allclose(sample.target_point, known(1)[1], atol=1e-6)


def test_everything_else_is_what_it_was(acted, annotated):
    old, new = build_index(acted), build_index(annotated[1])
    assert set(new.leaves) == {*old.leaves, "target_point"}
    assert (new.name, new.version, new.num_steps) == ("told", "1.0.0", old.num_steps)
    for number, length in enumerate(old.episode_lengths.tolist()):
        for key, leaf in old.leaves.items():
            if leaf.kind == "image":
                for t in range(length):
                    assert old.image_bytes(number, t, key) == new.image_bytes(number, t, key)
            elif leaf.kind == "tensor":
                assert old.column(key, number).tobytes() == new.column(key, number).tobytes()
            else:
                assert old.column(key, number).tolist() == new.column(key, number).tolist()
    was, now = (
        yaml.safe_load((p / "card.yaml").read_text())["cards"] for p in (acted, annotated[1])
    )
    assert set(now) == {"told"}
    note = now["told"]["notes"].pop()
    assert "hindsight" in note
    assert "by auto" in note
    assert now["told"] == {**was["acted"], "control_hz": 4, "target_point": "target_point"}
    assert not list(annotated[1].parent.glob("incomplete*"))


def test_the_plot_shows_episodes_with_points(annotated):
    from PIL import Image

    from spatialvla_ft.viz.inspection import RINGS

    pixels = np.asarray(Image.open(annotated[2]))
    ring = (pixels == RINGS["target_point"]).all(axis=2)
    rows = np.array_split(ring, 4)  # one per episode with a point
    assert all(row.sum() > 200 for row in rows)


def differing(one, other, place=""):
    """Where what tfds reads is not the same, NaN included."""
    if isinstance(one, dict):
        parts = [differing(one[k], other[k], f"{place}.{k}") for k in one if k in other]
        odd = [f"{place}.{k}" for k in one.keys() ^ other.keys()]
        return [*odd, *itertools.chain.from_iterable(parts)]
    if isinstance(one, list):
        if len(one) != len(other):
            return [f"{place}: {len(one)} and {len(other)}"]
        pairs = enumerate(zip(one, other, strict=True))
        parts = [differing(a, b, f"{place}[{i}]") for i, (a, b) in pairs]
        return list(itertools.chain.from_iterable(parts))
    if isinstance(one, bytes):
        return [] if one == other else [place]
    a, b = np.asarray(one), np.asarray(other)
    if a.dtype != b.dtype or a.shape != b.shape:
        return [f"{place}: {a.dtype}{a.shape} and {b.dtype}{b.shape}"]
    if a.dtype == object:  # bytes are equal where their pointers are not
        return differing(a.ravel().tolist(), b.ravel().tolist(), place)
    return [] if a.tobytes() == b.tobytes() else [place]


def test_tfds_reads_every_kind_of_feature_as_before(written, wild_written, tfds_read, tmp_path):
    """Sequences, compressed tensors, float64, pictures; two splits."""
    cases = {
        "zoo": (written / "zoo/1.0.0", "observation.nested.c.point"),
        "wild": (wild_written / "wild/1.0.0", "fresh.point"),
    }
    values = {}
    for name, (source, column) in cases.items():
        place = tmp_path / "source" / name
        shutil.copytree(source, place)
        index = build_index(place)
        rng = np.random.default_rng(4)
        values[name] = [
            rng.normal(size=(n, 3)).astype(np.float32) for n in index.episode_lengths.tolist()
        ]
        values[name][0][0] = np.nan
        add_column(
            index,
            tmp_path / name / "1.0.0",
            name=name,
            column=column,
            values=values[name],
            meaning="points",
        )
    jobs = [(tmp_path / name / "1.0.0", tmp_path / "dump" / name) for name in cases]
    with Worker("points_checks:read_again", jobs) as reader:
        reader.recv()
    for name, (_, column) in cases.items():
        number = 0
        for split in build_index(tmp_path / name / "1.0.0").splits:
            found = pickle.loads((tmp_path / "dump" / name / f"{split}.pickle").read_bytes())
            before = tfds_read(name, split)
            assert len(found) == len(before) > 0
            for pair, want in zip(found, before, strict=True):
                for episode in pair:
                    for t, step in enumerate(episode["steps"]):
                        *parents, last = column.split(".")
                        node = step
                        for parent in parents:
                            node = node[parent]
                        assert node.pop(last).tobytes() == values[name][number][t].tobytes()
                        assert step.pop("fresh", {}) == {}
                assert not differing(list(pair), list(want)), name
                number += 1


def test_array_record_stays_array_record(wild_written, tmp_path):
    shutil.copytree(wild_written / "array_record/demo/1.0.0", tmp_path / "source")
    old = build_index(tmp_path / "source")
    points = [np.full((n, 3), n, np.float32) for n in old.episode_lengths.tolist()]
    out = tmp_path / "more/1.0.0"
    add_column(old, out, name="more", column="p", values=points, meaning="points")
    new = build_index(out)
    assert new.file_format == "array_record"
    assert new.splits == old.splits
    assert new.num_episodes == 9
    for number in range(9):
        np.testing.assert_array_equal(new.column("p", number), points[number])
        for key, leaf in old.leaves.items():
            if leaf.kind == "tensor":
                assert new.column(key, number).tobytes() == old.column(key, number).tobytes()
            elif leaf.kind == "image":
                assert new.image_bytes(number, 0, key) == old.image_bytes(number, 0, key)


def test_a_damaged_dataset_is_not_copied(acted, tmp_path, monkeypatch):
    index = build_index(acted)
    monkeypatch.setattr(type(index), "num_skipped", 3)
    with pytest.raises(DatasetError, match="3 damaged records"):
        add_column(index, tmp_path / "x", name="x", column="p", values=[], meaning="")


def test_by_gripper_alone(acted, tmp_path):
    report = annotate(acted, "--out", tmp_path, "--by", "gripper")
    assert report["nothing"] == {NEVER_CLOSES: [1], ONLY_OPENS: [2], NO_POSITION: [4]}
    assert report["ends"] == 0


def test_by_contact_the_state_is_a_step_short_where_actions_are_another_frame(acted, tmp_path):
    raw = yaml.safe_load(points_checks.ACTED)
    raw["cards"]["acted"]["action"]["translation"] = ["action[3:6]"]
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump(raw))
    report = annotate(acted, "--out", tmp_path, "--by", "contact", "--card", card)
    assert "hardly follows the actions" in report["warnings"][0]
    assert not report["end_moved"]
    index = build_index(tmp_path / "acted/1.0.0")
    for number in range(6):
        state = points_checks.acted_episode(number)[0]["observation.state"]
        np.testing.assert_array_equal(index.column("target_point", number)[0], state[-1, :3])


def test_of_an_absolute_action_the_way_there_counts(acted, tmp_path):
    raw = yaml.safe_load(points_checks.ACTED)
    action = raw["cards"]["acted"]["action"]
    action |= {"reference": "absolute", "translation": ["observation.state[0:3]"]}
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump(raw))
    report = annotate(acted, "--out", tmp_path, "--by", "contact", "--card", card)
    # The action is where the tool is already: nothing is commanded.
    assert report["followed"] == {"gain": 0.0, "correlation": 0.0}


def test_offset_is_in_the_tools_frame(acted, tmp_path):
    from scipy.spatial.transform import Rotation

    offset = np.array([0.01, 0.02, -0.3])
    annotate(acted, "--out", tmp_path, "--offset=0.01,0.02,-0.3")
    state = points_checks.acted_episode(3)[0]["observation.state"].astype(np.float64)
    turn = Rotation.from_rotvec([0, 0, state[5, 5]]) * Rotation.from_rotvec([0, state[5, 4], 0])
    want = state[5, :3] + (turn * Rotation.from_rotvec([state[5, 3], 0, 0])).apply(offset)
    got = build_index(tmp_path / "acted/1.0.0").column("target_point", 3)
    np.testing.assert_allclose(got[:6], np.tile(want, (6, 1)), atol=1e-6)
    assert np.isnan(got[6:]).all()


PROPRIO = 'proprio: {encoding: POS_EULER, terms: ["observation.state"]}'


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        ([], (PROPRIO, ""), ["no proprioception", "--tool-position 'observation.state[0:3]'"]),
        ([], ("POS_EULER", "JOINT"), ["joint space (JOINT)", "--tool-position"]),
        ([], ("encoding: POS_EULER, ", ""), ["encoding None", "POS_QUAT"]),
        (["--column", "action"], None, ["'action' already", "--column action_hindsight"]),
        (["--column", "observation"], None, ["'observation' already"]),
        (["--column", "a..b"], None, ["'a..b' is no name"]),
        (["--column", "action.more"], None, ["'action' of 'action.more' holds no further"]),
        (["--offset", "1,2"], None, ["--offset: got '1,2'", "0,0,-0.03"]),
        (["--offset=0,0,1", "--tool-position", "observation.state[0:3]"], None,
         ["how the tool is turned", "leave --offset out"]),
        (["--tool-position", "observation.stat[0:3]"], None, ["did you mean 'observation.state'"]),
        (["--tool-position", "observation.state[0:4]"], None, ["4 wide", "observation.state[0:3]"]),
        (["--tool-position", "a b"], None, ["--tool-position: 'a b' is no term"]),
        (["--closed-below", "0.8"], None, ["closed_below 0.8 and open_above 0.7"]),
        (["--steady", "0"], None, ["steady: got 0"]),
        (["--name", "Told"], None, ["--name: got 'Told'"]),
        (["--plot", "x.html"], None, ["--plot: got x.html", ".png"]),
        (["--plot", "x.png"], ("extrinsics: {primary: observation.extrinsics_front}", ""),
         ["both intrinsics and extrinsics", "leave --plot out"]),
        (["--by", "gripper", "--closed-below", "0", "--open-above", "0.01"], None,
         ["nothing was found in any of 6 episodes", "(6)", "Nothing was written"]),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_written(acted, tmp_path, options, change, words):
    card = tmp_path / "card.yaml"
    text = points_checks.ACTED
    if change is not None:
        assert change[0] in text
        text = text.replace(*change)
    card.write_text(text)
    said = annotate(acted, "--out", tmp_path / "out", "--card", card, *options, code=1)
    for word in words:
        assert word in said
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_nothing_is_overwritten(acted, tmp_path):
    (tmp_path / "acted").mkdir()
    (tmp_path / "acted/mine").write_text("mine")
    assert "exists and is not empty" in annotate(acted, "--out", tmp_path, code=1)
    assert "lies within the dataset" in annotate(acted, "--out", acted / "more", code=1)


def test_two_grippers_are_refused(acted, tmp_path):
    raw = yaml.safe_load(points_checks.ACTED)
    card = raw["cards"]["acted"]
    card["action"] = {"joints": ["action[0:5]"], "gripper": ["action[5:6]", "action[6:7]"]}
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(raw))
    said = annotate(acted, "--out", tmp_path, "--card", path, code=1)
    assert "2 grippers" in said
    assert "--by contact" in said
    report = annotate(acted, "--out", tmp_path, "--card", path, "--by", "contact")
    assert (report["ends"], report["followed"]) == (6, None)


def test_the_report_in_words(acted, tmp_path):
    done = RUN.invoke(app, ["data", "annotate", str(acted), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    for words in (
        "wrote 6 episodes",
        "found in 4 of 6 episodes: 3 closings of the gripper, 1 releases, 1 ends",
        f"nothing found in 1 episodes: {ONLY_OPENS} (2)",
        "0.50 m per unit",
        "camera primary shows 100 % of the points",
    ):
        assert words in done.stdout


def test_an_interrupted_run_leaves_nothing(acted, tmp_path, monkeypatch):
    from spatialvla_ft.converters import rlds_column as module

    def fails(*args):
        raise OSError("disk full")

    monkeypatch.setattr(module, "with_floats", fails)
    assert "disk full" in annotate(acted, "--out", tmp_path / "out", code=1)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
