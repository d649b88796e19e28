"""From a training run to a folder that anyone can load, with outputs to check it against."""

from ..policy.stored import VerifyReport
from .checkpoint import Export, export_checkpoint
from .stored import verify_export

__all__ = ["Export", "VerifyReport", "export_checkpoint", "verify_export"]
