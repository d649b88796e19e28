"""Columns of a LeRobot data file as Arrow, in the form that `datasets` reads by itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.info import Feature

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def arrow_schema(features: dict[str, Feature]) -> pa.Schema:
    """Schema of the data files: all features but videos, with what `datasets` calls them."""
    stored = {key: feature for key, feature in features.items() if feature.dtype != "video"}
    named = {key: _hugging_face(feature) for key, feature in stored.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": named}})}
    return pa.schema([(key, _arrow(f)) for key, f in stored.items()], metadata=metadata)


def grown_schema(schema: pa.Schema, feature: Feature) -> pa.Schema:
    """The schema of a data file with a further feature, also in what `datasets` calls them."""
    metadata = dict(schema.metadata or {})
    if b"huggingface" in metadata:
        told = json.loads(metadata[b"huggingface"])
        told.setdefault("info", {}).setdefault("features", {})[feature.key] = _hugging_face(feature)
        metadata[b"huggingface"] = json.dumps(told).encode()
    return schema.append(pa.field(feature.key, _arrow(feature))).with_metadata(metadata or None)


def _arrow(feature: Feature) -> pa.DataType:
    if feature.dtype == "image":
        return PICTURE
    if feature.dtype == "string":
        return pa.string()
    kind = pa.from_numpy_dtype(np.dtype(feature.dtype))
    if feature.shape == (1,):
        return kind
    if len(feature.shape) == 1:
        return pa.list_(kind, feature.shape[0])
    for _ in feature.shape:
        kind = pa.list_(kind)
    return kind


def _hugging_face(feature: Feature) -> dict[str, Any]:
    if feature.dtype == "image":
        return {"_type": "Image"}
    value = {"dtype": feature.dtype, "_type": "Value"}
    if feature.shape == (1,):
        return value
    if len(feature.shape) == 1:
        return {"feature": value, "length": feature.shape[0], "_type": "Sequence"}
    rank = len(feature.shape)
    return {"shape": list(feature.shape), "dtype": feature.dtype, "_type": f"Array{rank}D"}


def to_arrow(feature: Feature, values: NDArray[Any] | list[bytes]) -> pa.Array:
    """A column of one episode.

    Raises:
        DatasetError: the values do not have the feature's shape or type.
    """
    if feature.dtype == "image":
        return pa.array([{"bytes": data, "path": None} for data in values], PICTURE)
    if feature.dtype == "string":
        return pa.array([str(value) for value in values], pa.string())
    array = np.asarray(values)
    wanted = (len(array), *(() if feature.shape == (1,) else feature.shape))
    if feature.shape == (1,) and array.shape == (len(array), 1):
        array = array[:, 0]
    if array.shape != wanted or array.dtype != np.dtype(feature.dtype):
        raise DatasetError(
            f"{feature.key!r} must be {feature.dtype} of shape {wanted}, got {array.dtype} of "
            f"shape {array.shape}"
        )
    flat = pa.array(np.ascontiguousarray(array).ravel())
    if array.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    for size in reversed(array.shape[1:]):
        offsets = np.arange(0, len(flat) + 1, size, dtype=np.int32)
        flat = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return flat
