"""Even bins for every number, each by itself: what SpatialVLA's grids are held against.

RT-2 and OpenVLA give each number of an action 256 even bins. Here they are predicted in one pass
from the placeholders, with one-hot targets; bins of one number know nothing of another's.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .parallel import ParallelHead, mean_of
from .protocol import HeadSizes, Prediction


class LinearBins(ParallelHead):
    """A softmax over the bins of every number; grippers by a logit.

    Args:
        sizes: what it must fit.
        bins: of every number, from -1 to 1.
        width, blocks: of the trunk.
    """

    kind: ClassVar[str] = "linear_bins"
    modes: ClassVar[tuple[str, ...]] = ("argmax", "expectation")

    def __init__(
        self, sizes: HeadSizes, bins: int = 256, width: int | None = None, blocks: int = 2
    ) -> None:
        super().__init__(sizes, width, blocks)
        if bins < 2:
            raise ValueError(f"bins must be 2 or more, got {bins}")
        self.bins = bins
        self.out = nn.Linear(self.width, len(self.moves) * bins + len(self.grippers))

    def logits(self, hidden: Float[Tensor, "B R D"]) -> tuple[Tensor, Tensor]:
        """(moves (B, K, M, bins), grippers (B, K, G)), float32."""
        found = self.out(self.features(hidden)).float()
        split = len(self.moves) * self.bins
        return found[..., :split].unflatten(-1, (-1, self.bins)), found[..., split:]

    def centres(self, device: torch.device) -> Float[Tensor, " bins"]:
        """Middles of the bins."""
        return (torch.arange(self.bins, device=device) + 0.5) * (2 / self.bins) - 1

    def loss(
        self,
        hidden: Float[Tensor, "B R D"],
        actions: Float[Tensor, "B K A"],
        valid: Bool[Tensor, "B K A"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean cross entropy of the moves, plus that of the grippers."""
        moves, grippers = self.logits(hidden)
        loss, metrics = self.gripper_loss(grippers, actions, valid)
        counts = None if valid is None else valid[..., self.moves]
        wanted = actions[..., self.moves].float()
        if counts is not None:  # what does not count may hold anything
            wanted = torch.where(counts, wanted, 0.0)
        target = ((wanted.clamp(-1, 1) + 1) * (self.bins / 2)).long().clamp_max(self.bins - 1)
        cross = F.cross_entropy(moves.flatten(0, 2), target.flatten(), reduction="none")
        right = (moves.argmax(-1) == target).float()
        cross = mean_of(cross.view(target.shape), counts)
        metrics |= {
            "cross_entropy": cross.detach(),
            "bins_right": mean_of(right, counts).detach(),
        }
        return loss + cross, metrics

    def raw(self, hidden: Float[Tensor, "B R D"]) -> Float[Tensor, "B n"]:
        """Logarithms of all probabilities, and the grippers' logits."""
        moves, grippers = self.logits(hidden)
        return torch.cat((moves.log_softmax(-1).flatten(1), grippers.flatten(1)), -1)

    def predict(self, hidden: Float[Tensor, "B R D"], mode: str | None = None) -> Prediction:
        """Middles of the best bins, or their expectation, and one standard deviation."""
        moves, grippers = self.logits(hidden)
        centres, chance = self.centres(moves.device), moves.softmax(-1)
        mean = (chance * centres).sum(-1)  # no matrix product: autocast would round it
        spread = ((chance * centres.square()).sum(-1) - mean.square()).clamp_min(0).sqrt()
        found = mean if mode == "expectation" else centres[moves.argmax(-1)]
        return Prediction(self.whole(found, grippers), self.whole_spread(spread, grippers))
