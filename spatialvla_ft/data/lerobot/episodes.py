"""Where every episode lies: the same table for v2.1 and v3.0."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.info import Info


@dataclass(frozen=True)
class Clip:
    """Where the pictures of one camera in one episode lie: a file, and seconds into it."""

    path: str
    start: float


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        length: steps.
        data: parquet file with its rows, relative to the dataset.
        clips: key of a video to its place.
        tasks: what the robot was told, all of it.
        extra: further columns of `meta/episodes` (v3.0).
    """

    length: int
    data: str
    clips: dict[str, Clip]
    tasks: tuple[str, ...]
    extra: dict[str, Any]


def read_episodes(folder: Path, info: Info) -> list[Episode]:
    """All episodes in order.

    Raises:
        DatasetError: a table is missing or damaged, or episodes are not numbered 0, 1, 2, ...
    """
    rows = _rows_v21(folder) if info.version == "v2.1" else _rows_v30(folder)
    rows.sort(key=lambda row: row["episode_index"])
    numbers = [row["episode_index"] for row in rows]
    if numbers != list(range(len(rows))):
        raise DatasetError(
            f"{folder}: episodes must be numbered 0 to {len(rows) - 1}, got {numbers[:8]}...; "
            "fetch the whole dataset, or write it again"
        )
    make = _episode_v21 if info.version == "v2.1" else _episode_v30
    try:
        return [make(row, info) for row in rows]
    except KeyError as error:
        raise DatasetError(
            f"{folder}/meta: the episodes have no column {error}, so this is no {info.version} "
            "dataset; fetch it again"
        ) from None


def read_tasks(folder: Path, info: Info) -> dict[int, str]:
    """Number of a task to its words."""
    if info.version == "v2.1":
        return {row["task_index"]: row["task"] for row in _json_lines(folder / "meta/tasks.jsonl")}
    table = _parquet(folder / "meta/tasks.parquet")
    words = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(words) != 1:
        raise DatasetError(
            f"{folder}/meta/tasks.parquet has columns {table.column_names}; expected task_index "
            "and the words"
        )
    columns = table.to_pydict()
    return dict(zip(columns["task_index"], columns[words[0]], strict=True))


def _rows_v21(folder: Path) -> list[dict[str, Any]]:
    return _json_lines(folder / "meta/episodes.jsonl")


def _rows_v30(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{folder}/meta/episodes has no parquet file; fetch the dataset again")
    rows = []
    for path in files:
        table = _parquet(path)
        rows += table.select(
            [n for n in table.column_names if not n.startswith("stats/")]
        ).to_pylist()
    return rows


def _episode_v21(row: dict[str, Any], info: Info) -> Episode:
    number = row["episode_index"]
    fields = {"episode_chunk": number // info.chunks_size, "episode_index": number}
    videos = [key for key, feature in info.features.items() if feature.dtype == "video"]
    clips = {key: Clip(_video_path(info).format(video_key=key, **fields), 0.0) for key in videos}
    tasks = tuple(row.get("tasks") or ())
    return Episode(row["length"], info.data_path.format(**fields), clips, tasks, {})


def _episode_v30(row: dict[str, Any], info: Info) -> Episode:
    clips = {}
    for key, feature in info.features.items():
        if feature.dtype == "video":
            place = {k: row[f"videos/{key}/{k}"] for k in ("chunk_index", "file_index")}
            path = _video_path(info).format(video_key=key, **place)
            clips[key] = Clip(path, float(row[f"videos/{key}/from_timestamp"]))
    place = {k: row[f"data/{k}"] for k in ("chunk_index", "file_index")}
    known = ("data/", "videos/", "meta/", "dataset_", "episode_index", "length", "tasks")
    extra = {k: v for k, v in row.items() if not k.startswith(known)}
    tasks = tuple(row.get("tasks") or ())
    return Episode(row["length"], info.data_path.format(**place), clips, tasks, extra)


def _video_path(info: Info) -> str:
    if info.video_path is None:
        raise DatasetError("meta/info.json has video features but no video_path; fetch it again")
    return info.video_path


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; fetch the dataset again") from None
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is not JSON lines ({error}); fetch it again") from None


def _parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, use_threads=False)
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; fetch the dataset again") from None
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{path} is damaged ({error}); fetch it again") from None
