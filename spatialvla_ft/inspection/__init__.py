"""What a dataset looks like, and what about it smells: numbers only, no pictures of them."""

from spatialvla_ft.inspection.findings import Finding
from spatialvla_ft.inspection.look import Inspection, draft_for, inspect_dataset

__all__ = ["Finding", "Inspection", "draft_for", "inspect_dataset"]
