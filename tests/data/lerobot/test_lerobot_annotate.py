"""`data annotate` of LeRobot folders: the column is there, all else is what it was."""

import json

import numpy as np
import points_checks
import pyarrow.parquet as pq
import pytest
import yaml
from annotate_command import RUN, annotate, known
from lerobot_write import LENGTHS, action_of
from lerobot_write import write as write_lerobot

from spatialvla_ft.cli.main import app
from spatialvla_ft.data import build_index, load_cards, open_dataset
from spatialvla_ft.data.lerobot.store import LeRobotStore


@pytest.fixture(scope="module")
def lerobot(acted, tmp_path_factory):
    """(LeRobot made of it, the same annotated, RLDS made of that)."""
    root = tmp_path_factory.mktemp("lerobot")
    card = root / "card.yaml"
    raw = yaml.safe_load(points_checks.ACTED)
    del raw["cards"]["another"]
    card.write_text(yaml.safe_dump(raw))
    for args in (
        ["convert", acted, root / "plain", "--to", "lerobot", "--card", card],
        ["annotate", root / "plain", "--out", root / "told", "--column", "hints.point"],
        ["convert", root / "told", root / "rlds", "--to", "rlds"],
    ):
        done = RUN.invoke(app, ["data", *map(str, args), "--json"])
        assert done.exit_code == 0, done.output
    return root / "plain", root / "told", root / "rlds/acted/1.0.0", json.loads(done.stdout)


def test_lerobot_gets_the_column_and_keeps_the_rest(lerobot):
    plain, told, *_ = lerobot
    (old,), (new,) = ([*(p / "data").rglob("*.parquet")] for p in (plain, told))
    a, b = pq.ParquetFile(old), pq.ParquetFile(new)
    assert b.schema_arrow.names == [*a.schema_arrow.names, "hints.point"]
    rows = b.read().drop_columns(["hints.point"]).to_pylist()
    assert repr(a.read().to_pylist()) == repr(rows)  # NaN equals NaN there
    sizes = [[f.metadata.row_group(i).num_rows for i in range(f.num_row_groups)] for f in (a, b)]
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) > 1
    features = json.loads(b.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features["hints.point"]["length"] == 3
    store = LeRobotStore(told)
    assert store.info.features["hints.point"].names == ("x", "y", "z")
    for number in range(len(points_checks.COMMANDS)):
        got = store.trajectory(number, ("hints.point",))["hints.point"]
        np.testing.assert_allclose(got, known(number), atol=1e-6)
    stats = json.loads((told / "meta/stats.json").read_text(), parse_constant=pytest.fail)
    joined = np.concatenate([known(n) for n in range(6)]).astype(np.float64)
    np.testing.assert_allclose(stats["hints.point"]["mean"], np.nanmean(joined, axis=0), rtol=1e-5)
    rows = pq.read_table(told / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    np.testing.assert_allclose(rows[0]["stats/hints.point/max"], np.nanmax(known(0), axis=0))
    assert rows[2]["stats/hints.point/count"] == [0]
    assert load_cards(told / "card.yaml")["told"].target_point == "hints.point"
    assert '"hints.point"' in (told / "README.md").read_text()
    dataset = open_dataset(told, card=None)
    np.testing.assert_allclose(dataset[0].target_point, known(0)[1], atol=1e-6)


def test_the_way_to_rlds_takes_the_column_along(lerobot):
    *_, path, report = lerobot
    assert report["exact"] is True
    index = build_index(path)
    np.testing.assert_allclose(index.column("hints.point", 0), known(0), atol=1e-6)
    assert load_cards(path / "card.yaml")["acted"].target_point == "hints.point"


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_without_a_card_keeps_its_videos(tmp_path, version):
    folder = write_lerobot(tmp_path / "so100", version)
    report = annotate(
        folder, "--out", tmp_path / "told", "--by", "contact", "--tool-position", "action[1:4]"
    )
    assert report["ends"] == len(LENGTHS)
    assert report["with_point"] == sum(LENGTHS)
    store = LeRobotStore(tmp_path / "told")
    assert store.info.version == version
    for number, length in enumerate(LENGTHS):
        got = store.trajectory(number, ("target_point",))["target_point"]
        want = action_of(number, length - 1)[1:4]
        np.testing.assert_array_equal(got, np.tile(want, (length, 1)))
    videos = sorted(p.relative_to(folder) for p in folder.rglob("*.mp4"))
    assert len(videos) > 1
    for video in videos:
        assert (folder / video).read_bytes() == (tmp_path / "told" / video).read_bytes()
    sample = open_dataset(tmp_path / "told", card=None)[0]
    assert sample.target_point is not None
    if version == "v2.1":
        lines = (tmp_path / "told/meta/episodes_stats.jsonl").read_text().splitlines()
        assert json.loads(lines[2])["stats"]["target_point"]["count"] == [LENGTHS[2]]


def test_nothing_of_lerobot_is_overwritten(lerobot, tmp_path):
    said = annotate(lerobot[0], "--out", lerobot[1], "--column", "p", code=1)
    assert "exists and is not empty" in said
    said = annotate(lerobot[0], "--out", tmp_path / "n", "--name", "told", code=1)
    assert "--name is for RLDS" in said
    said = annotate(lerobot[0], "--out", tmp_path / "n", "--column", "index", code=1)
    assert "'index' already" in said
    said = annotate(lerobot[0], "--out", tmp_path / "n", "--column", "a/b", code=1)
    assert "no '/'" in said
    assert not (tmp_path / "n").exists()
