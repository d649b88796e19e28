"""Whether an index still fits its dataset, and which of its rows a new one can keep."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from spatialvla_ft.data.errors import DatasetError

FORMAT_VERSION = 2
WITHOUT_COLUMNS = 3
"""Format of an index that leaves columns out, which a program that does not know it must refuse."""


def _place(shard: dict[str, Any]) -> tuple[str, int]:
    """What stays of a shard when others are added: its name counts them all."""
    return shard["split"], shard["number"]


def _bytes(size: int | None) -> str:
    return f"{size} bytes"


def _written(mtime_ns: int | None) -> str:
    """A time of writing as a person reads it."""
    if mtime_ns is None:
        return "none"
    seconds, rest = divmod(mtime_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09d} UTC"


def kept_shards(
    meta: dict[str, Any], shards: list[dict[str, Any]], features: str, where: str, cure: str
) -> dict[int, int]:
    """Which shards of the dataset the index has already: number now -> number in the index.

    Fewer than there are now if shards were added.

    Args:
        meta: of the index.
        shards: of the dataset as it is now.
        features: hash of its features.json.
        where: the dataset, for messages.
        cure: what to do about a stale index.

    Raises:
        DatasetError: the index is stale: of another format, or a shard that it knows has changed or
            is gone, or features.json has changed.
    """
    version = meta.get("format_version")
    if version not in (FORMAT_VERSION, WITHOUT_COLUMNS):
        raise DatasetError(
            f"stale index: format version {version}, this program writes {FORMAT_VERSION}; {cure}"
        )
    now = {_place(shard): (i, shard) for i, shard in enumerate(shards)}
    kept = {}
    for number, old in enumerate(meta["shards"]):
        found = now.get(_place(old))
        if found is None:
            raise DatasetError(
                f"stale index: {len(meta['shards'])} shards were indexed, the dataset now has "
                f"{len(shards)}; {old['name']} is gone; {cure}"
            )
        i, new = found
        if len(shards) == len(meta["shards"]) and old["name"] != new["name"]:
            raise DatasetError(f"stale index: shard {old['name']} is now {new['name']}; {cure}")
        for what, said in (("size", _bytes), ("mtime_ns", _written), ("version", str)):
            if old.get(what) != new.get(what):
                copied = " (a copy keeps them with cp -p or rsync -t)" if what == "mtime_ns" else ""
                raise DatasetError(
                    f"stale index: shard {new['name']} changed its {what.removesuffix('_ns')} from "
                    f"{said(old.get(what))} to {said(new.get(what))} since it was indexed{copied}; "
                    f"{cure}"
                )
        if old["expected"] != new["expected"]:
            raise DatasetError(
                f"stale index: dataset_info.json said that shard {new['name']} holds "
                f"{old['expected']} episodes and now says {new['expected']}; {cure}"
            )
        kept[i] = number
    if meta["feature_hash"] != features:
        raise DatasetError(f"stale index: {where}/features.json has changed; {cure}")
    return kept
