"""Action spaces, normalisation, adaptive action grids, their tokens and their embeddings.

Names are imported on first use, so that `actions.spaces` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapt import adapt_embeddings as adapt_embeddings
    from .gaussians import fit_gaussians as fit_gaussians
    from .grid import ActionGrid as ActionGrid
    from .tokenizer import SpatialActionTokenizer as SpatialActionTokenizer

_HOME = {
    "ActionGrid": "grid",
    "SpatialActionTokenizer": "tokenizer",
    "adapt_embeddings": "adapt",
    "fit_gaussians": "gaussians",
}

__all__ = ["ActionGrid", "SpatialActionTokenizer", "adapt_embeddings", "fit_gaussians"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
