"""SpatialVLA: configuration, model and processor in the form transformers expects.

Names are imported on first use: the configuration alone must not load the model.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "SpatialVLAConfig": "configuration_spatialvla",
    "SpatialVLAForConditionalGeneration": "modeling_spatialvla",
    "SpatialVLAProcessor": "processing_spatialvla",
}

__all__ = ["SpatialVLAConfig", "SpatialVLAForConditionalGeneration", "SpatialVLAProcessor"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
