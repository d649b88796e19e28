"""What a dataset's makers say of its use is found where each format keeps it."""

from __future__ import annotations

import json

import pytest

from spatialvla_ft.data.lerobot.info import licence_of_readme
from spatialvla_ft.data.rlds.info import read_dataset_info
from spatialvla_ft.data.rlds.places import open_store

INFO = {
    "name": "robot",
    "version": "1.0.0",
    "fileFormat": "tfrecord",
    "splits": [{"name": "train", "shardLengths": ["1"]}],
}


@pytest.mark.parametrize(
    ("more", "licence"),
    [({"redistributionInfo": {"license": "CC-BY-4.0"}}, "CC-BY-4.0"), ({}, None)],
)
def test_rlds(tmp_path, more, licence):
    (tmp_path / "dataset_info.json").write_text(json.dumps({**INFO, **more}))
    assert read_dataset_info(open_store(str(tmp_path))).licence == licence


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [LeRobot]\n---\nA dataset.", "apache-2.0"),
        ("---\ntags: [LeRobot]\n---\nlicense: no", None),
        ("Just words.", None),
        ("---\nlicense: [unclosed\n---\n", None),
    ],
)
def test_lerobot(tmp_path, text, licence):
    assert licence_of_readme(tmp_path) is None
    (tmp_path / "README.md").write_text(text)
    assert licence_of_readme(tmp_path) == licence
