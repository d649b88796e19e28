"""Where heads are chosen: `config.action_head = {"kind": ..., "space": ..., SETTING: ...}`.

A head is added by its file and an entry in `HEADS`; code outside the package adds its own entry
before it loads a checkpoint that needs it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..actions.spaces import ActionSpace, end_effector_delta
from .flow import Flow
from .grid_tokens import GridTokens
from .l1 import L1
from .linear_bins import LinearBins
from .protocol import ActionHead, HeadSizes
from .voxel_heatmap import VoxelHeatmap

HEADS: dict[str, type[ActionHead] | type[GridTokens]] = {
    GridTokens.kind: GridTokens,
    VoxelHeatmap.kind: VoxelHeatmap,
    L1.kind: L1,
    LinearBins.kind: LinearBins,
    Flow.kind: Flow,
}
"""Heads by their kind."""

DEFAULT = GridTokens.kind


def build_head(
    action_head: Mapping[str, Any] | None, hidden_size: int, chunk: int
) -> ActionHead | None:
    """The head that a config asks for; None for grid tokens, whose weights the model has already.

    Args:
        action_head: "kind", "space" (an `ActionSpace` as a dict; one arm where absent), and the
            settings of that kind of head.
        hidden_size: of the language model.
        chunk: actions of a prediction.

    Raises:
        ValueError: no such head, or a setting that it does not have.
    """
    settings = dict(action_head or {})
    kind = settings.pop("kind", DEFAULT)
    if kind not in HEADS:
        raise ValueError(f"action_head.kind {kind!r} is unknown; use one of {sorted(HEADS)}")
    head = HEADS[kind]
    if issubclass(head, GridTokens):
        if settings:
            raise ValueError(
                f"action_head of kind {kind!r} takes no settings, got {sorted(settings)}; its "
                "sizes are those of the grid in processor_config.json"
            )
        return None
    space = settings.pop("space", None)
    known = [name for name in inspect.signature(head).parameters if name != "sizes"]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(
            f"action_head.{unknown[0]} {settings[unknown[0]]!r} is no setting of head {kind!r}; it "
            f"takes {['kind', 'space', *known]}"
        )
    acts_in = end_effector_delta() if space is None else ActionSpace.from_dict(space)
    return head(HeadSizes(hidden_size, chunk, acts_in), **settings)
