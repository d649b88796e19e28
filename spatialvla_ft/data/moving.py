"""The filters of a card: which steps begin a chunk that moves."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from spatialvla_ft.actions.spaces import RawActions
from spatialvla_ft.data.card import Card
from spatialvla_ft.data.errors import DatasetError


def moving(card: Card, action: RawActions, horizon: int) -> Bool[np.ndarray, " T"]:
    """Whether any action of the chunk that starts at a step moves, for every filter."""
    keep = np.ones(len(action), bool)
    for rule in card.filters:
        low, high = rule.dims
        if high > action.shape[1]:
            raise DatasetError(
                f"card {card.name!r}, filters: dims {list(rule.dims)} leave the action, which has "
                f"{action.shape[1]} columns; mend dims, q01 and q99"
            )
        spread = np.asarray(rule.q99) - np.asarray(rule.q01) + 1e-8
        moves = (np.abs(2 * action[:, low:high] / spread) > rule.tol).any(axis=1)
        last = len(moves) - 1
        ahead = np.minimum(np.arange(len(moves))[:, None] + np.arange(horizon), last)
        keep &= moves[ahead].any(axis=1)
    return keep
