"""What a dataset's folder says of itself: features, splits, and the files of the shards.

Whether an index still fits its dataset, and which of its rows a new one can keep.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.rlds.features import Leaf, Unread, parse_features
from spatialvla_ft.data.rlds.places import Store
from spatialvla_ft.near import near_path

FORMATS = ("tfrecord", "array_record")


@dataclass(frozen=True)
class Split:
    """A split and its shards: file names and the number of episodes in each."""

    name: str
    shards: tuple[str, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset_info.json` says: name, version, file format and splits (train first)."""

    name: str
    version: str
    file_format: str
    splits: tuple[Split, ...]
    licence: str | None = None
    """What its makers wrote as redistribution licence."""


def read_features(store: Store, *, unread: list[Unread] | None = None) -> tuple[Leaf, ...]:
    """Leaves of the dataset; DatasetError if it is not an RLDS dataset, see `parse_features`."""
    root = _read_json(store, "features.json")
    return parse_features(root, store.path("features.json"), unread=unread)


def feature_hash(store: Store) -> str:
    """SHA-256 of features.json."""
    return hashlib.sha256(store.read("features.json")).hexdigest()


def read_dataset_info(store: Store) -> DatasetInfo:
    """Splits and shard names; DatasetError on file formats that are not indexed, by name."""
    path = store.path("dataset_info.json")
    info = _read_json(store, "dataset_info.json")
    file_format = (info.get("fileFormat") or "tfrecord").lower()
    if file_format not in FORMATS:
        raise DatasetError(
            f"{path}: the file format is {file_format!r}; only {' and '.join(FORMATS)} are "
            "indexed, since the others unpack many episodes to read one frame. Convert it with "
            "tfds convert_format --out_file_format=tfrecord"
        )
    name, version = info["name"], info["version"]
    splits = []
    for split in info.get("splits", []):
        lengths = tuple(int(n) for n in split.get("shardLengths", []))
        template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        shards = []
        for i in range(len(lengths)):
            fields = {
                "DATASET": name,
                "SPLIT": split["name"],
                "FILEFORMAT": file_format,
                "SHARD_X_OF_Y": f"{i:05d}-of-{len(lengths):05d}",
                "SHARD_INDEX": f"{i:05d}",
                "NUM_SHARDS": f"{len(lengths):05d}",
            }
            shard = template
            for field, value in fields.items():
                shard = shard.replace("{" + field + "}", value)
            shards.append(shard)
        splits.append(Split(split["name"], tuple(shards), lengths))
    if not splits:
        raise DatasetError(f"{path}: no splits; the dataset was not prepared to its end")
    splits.sort(key=lambda split: split.name != "train")
    licence = (info.get("redistributionInfo") or {}).get("license")
    return DatasetInfo(name, version, file_format, tuple(splits), licence or None)


def shard_table(store: Store, info: DatasetInfo) -> list[dict[str, Any]]:
    """Name, split, place in it, size and version of every shard; DatasetError if one is missing."""
    shards = [
        {"name": name, "split": split.name, "number": number, "expected": split.lengths[number]}
        for split in info.splits
        for number, name in enumerate(split.shards)
    ]
    found = store.stats([str(shard["name"]) for shard in shards])
    table = []
    for shard, stat in zip(shards, found, strict=True):
        if stat is None:
            raise DatasetError(
                f"{store.path(str(shard['name']))} is missing, though dataset_info.json lists it; "
                "fetch the shard"
            )
        table.append(shard | stat)
    return table


def _read_json(store: Store, name: str) -> dict[str, Any]:
    path = store.path(name)
    try:
        content = json.loads(store.read(name))
    except FileNotFoundError:
        raise DatasetError(
            f"{path} is missing; give the version directory of an RLDS dataset, the one with "
            "features.json and dataset_info.json, e.g. bridge_orig/1.0.0"
            + (near_path(store.url) if store.local else "")
        ) from None
    except PermissionError:
        raise DatasetError(f"{path} may not be read; ask its owner for access") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: an object was expected, got {type(content).__name__}")
    return content


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
