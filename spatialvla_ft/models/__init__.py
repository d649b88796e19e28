"""SpatialVLA: configuration, model and processor in the form transformers expects."""

from .configuration_spatialvla import SpatialVLAConfig
from .modeling_spatialvla import SpatialVLAForConditionalGeneration
from .processing_spatialvla import SpatialVLAProcessor

__all__ = ["SpatialVLAConfig", "SpatialVLAForConditionalGeneration", "SpatialVLAProcessor"]
