"""What an action head is: hidden states to a chunk of normalised actions.

A head takes tables and hidden states, never the model; the model has a head. `config.action_head =
{"kind": ..., ...}` says which one, and absent it is `grid_tokens`, the released one: its tables are
those of the language model, so it has no weights of its own and is not an `ActionHead` (see
`grid_tokens.py`). All others are modules under `model.action_head`, so their weights travel with
the checkpoint and train whole, beside whatever is done to the backbone.

`docs/extending.md` writes one in full. Shape letters: B batch, T tokens, R tokens that a head
reads, D hidden size, K actions of a chunk, A numbers of an action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..actions.spaces import ActionSpace


@dataclass(frozen=True)
class Prediction:
    """What a head predicts.

    Attributes:
        actions: normalised; a gripper is 0 closed or 1 open.
        spread: how sure it is of each number: one standard deviation, normalised; None of heads
            that do not know.
        chances: {slot of the action: probabilities (B, K, ...) over its cells}, of heads that have
            cells and were asked for them.
    """

    actions: Float[Tensor, "B K A"]
    spread: Float[Tensor, "B K A"] | None = None
    chances: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class HeadSizes:
    """What a head must fit.

    Attributes:
        hidden: size of the language model's hidden states.
        chunk: actions of a prediction.
        space: what the numbers of an action are.
    """

    hidden: int
    chunk: int
    space: ActionSpace


class ActionHead(nn.Module, ABC):
    """A head with weights of its own. Its settings are the keyword arguments of `__init__`.

    Attributes:
        kind: its name in `config.action_head`.
        modes: ways to predict, the first one by default; none where there is only one.
        parallel: whether it reads placeholders behind the prompt (`parallel.py`).
        has_maps: whether it has cells, `mapped` and `cells`, and `predict` takes maps=True.
        reads: how many of the prompt's last tokens it is shown.
        sizes: what it was built for.
    """

    kind: ClassVar[str]
    modes: ClassVar[tuple[str, ...]] = ()
    parallel: ClassVar[bool] = False
    has_maps: ClassVar[bool] = False
    reads: int = 1

    def __init__(self, sizes: HeadSizes) -> None:
        super().__init__()
        self.sizes = sizes

    @abstractmethod
    def loss(
        self,
        hidden: Float[Tensor, "B R D"],
        actions: Float[Tensor, "B K A"],
        valid: Bool[Tensor, "B K A"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss, and numbers to report.

        Args:
            hidden: states of the tokens that it reads.
            actions: normalised; checked by `check_actions` before.
            valid: which of their numbers count; None for all.
        """

    @abstractmethod
    def predict(self, hidden: Float[Tensor, "B R D"], mode: str | None = None) -> Prediction:
        """Normalised actions, and how sure; `mode` is one of `modes`, None the first of them."""

    def raw(self, hidden: Float[Tensor, "B R D"]) -> Float[Tensor, "B n"]:
        """All that it computes before anything is decided, float32: by this it is recognised.

        Logits, regressed numbers, or the end of a flow; a change of the input shows here though it
        may not move the best cell.
        """
        return self.predict(hidden).actions.flatten(1).float()

    def lengthened(
        self,
        embeds: Float[Tensor, "B T D"],
        attention_mask: Int[Tensor, "B T"] | None,
        token_type_ids: Int[Tensor, "B T"] | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the language model reads for this head: the prompt, or more; see `parallel.py`."""
        return embeds, attention_mask, token_type_ids

    def states(
        self,
        hidden: Float[Tensor, "B T D"],
        attention_mask: Int[Tensor, "B T"] | None,
        token_type_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B R D"]:
        """Of the tokens that it reads, from those of whole sequences, prompts or longer."""
        prompt = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if attention_mask is not None:
            prompt = prompt & attention_mask.bool()
        if token_type_ids is not None:
            prompt = prompt & (token_type_ids == 0)
        return last_states(hidden, prompt, self.reads)

    def check_actions(self, actions: Tensor | None, valid: Tensor | None) -> None:
        """ValueError for targets of another shape, or that are not numbers where they count."""
        if actions is None:
            raise ValueError(
                f"the action head of this model is {self.kind!r}, which learns from actions (B, "
                "chunk, dim), normalised: pass them; labels are for grid_tokens"
            )
        wanted = (self.sizes.chunk, self.sizes.space.dim)
        if tuple(actions.shape[1:]) != wanted:
            raise ValueError(
                f"actions must be (B, {wanted[0]}, {wanted[1]}), chunk and numbers of an action "
                f"({', '.join(self.sizes.space.names)}), got {tuple(actions.shape)}"
            )
        if valid is not None and valid.shape != actions.shape:
            raise ValueError(
                f"valid must have the shape of actions, {tuple(actions.shape)}, got "
                f"{tuple(valid.shape)}"
            )
        sound = torch.isfinite(actions)
        sound = sound if valid is None else sound | ~valid
        if not bool(sound.all()):
            row, step, number = (int(i) for i in (~sound).nonzero()[0])
            raise ValueError(
                f"actions hold {float(actions[row, step, number])} at sample {row}, step {step}, "
                f"{self.sizes.space.names[number]!r}: a head cannot learn from it; drop the sample "
                "or mark it in valid"
            )

    def check_mode(self, mode: str | None) -> None:
        """ValueError for a way to predict that the head does not have."""
        if mode is not None and mode not in self.modes:
            have = f"one of {list(self.modes)}" if self.modes else "no modes, leave it out"
            raise ValueError(f"mode {mode!r} is unknown to head {self.kind!r}; it has {have}")


def last_states(
    hidden: Float[Tensor, "B T D"], prompt: Bool[Tensor, "B T"], count: int
) -> Float[Tensor, "B R D"]:
    """Hidden states of each prompt's last tokens, wherever pads and later tokens lie.

    Args:
        hidden: of whole sequences.
        prompt: True at the tokens of the prompt, pads left out.
        count: R.
    """
    places = torch.arange(hidden.shape[1], device=hidden.device)
    last = torch.where(prompt, places, -1).amax(-1, keepdim=True)
    index = last + torch.arange(1 - count, 1, device=hidden.device)
    if bool((prompt.sum(-1) < count).any()):
        raise ValueError(f"a prompt has fewer than the {count} tokens that the action head reads")
    return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
