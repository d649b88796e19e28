"""A LeRobot dataset once more with a further column of numbers per step.

Videos are copied as files, and the encoded pictures and numbers of the data files as they are, in
the same row groups; v2.1 stays v2.1 and v3.0 stays v3.0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from spatialvla_ft.converters.lerobot_meta import Moments, readme
from spatialvla_ft.converters.lerobot_writer import grown_schema, to_arrow
from spatialvla_ft.converters.mapping import Entry, read_mapping, write_mapping
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.info import BOOKKEEPING, INFO, Feature
from spatialvla_ft.data.lerobot.store import LeRobotStore
from spatialvla_ft.files import copy_visible

Values = Sequence[Float32[np.ndarray, "T n"]]
STATS, EACH_STATS = "meta/stats.json", "meta/episodes_stats.jsonl"


def add_column(
    store: LeRobotStore,
    out: Path,
    *,
    column: str,
    names: tuple[str, ...],
    values: Values,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the dataset with the column to the folder `out`.

    Args:
        store: the dataset.
        out: new.
        column: name of the feature.
        names: of its dimensions.
        values: of every episode, in order.
        progress: called with the number of episodes done.

    Raises:
        DatasetError: the name is not allowed, or the dataset is damaged.
    """
    if "/" in column or column in BOOKKEEPING:
        raise DatasetError(f"feature {column!r}: names have no '/' and are not {BOOKKEEPING}")
    feature = Feature(column, "float32", (len(names),), names, {})
    parts_of: dict[str, dict[int, Float32[np.ndarray, "T n"]]] = {}
    for episode in np.flatnonzero(store.episode_lengths > 0).tolist():
        path, _, first = store.data_file(episode)
        parts_of.setdefault(path, {})[first] = values[episode]
    copy_visible(store.folder, out, set(parts_of))
    done = 0
    for path, parts in parts_of.items():
        _grow(store.folder / path, out / path, feature, parts)
        done += len(parts)
        if progress is not None:
            progress(done)
    _declare(store, out, feature)
    _add_statistics(out, column, [Moments.of(part) for part in values])
    _add_to_mapping(out, feature)


def _grow(
    source: Path, target: Path, feature: Feature, parts: dict[int, Float32[np.ndarray, "T n"]]
) -> None:
    """A data file with the column.

    Args:
        source: the file as it is.
        target: the new one.
        feature: the column.
        parts: first row of an episode -> its values; together they fill the file.
    """
    old = pq.ParquetFile(source, memory_map=True)
    rows = np.full((old.metadata.num_rows, *feature.shape), np.nan, np.float32)
    for start, part in parts.items():
        rows[start : start + len(part)] = part
    schema = grown_schema(old.schema_arrow, feature)
    coded = [f.name for f in schema if not pa.types.is_struct(f.type)]
    compression = old.metadata.row_group(0).column(0).compression if len(rows) else "SNAPPY"
    target.parent.mkdir(parents=True, exist_ok=True)
    start = 0
    with pq.ParquetWriter(target, schema, use_dictionary=coded, compression=compression) as new:
        for i in range(old.metadata.num_row_groups):
            table = old.read_row_group(i, use_threads=False)
            grown = to_arrow(feature, rows[start : start + len(table)])
            columns = [*table.columns, pa.chunked_array([grown])]
            new.write_table(
                pa.Table.from_arrays(columns, schema=schema), row_group_size=max(len(table), 1)
            )
            start += len(table)


def _declare(store: LeRobotStore, out: Path, feature: Feature) -> None:
    """State the feature in `meta/info.json`, and in a page that shows that file."""
    raw = json.loads((out / INFO).read_text(encoding="utf-8"))
    page = out / "README.md"
    ours = page.is_file() and page.read_text(encoding="utf-8") == _page(raw)
    raw["features"][feature.key] = {
        "dtype": feature.dtype,
        "shape": list(feature.shape),
        "names": list(feature.names or ()),
    }
    (out / INFO).write_text(json.dumps(raw, indent=2, ensure_ascii=False), encoding="utf-8")
    if ours:
        page.write_text(readme(raw), encoding="utf-8")


def _page(info: dict[str, Any]) -> str | None:
    """The page that our writer gives a dataset, or None for one that it cannot have written."""
    try:
        return readme(info)
    except KeyError:
        return None


def _add_statistics(out: Path, column: str, moments: Sequence[Moments]) -> None:
    """Put those of the column where the dataset keeps statistics; JSON has none of all NaN."""
    whole, each = out / STATS, out / EACH_STATS
    total = moments[0]
    for part in moments[1:]:
        total = total + part
    if whole.is_file() and total.complete:
        stats = json.loads(whole.read_text(encoding="utf-8"))
        stats[column] = total.to_json(picture=False)
        whole.write_text(json.dumps(stats, indent=2, ensure_ascii=False), encoding="utf-8")
    if each.is_file():
        lines = [json.loads(line) for line in each.read_text(encoding="utf-8").splitlines() if line]
        for line in lines:
            found = moments[line["episode_index"]]
            if found.complete:
                line["stats"][column] = found.to_json(picture=False)
        each.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for path in sorted((out / "meta/episodes").glob("*/*.parquet")):
        table = pq.read_table(path, use_threads=False)
        if not any(name.startswith("stats/") for name in table.column_names):
            continue
        numbers = table.column("episode_index").to_pylist()
        told = [moments[number].to_json(picture=False) for number in numbers]
        for name in told[0] if told else ():
            listed = pa.array([row[name] for row in told])
            table = table.append_column(f"stats/{column}/{name}", listed)
        pq.write_table(table, path)


def _add_to_mapping(out: Path, feature: Feature) -> None:
    """So that the way back to RLDS, if the dataset came from there, takes the column along."""
    kept = read_mapping(out)
    if kept is None:
        return
    keys = tuple(feature.key.split("."))
    entry = Entry(feature.key, keys, feature.key, "column", feature.dtype, feature.shape, "none")
    write_mapping(out, replace(kept, entries=(*kept.entries, entry)))
