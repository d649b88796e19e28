"""Fine-tune, evaluate and ship spatial vision-language-action models for robots.

Importing the package is light and makes `AutoConfig`, `AutoModel` and `AutoProcessor` of
transformers understand SpatialVLA checkpoints.
"""

from typing import Any

from .registration import register as _register

__version__ = "0.1.0"
__all__ = ["SpatialVLAConfig", "SpatialVLAForConditionalGeneration", "SpatialVLAProcessor"]

_register()


def __getattr__(name: str) -> Any:
    """Load the model classes on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'spatialvla_ft' has no attribute {name!r}")
    from . import models

    return getattr(models, name)
