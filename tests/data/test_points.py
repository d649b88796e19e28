"""Points that instructions name: from tfds through card, LeRobot and back to samples."""

import json
from pathlib import Path

import numpy as np
import points_checks
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.converters.annotate import Settings, find_points, segments
from spatialvla_ft.converters.lerobot_meta import Moments
from spatialvla_ft.data import DatasetError, build_index, load_cards, open_dataset
from spatialvla_ft.data.lerobot.draft import draft_card
from spatialvla_ft.data.lerobot.store import LeRobotStore
from spatialvla_ft.data.rlds.episodes import RldsStore
from spatialvla_ft.processes import Worker

RUN = CliRunner()


@pytest.fixture(scope="module")
def trip(pointed, tmp_path_factory):
    """(LeRobot made of it, RLDS made of that)."""
    root = tmp_path_factory.mktemp("trip")
    for args in (
        [pointed, root / "lerobot", "--to", "lerobot"],
        [root / "lerobot", root / "rlds", "--to", "rlds"],
    ):
        done = RUN.invoke(app, ["data", "convert", *map(str, args), "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["exact"]
    return root / "lerobot", root / "rlds/pointed/1.0.0"


def other_card(pointed, tmp_path, **fields):
    raw = yaml.safe_load(points_checks.CARD)
    raw["cards"]["pointed"] |= fields
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("place", [0, 1, 2])
def test_samples_have_the_written_points(pointed, trip, place):
    dataset = open_dataset([pointed, *trip][place], card=None)
    frame = 0
    for number, length in enumerate(points_checks.LENGTHS):
        columns, _ = points_checks.episode(number)
        for t in range(length):
            sample = dataset[frame]
            frame += 1
            assert (sample.episode, sample.step) == (number, t)
            for field, key in (
                ("target_point", "target_point"),
                ("reference_point", "observation.reference_point"),
            ):
                want, got = columns[key][t], getattr(sample, field)
                if np.isnan(want).all():
                    assert got is None
                else:
                    np.testing.assert_array_equal(got, want)
                    assert got.dtype == np.float32
    assert frame == len(dataset)


@pytest.mark.parametrize(
    ("column", "frame", "words"),
    [
        ("wide", 6, ["pointed/1.0.0, episode 1, step 1", "'wide'", "x, y, z in metres"]),
        ("broken", 7, ["pointed/1.0.0, episode 1, step 2", "'broken'", "-inf", "NaN for none"]),
    ],
)
def test_what_is_no_point_is_told_with_its_place(pointed, tmp_path, column, frame, words):
    dataset = open_dataset(pointed, card=other_card(pointed, tmp_path, target_point=column))
    with pytest.raises(DatasetError) as told:
        dataset[frame]
    for word in words:
        assert word in str(told.value)
    if column == "broken":
        assert dataset[frame - 1].target_point is not None


def test_a_column_that_is_not_there_is_told_at_once(pointed, tmp_path):
    card = other_card(pointed, tmp_path, reference_point="observation.reference_pont")
    with pytest.raises(DatasetError, match=r"did you mean 'observation.reference_point'"):
        open_dataset(pointed, card=card)


def test_the_round_trip_keeps_every_bit(pointed, trip):
    a, b = build_index(pointed), build_index(trip[1])
    assert set(a.leaves) == set(b.leaves)
    for key, leaf in a.leaves.items():
        for number in range(len(points_checks.LENGTHS)):
            if leaf.kind == "tensor":
                assert a.column(key, number).tobytes() == b.column(key, number).tobytes(), key
    assert np.isnan(b.column("observation.never", 0)).all()
    cards = [load_cards(path / "card.yaml")["pointed"] for path in (pointed, *trip)]
    assert cards[0].points == cards[1].points == cards[2].points
    assert len(cards[0].points) == 2


def test_statistics_of_lerobot_leave_nan_out(trip):
    stats = json.loads((trip[0] / "meta/stats.json").read_text(), parse_constant=pytest.fail)
    assert "observation.never" not in stats
    every = [points_checks.episode(n)[0]["target_point"] for n in range(3)]
    joined = np.concatenate(every)
    found = stats["target_point"]
    assert found["count"] == [sum(points_checks.LENGTHS) - 3]
    for name, function in {
        "min": np.nanmin,
        "max": np.nanmax,
        "mean": np.nanmean,
        "std": np.nanstd,
    }.items():
        want = function(joined.astype(np.float64), axis=0)
        np.testing.assert_allclose(found[name], want, rtol=1e-6)
    rows = pq.read_table(trip[0] / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for row, values in zip(rows, every, strict=True):
        want = np.nanmin(values, axis=0)
        np.testing.assert_array_equal(row["stats/target_point/min"], want)
        assert row["stats/observation.never/count"] == [0]


def test_moments_of_parts_with_unknown_numbers():
    rng = np.random.default_rng(5)
    values = rng.normal(size=(30, 4))
    values[rng.uniform(size=values.shape) < 0.4] = np.nan
    values[:, 3] = np.nan
    values[:10, 2] = np.nan  # the first part knows nothing of it
    total = Moments.of(values[:10]) + Moments.of(values[10:13]) + Moments.of(values[13:])
    known = values[:, :3]
    listed = total.to_json(picture=False)
    np.testing.assert_allclose(listed["mean"][:3], np.nanmean(known, axis=0))
    np.testing.assert_allclose(listed["std"][:3], np.nanstd(known, axis=0))
    np.testing.assert_array_equal(listed["min"][:3], np.nanmin(known, axis=0))
    np.testing.assert_array_equal(total.count, (~np.isnan(values)).sum(axis=0))
    assert np.isnan([listed[name][3] for name in ("min", "max", "mean", "std")]).all()
    assert not total.complete
    assert Moments.of(known[10:]).complete


def rewritten(folder, column, change):
    """Replace a column of the only data file by `change(column)`."""
    (path,) = (folder / "data").rglob("*.parquet")
    table = pq.read_table(path)
    at = table.schema.get_field_index(column)
    new = change(table.column(column).to_pylist(), table.schema.field(column).type)
    pq.write_table(table.set_column(at, table.schema.field(column), new), path)


def test_empty_values_of_a_parquet_file(trip, tmp_path):
    import shutil

    folder = tmp_path / "lerobot"
    shutil.copytree(trip[0], folder)

    def number_away(rows, kind):
        rows[1][2] = None
        return pa.array(rows, kind)

    rewritten(folder, "target_point", number_away)
    point = LeRobotStore(folder).trajectory(0, ("target_point",))["target_point"][1]
    assert np.isnan(point).tolist() == [False, False, True]

    def row_away(rows, kind):
        rows[1] = None
        return pa.array(rows, kind)

    rewritten(folder, "target_point", row_away)
    with pytest.raises(DatasetError, match=r"'target_point' has 1 empty values; write NaN where"):
        LeRobotStore(folder).trajectory(0, ("target_point",))


def test_an_empty_whole_number_is_refused(trip, tmp_path):
    import shutil

    folder = tmp_path / "lerobot"
    shutil.copytree(trip[0], folder)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["target_point"]["dtype"] = "int64"
    (folder / "meta/info.json").write_text(json.dumps(info))
    (path,) = (folder / "data").rglob("*.parquet")
    table = pq.read_table(path)
    rows = [[1, None, 3]] * len(table)
    new = pa.array(rows, pa.list_(pa.int64(), 3))
    at = table.schema.get_field_index("target_point")
    pq.write_table(table.set_column(at, "target_point", new), path)
    with pytest.raises(DatasetError, match="empty values"):
        LeRobotStore(folder).trajectory(0, ("target_point",))


def test_a_lerobot_draft_takes_points_by_name(trip, tmp_path):
    import shutil

    folder = tmp_path / "lerobot"
    shutil.copytree(trip[0], folder)
    (folder / "card.yaml").unlink()
    info = json.loads((folder / "meta/info.json").read_text())
    names = ["ee.x", "ee.y", "ee.z", "ee.wx", "ee.wy", "ee.wz", "ee.gripper_pos"]
    info["features"]["action"]["names"] = names
    info["features"]["front_camera_extrinsics"] = info["features"].pop(
        "front_camera_extrinsics", info["features"].get("observation.extrinsics_front")
    )
    (folder / "meta/info.json").write_text(json.dumps(info))
    stats = json.loads((folder / "meta/stats.json").read_text())
    stats["action"] |= {"min": [0.0] * 7, "max": [1.0] * 7}
    (folder / "meta/stats.json").write_text(json.dumps(stats))
    assert draft_card(LeRobotStore(folder)).points == {
        "target_point": "target_point",
        "reference_point": "observation.reference_point",
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Directory of a touch and a place_on_top_of of the other robot."""
    out = tmp_path_factory.mktemp("true")
    arguments = (
        f"data record --robot robot_b --task touch --task place_on_top_of --episodes 2 --seed 71 "
        f"--out {out} --image-size 32 --distractors 2 --name true --json"
    )
    done = RUN.invoke(app, arguments.split())
    assert done.exit_code == 0, done.output
    return Path(json.loads(done.stdout)["path"])


def test_a_recording_holds_the_true_places(recorded):
    index = build_index(recorded)
    assert load_cards(recorded / "card.yaml")["true"].points == {
        "target_point": "target_point",
        "reference_point": "reference_point",
    }
    for number in range(2):
        task = index.column("episode_metadata.task", number).decode()
        seed = int(index.column("episode_metadata.seed", number))
        actions = index.column("action", number)
        with Worker("points_checks:true_places", "robot_b", task, seed, 2, actions) as physics:
            named, reference = physics.recv()
        # Recorded actions are float32, executed ones were not: contact makes 0.1 mm of it.
        np.testing.assert_allclose(index.column("target_point", number), named, atol=5e-4)
        if reference is None:
            assert np.isnan(index.column("reference_point", number)).all()
        else:
            np.testing.assert_allclose(
                index.column("reference_point", number), reference, atol=5e-4
            )
            assert np.linalg.norm(named - reference, axis=1).min() > 0.02
            assert np.ptp(named, axis=0).max() > 0.05  # it is carried


def test_hindsight_comes_near_the_true_places(recorded):
    index = build_index(recorded)
    card = load_cards(recorded / "card.yaml")["true"]
    points, account = find_points(RldsStore(index), card, Settings())
    assert (account.found, account.closings, account.releases, account.ends) == (2, 1, 1, 1)
    assert 0.7 < account.followed.gain < 1.3
    for number, found in enumerate(points):
        truth = index.column("target_point", number)
        first, *later = segments(found)
        assert first == 0
        error = np.linalg.norm(found[0] - truth[0])
        sideways = np.linalg.norm(found[0, :2] - truth[0, :2])
        if index.column("episode_metadata.task", number) == b"touch":
            # The fingertips end at the top of the block, up to 15 mm before it.
            assert later == []
            assert sideways < 0.03
            assert 0.005 < found[0, 2] - truth[0, 2] < 0.065
        else:
            assert error < 0.02
            (released,) = later
            assert np.linalg.norm(found[released] - truth[-1]) < 0.03
            assert np.linalg.norm(found[released] - found[0]) > 0.05
