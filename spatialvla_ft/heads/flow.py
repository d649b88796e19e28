"""Flow matching with a small action expert: the decoder of pi0 (arXiv 2410.24164).

Actions start as noise and follow a learnt velocity for ten steps. With time t from 1 (noise) to 0
(actions), x_t = t * noise + (1 - t) * actions, and the expert learns noise - actions. It is a small
transformer: its K tokens, one for each action of the chunk, see one another and the placeholders'
hidden states (in pi0 the keys and values of every layer; here the last hidden states, so that all
heads read the same). Grippers are logits of the same tokens, read at the last step.

Shape letters as in `parallel.py`; M moves of an action, E width of the expert.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .parallel import ParallelHead, mean_of
from .protocol import HeadSizes, Prediction

DRAWS = 16
"""Actions that `spread` draws to see how far they lie apart."""


class Flow(ParallelHead):
    """A velocity field over chunks of actions.

    Args:
        sizes: what it must fit.
        expert: width of the action expert, E, a multiple of 8 heads; None for that of the hidden
            states, at most 1,024, as pi0 has.
        layers: of the expert.
        steps: of Euler's method.
    """

    kind: ClassVar[str] = "flow"
    modes: ClassVar[tuple[str, ...]] = ("fixed", "sample", "spread")

    def __init__(
        self, sizes: HeadSizes, expert: int | None = None, layers: int = 4, steps: int = 10
    ) -> None:
        super().__init__(sizes, width=1, blocks=0)
        del self.trunk  # the expert takes its place
        expert = min(1024, sizes.hidden) if expert is None else expert
        if expert < 8 or expert % 8 or layers < 1 or steps < 1:
            raise ValueError(
                f"expert must be a multiple of 8, layers and steps 1 or more, got {expert}, "
                f"{layers}, {steps}"
            )
        self.steps = steps
        self.reading = nn.Sequential(nn.LayerNorm(sizes.hidden), nn.Linear(sizes.hidden, expert))
        self.enter = nn.Linear(len(self.moves), expert)
        self.place = nn.Embedding(sizes.chunk, expert)
        self.timed = nn.Sequential(
            nn.Linear(2 * expert, expert), nn.SiLU(), nn.Linear(expert, expert)
        )
        layer = nn.TransformerDecoderLayer(
            expert, 8, 4 * expert, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerDecoder(layer, layers, nn.LayerNorm(expert))
        self.velocity = nn.Linear(expert, len(self.moves))
        self.gripper = nn.Linear(expert, len(self.grippers)) if self.grippers else None

    def field(
        self,
        noisy: Float[Tensor, "B K M"],
        time: Float[Tensor, " B"],
        seen: Float[Tensor, "B R E"],
    ) -> tuple[Float[Tensor, "B K M"], Float[Tensor, "B K G"]]:
        """(velocity, gripper logits) of noisy actions, float32."""
        dtype = self.enter.weight.dtype
        x = self.enter(noisy.to(dtype)) + self.place.weight
        when = waves(time, x.shape[-1]).to(dtype)[:, None].expand_as(x)
        x = self.layers(self.timed(torch.cat((x, when), -1)), seen)
        grippers = x[..., :0] if self.gripper is None else self.gripper(x)
        return self.velocity(x).float(), grippers.float()

    def loss(
        self,
        hidden: Float[Tensor, "B R D"],
        actions: Float[Tensor, "B K A"],
        valid: Bool[Tensor, "B K A"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean squared error of the velocity at a random time, plus the grippers' cross entropy.

        Times are drawn from pi0's Beta(1.5, 1), which favours noise.
        """
        seen = self.reading(hidden.to(self.enter.weight.dtype))
        counts = None if valid is None else valid[..., self.moves]
        wanted = actions[..., self.moves].float()
        if counts is not None:  # what does not count may hold anything
            wanted = torch.where(counts, wanted, 0.0)
        noise = torch.randn_like(wanted)
        time = torch.rand(len(wanted), device=wanted.device).pow(1 / 1.5) * 0.999 + 0.001
        t = time[:, None, None]
        velocity, grippers = self.field(t * noise + (1 - t) * wanted, time, seen)
        loss, metrics = self.gripper_loss(grippers, actions, valid)
        error = mean_of((velocity - (noise - wanted)).square(), counts)
        return loss + error, {**metrics, "flow": error.detach()}

    def raw(self, hidden: Float[Tensor, "B R D"]) -> Float[Tensor, "B n"]:
        """The end of the flow from fixed noise, and the grippers' logits."""
        seen = self.reading(hidden.to(self.enter.weight.dtype))
        return torch.cat(self._follow(self._fixed(seen), seen), -1).flatten(1)

    def predict(self, hidden: Float[Tensor, "B R D"], mode: str | None = None) -> Prediction:
        """Actions at the end of the flow.

        `fixed` starts every chunk from the same noise, so that an observation has one answer;
        `sample` draws it anew; `spread` answers as `fixed` does and draws sixteen more, whose
        standard deviation says how sure the head is.
        """
        seen = self.reading(hidden.to(self.enter.weight.dtype))
        start = self._fixed(seen)
        if mode == "sample":
            start = torch.randn_like(start)
        actions = self.whole(*self._follow(start, seen))
        if mode != "spread":
            return Prediction(actions)
        several = seen.repeat_interleave(DRAWS, 0)
        drawn = torch.randn(len(several), *start.shape[1:], device=start.device)
        found = self.whole(*self._follow(drawn, several)).unflatten(0, (-1, DRAWS))
        return Prediction(actions, found.std(1))

    def _fixed(self, seen: Tensor) -> Float[Tensor, "B K M"]:
        """The same noise for every row."""
        shape = (self.sizes.chunk, len(self.moves))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return noise.to(seen.device).expand(len(seen), -1, -1)

    def _follow(self, noisy: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(moves, gripper logits) after all steps from noise."""
        grippers = noisy[..., :0]
        for step in range(self.steps):
            time = torch.full((len(noisy),), 1 - step / self.steps, device=noisy.device)
            velocity, grippers = self.field(noisy, time, seen)
            noisy = noisy - velocity / self.steps
        return noisy, grippers


def waves(time: Float[Tensor, " B"], width: int) -> Float[Tensor, "B E"]:
    """Sines and cosines of a time in [0, 1], with periods from 0.004 to 4, as pi0 has them."""
    share = torch.linspace(0, 1, width // 2, device=time.device)
    angle = time[:, None] * (2 * math.pi / (0.004 * (4.0 / 0.004) ** share))
    return F.pad(torch.cat((angle.sin(), angle.cos()), -1), (0, width % 2))
