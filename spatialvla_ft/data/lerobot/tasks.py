"""The words of LeRobot's tasks, and of every step by the number of its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.episodes import Episodes, read_json_lines, read_parquet
from spatialvla_ft.data.lerobot.info import Info
from spatialvla_ft.data.lerobot.troubles import Trouble

WORDS = ("task", "__index_level_0__", "tasks")
"""Columns that hold the words where no pandas index says so, likeliest first."""


def read_tasks(folder: Path, info: Info) -> dict[int, str]:
    """Number of a task to its words; tasks without words are left out.

    Raises:
        DatasetError: the table is missing or damaged, nothing says which column holds the words, or
            a number stands for two of them.
    """
    if info.version == "v2.1":
        path = folder / "meta/tasks.jsonl"
        rows = read_json_lines(path)
        numbers = [row.get("task_index") for row in rows]
        words = [row.get("task") for row in rows]
    else:
        path = folder / "meta/tasks.parquet"
        table = read_parquet(path)
        if "task_index" not in table.column_names:
            raise DatasetError(
                f"{path} has columns {table.column_names}; expected task_index and the words"
            )
        numbers = table.column("task_index").to_pylist()
        words = table.column(_column_of_words(table, path)).to_pylist()
    found: dict[int, str] = {}
    for row, (value, text) in enumerate(zip(numbers, words, strict=True)):
        number = _whole(value)
        if number is None:
            raise DatasetError(
                f"{path}: task_index is {value!r} in row {row}; number the tasks 0, 1, 2, ..."
            )
        if text is None:
            continue
        if not isinstance(text, str):
            raise DatasetError(f"{path}: the words of task {number} are {text!r}; write a sentence")
        if found.setdefault(number, text) != text:
            raise DatasetError(
                f"{path}: task {number} is both {found[number]!r} and {text!r}; give each "
                "sentence a number of its own"
            )
    return found


def _whole(number: Any) -> int | None:
    """A whole number, also where it is kept as a float; else None."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    return int(number) if np.isfinite(number) and number == int(number) else None


def _column_of_words(table: pa.Table, path: Path) -> str:
    """The index of the table as pandas wrote it, as LeRobot reads it; else by its name."""
    texts = [f.name for f in table.schema if pa.types.is_string(f.type) or _is_large(f.type)]
    index = [n for n in (table.schema.pandas_metadata or {}).get("index_columns", ()) if n in texts]
    candidates = index or [name for name in WORDS if name in texts] or texts
    if len(candidates) != 1 and not (candidates and candidates[0] in WORDS):
        raise DatasetError(
            f"{path} has columns {table.column_names}, and {texts or 'none'} hold text: which are "
            "the words of the tasks? Write them as the table's index, or as a column called task"
        )
    return str(candidates[0])


def _is_large(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def task_troubles(
    numbers: Int64[np.ndarray, " r"],
    owners: Int64[np.ndarray, " r"],
    steps: Int64[np.ndarray, " r"],
    tasks: dict[int, str],
    episodes: Episodes,
) -> list[Trouble]:
    """Rows whose task has no words, or other words than the episode table has for their episode.

    A table whose sentences are not among the tasks at all is of before they were renamed, and does
    not count.

    Args:
        numbers: task_index of rows.
        owners: their episodes.
        steps: their steps.
        tasks: number to words.
        episodes: the table.
    """
    found: list[Trouble] = []
    known = set(tasks.values())
    # One row of each episode and task.
    change = np.ones(len(numbers), bool)
    change[1:] = (np.diff(owners) != 0) | (np.diff(numbers) != 0)
    seen: set[tuple[int, int]] = set()
    for row in np.flatnonzero(change).tolist():
        if (pair := (int(owners[row]), int(numbers[row]))) in seen:
            continue
        seen.add(pair)
        number, owner, step = int(numbers[row]), int(owners[row]), int(steps[row])
        told = episodes.tasks(owner)
        if number not in tasks:
            found.append(
                _trouble(
                    "task without words",
                    f"episode {owner}, step {step}: task_index {number} has no words in meta/tasks",
                    f"add task {number}, or give the row the number of one of {sorted(tasks)[:8]}",
                )
            )
        elif told and set(told) <= known and tasks[number] not in told:
            found.append(
                _trouble(
                    "words contradicted",
                    f"episode {owner}, step {step}: by its task_index {number} the words are "
                    f"{tasks[number]!r}, by the episode table {list(told)}",
                    "a merge may have kept the numbers of another table: mend task_index, or the "
                    "column tasks of the episode table, whichever is wrong",
                )
            )
    return found


def _trouble(rule: str, evidence: str, cure: str) -> Trouble:
    return Trouble(rule=rule, serious=True, where="task_index", evidence=evidence, cure=cure)
