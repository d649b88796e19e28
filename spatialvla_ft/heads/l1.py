"""L1 regression in one pass: the head of OpenVLA-OFT (arXiv 2502.19645).

The mean absolute error has its least at the median: where demonstrations agree this is the most
accurate head, and where they go left or right it goes between.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .parallel import ParallelHead, mean_of
from .protocol import HeadSizes, Prediction


class L1(ParallelHead):
    """Every number of the chunk, regressed; grippers by a logit.

    Args:
        sizes: what it must fit.
        width, blocks: of the trunk.
    """

    kind: ClassVar[str] = "l1"

    def __init__(self, sizes: HeadSizes, width: int | None = None, blocks: int = 2) -> None:
        super().__init__(sizes, width, blocks)
        self.out = nn.Linear(self.width, len(self.moves) + len(self.grippers))

    def numbers(self, hidden: Float[Tensor, "B R D"]) -> tuple[Tensor, Tensor]:
        """(moves (B, K, M), gripper logits (B, K, G)), float32."""
        found = self.out(self.features(hidden)).float()
        return found[..., : len(self.moves)], found[..., len(self.moves) :]

    def loss(
        self,
        hidden: Float[Tensor, "B R D"],
        actions: Float[Tensor, "B K A"],
        valid: Bool[Tensor, "B K A"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean absolute error of the moves plus cross entropy of the grippers."""
        moves, grippers = self.numbers(hidden)
        loss, metrics = self.gripper_loss(grippers, actions, valid)
        counts = None if valid is None else valid[..., self.moves]
        wanted = actions[..., self.moves].float()
        if counts is not None:  # what does not count may hold anything
            wanted = torch.where(counts, wanted, 0.0)
        error = mean_of((moves - wanted).abs(), counts)
        return loss + error, {**metrics, "absolute_error": error.detach()}

    def raw(self, hidden: Float[Tensor, "B R D"]) -> Float[Tensor, "B n"]:
        """The regressed numbers, and the grippers' logits."""
        return torch.cat(self.numbers(hidden), -1).flatten(1)

    def predict(self, hidden: Float[Tensor, "B R D"], mode: str | None = None) -> Prediction:
        """The regressed numbers; this head does not know how sure it is."""
        moves, grippers = self.numbers(hidden)
        return Prediction(self.whole(moves, grippers))
