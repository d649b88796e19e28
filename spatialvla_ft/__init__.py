"""Fine-tune, evaluate and ship spatial vision-language-action models for robots.

Importing the package makes `AutoConfig`, `AutoModel` and `AutoProcessor` of transformers understand
SpatialVLA checkpoints, which loads torch. Processes that must not load torch (simulation workers,
dataset writers that use TensorFlow, `--help`) set SPATIALVLA_FT_LIGHT=1 first; the model classes
then register themselves when they are imported.
"""

import os
from typing import Any

__version__ = "0.1.0"
__all__ = ["SpatialVLAConfig", "SpatialVLAForConditionalGeneration", "SpatialVLAProcessor"]


def __getattr__(name: str) -> Any:
    """Load the model classes on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'spatialvla_ft' has no attribute {name!r}")
    from . import models

    return getattr(models, name)


if os.environ.get("SPATIALVLA_FT_LIGHT") != "1":
    from .models import modeling_spatialvla, processing_spatialvla  # noqa: F401
