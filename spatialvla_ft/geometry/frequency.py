"""Sinusoidal encoding of coordinates (as in NeRF, without the factor pi)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def frequency_encoding(
    x: Float[Tensor, "*B C"], num_freqs: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*B D"]:
    """Per channel [x, sin(2^0 x) .. sin(2^(n-1) x), cos(2^0 x) .. cos(2^(n-1) x)].

    Args:
        x: coordinates of order 1.
        num_freqs: n.
        dtype: that phases and sines are computed in. Half precision leaves the highest bands
            hardly any digits: it is here to reproduce models that were computed so.

    Returns:
        D = C * (2 * num_freqs + 1), channel by channel.
    """
    bands = 2.0 ** torch.arange(num_freqs, dtype=torch.float32, device=x.device)
    x = x.to(dtype).unsqueeze(-1)
    phase = x * bands.to(dtype)
    return torch.cat((x, phase.sin(), phase.cos()), dim=-1).flatten(-2)
