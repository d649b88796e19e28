"""What one prediction looks at: cameras, past steps and proprioception, in the prompt's order.

The prompt begins with one `<image>` token per observation feature. Steps follow each other oldest
first; within a step come the patches of each camera, in the order of the layout, then one token of
proprioception where the layout has it. The released model is one camera, one step, none.

Shape letters: B batch, W steps of the window, C cameras, N = W * C views, P patches of a view,
T = W * (C * P + one if there is proprioception) observation tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class ObservationLayout:
    """Which observations make one prompt.

    Attributes:
        cameras: names of the views of a step; the first one's frame is the reference frame.
        window: steps that are seen, the present one included.
        proprio_dim: numbers of proprioception per step; None for none.
    """

    cameras: tuple[str, ...] = ("primary",)
    window: int = 1
    proprio_dim: int | None = None

    def __post_init__(self) -> None:
        """ValueError for a layout that shows nothing."""
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras must be one or more different names, got {self.cameras}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1 (the present step), got {self.window}")
        if self.proprio_dim is not None and self.proprio_dim < 1:
            raise ValueError(f"proprio_dim must be at least 1, or None, got {self.proprio_dim}")

    @property
    def num_views(self) -> int:
        """Pictures of one prompt."""
        return self.window * len(self.cameras)

    def num_tokens(self, patches: int) -> int:
        """Observation tokens of one prompt whose pictures have `patches` each."""
        return self.window * (len(self.cameras) * patches + (self.proprio_dim is not None))

    @property
    def is_released(self) -> bool:
        """Whether this is the released form: one picture and nothing else."""
        return self.num_views == 1 and self.proprio_dim is None

    def to_dict(self) -> dict[str, Any]:
        """For processor_config.json."""
        return {
            "cameras": list(self.cameras),
            "window": self.window,
            "proprio_dim": self.proprio_dim,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any] | None) -> ObservationLayout:
        """From processor_config.json; a file without an entry is the released form."""
        if entry is None:
            return cls()
        return cls(tuple(entry["cameras"]), int(entry["window"]), entry["proprio_dim"])


class ObservationTokens(nn.Module):
    """Features of every view, and proprioception, as one sequence of tokens.

    Each view has an embedding of its own, zero at first, so that a model which learnt from one
    picture starts from what it knows. Proprioception goes through an MLP to one token per step.
    """

    def __init__(
        self, num_cameras: int, window: int, proprio_dim: int | None, hidden_size: int
    ) -> None:
        super().__init__()
        self.num_cameras, self.window = num_cameras, window
        if num_cameras * window > 1:
            self.view_embedding = nn.Parameter(torch.zeros(num_cameras * window, hidden_size))
        if proprio_dim is not None:
            self.proprio_projector = nn.Sequential(
                nn.Linear(proprio_dim, hidden_size),
                nn.GELU(),
                nn.Linear(hidden_size, hidden_size),
            )

    def forward(
        self, features: Float[Tensor, "BN P D"], proprio: Float[Tensor, "B W K"] | None
    ) -> Float[Tensor, "B T D"]:
        """Tokens in the prompt's order.

        Args:
            features: projected image features of all views, a sample's views in a row.
            proprio: normalised to [-1, 1]; needed where the layout has it.
        """
        views = self.num_cameras * self.window
        features_BNPD = features.unflatten(0, (-1, views))
        if views > 1:
            features_BNPD = features_BNPD + self.view_embedding[:, None]
        tokens_BWTD = features_BNPD.unflatten(1, (self.window, self.num_cameras)).flatten(2, 3)
        if hasattr(self, "proprio_projector"):
            if proprio is None:
                raise ValueError(
                    f"this model reads proprioception: pass proprio (B, {self.window}, "
                    f"{self.proprio_projector[0].in_features}), as the processor returns it"
                )
            state = proprio.to(self.proprio_projector[0].weight.dtype)
            token_BW1D = self.proprio_projector(state).unsqueeze(2)
            tokens_BWTD = torch.cat((tokens_BWTD, token_BW1D.to(tokens_BWTD.dtype)), dim=2)
        return tokens_BWTD.flatten(1, 2)
