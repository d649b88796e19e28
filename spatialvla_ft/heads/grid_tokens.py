"""The released head: an action is a few tokens of the language model's own vocabulary.

Embeddings of action tokens are a table of their own; their logits are rows of the language model's
head, of a small table beside it while these are trained apart, or the embeddings themselves. All of
them are the model's released parameters: this head owns none, it is a view of them, made anew
whenever it is asked for, since adapters and resizing put other modules in their place.

Shape letters: B batch, T tokens, D hidden size, V vocabulary, R action rows, L label rows, N tokens
of a chunk, K actions of a chunk, A numbers of an action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..actions.grid import ActionGrid


class Table(Protocol):
    """A module with one weight: an embedding, a linear layer, or an adapter around one."""

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rows of ids, or products with hidden states."""
        ...


@dataclass(frozen=True)
class GridTokens:
    """Tables of the action tokens, and what is done with them.

    Attributes:
        text: embeddings of the whole vocabulary, times sqrt(D).
        lm_head: the language model's head.
        spatial: embeddings of the action tokens; None where they are rows of `text`.
        apart: the head's action rows, while they are trained apart from it.
        tied: whether the head's action rows are the table `spatial`.
        begin: id of the first action token.
        count: number of action tokens.
        cap: Gemma 2's bound on the logits.
        scale: sqrt(D), which Gemma puts on embeddings.
    """

    kind: ClassVar[str] = "grid_tokens"

    text: Table
    lm_head: Table
    spatial: Table | None
    apart: Table | None
    tied: bool
    begin: int
    count: int
    cap: float | None
    scale: float

    # ---------------------------------------------------------------- tables

    def embed(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Embeddings as Gemma's first layer gets them: text or spatial rows, times sqrt(D)."""
        if self.spatial is None:
            return self.text(input_ids)
        is_action = (input_ids >= self.begin) & (input_ids < self.begin + self.count)
        text = self.text(input_ids.masked_fill(is_action, 0))
        actions = self.embed_actions((input_ids - self.begin).clamp(0, self.count - 1))
        return torch.where(is_action.unsqueeze(-1), actions, text)

    def embed_actions(self, rows: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Embeddings of action tokens, counted from the first action token, times sqrt(D)."""
        if self.spatial is None:
            return self.text(rows + self.begin)
        spatial = self.spatial(rows)
        return spatial * torch.tensor(self.scale, dtype=spatial.dtype)

    def rows(self, rows: slice) -> Float[Tensor, "R D"]:
        """Weights of the head for a slice of the action tokens (counted from the first one)."""
        if self.tied:
            assert self.spatial is not None
            return self.spatial.weight[rows]
        if self.apart is not None:
            return self.apart.weight[rows]
        return self.lm_head.weight[self.begin + rows.start : self.begin + rows.stop]

    def soft_cap(self, logits: Tensor) -> Tensor:
        """Gemma 2's bound on the logits."""
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def logits(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Logits over the whole vocabulary."""
        begin, end = self.begin, self.begin + self.count
        if not self.tied:
            logits = self.lm_head(hidden)
            if self.apart is not None:
                own = F.linear(hidden, self.apart.weight)
                logits = torch.cat((logits[..., :begin], own, logits[..., end:]), -1)
            return self.soft_cap(logits)
        assert self.spatial is not None
        weight = self.lm_head.weight
        rows = (weight[:begin], self.spatial.weight, weight[end:])
        return self.soft_cap(F.linear(hidden, torch.cat(rows)))

    # ---------------------------------------------------------------- learning

    def loss_and_logits(
        self,
        hidden: Float[Tensor, "B T D"],
        labels: Int[Tensor, "B T"] | None,
        keep: int | Literal["labels"] = 0,
        ignore: int = -100,
    ) -> tuple[Float[Tensor, ""] | None, Tensor]:
        """Mean cross entropy over the label tokens (None without labels), and logits.

        Args:
            hidden: of every token.
            labels: ids to predict, `ignore` where there is nothing to predict.
            keep: 0 for the logits of all rows, n for the last n, "labels" for the rows that
                predict a label, as (L, V).
            ignore: the label that is none.
        """
        if labels is None:
            if keep == "labels":
                raise ValueError("logits_to_keep='labels' needs labels")
            return None, self.logits(hidden[:, -keep:] if keep else hidden)
        predicts = labels[:, 1:] != ignore
        targets = labels[:, 1:][predicts]
        if targets.numel() == 0:
            raise ValueError(
                f"all labels are {ignore}: there is nothing to learn from this batch; pass "
                "suffix_actions to the processor"
            )
        if keep == "labels":
            rows = logits = self.logits(hidden[:, :-1][predicts])
        else:
            logits = self.logits(hidden)
            rows = logits[:, :-1][predicts]
            logits = logits[:, -keep:] if keep else logits
        return F.cross_entropy(rows.float(), targets), logits

    # ---------------------------------------------------------------- predicting

    def actions(
        self, ids: Int[Tensor, "B N"], grid: ActionGrid | None, mode: str | None = None
    ) -> Float[Tensor, "B K A"]:
        """Normalised actions of predicted tokens, float64 as the grid holds them.

        Args:
            ids: absolute ids, as `predict_action` gives them.
            grid: what the tokens mean.
            mode: None, since there is only one way.

        Raises:
            ValueError: no grid, one of other tokens than the model's, or a mode.
        """
        if mode is not None:
            raise ValueError(f"mode {mode!r} is unknown to head {self.kind!r}; leave it out")
        if grid is None:
            raise ValueError(
                "this model does not know the grid of its action tokens, since it did not come "
                "with a processor: pass grid=processor.grid"
            )
        if grid.total != self.count:
            raise ValueError(
                f"the grid has {grid.total} tokens, the model {self.count}: give the grid of the "
                "model's own processor"
            )
        relative = (ids - self.begin).reshape(-1, grid.tokens).cpu().numpy()
        actions = torch.from_numpy(grid.decode(relative)).to(ids.device)
        return actions.reshape(len(ids), -1, grid.dim)
