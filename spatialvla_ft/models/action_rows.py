"""First values of the action tokens' embeddings: neighbouring bins start as neighbours.

Every token decodes to numbers (x, y, z of a translation, three angles of a rotation, the gripper's
state). Their frequency encoding, times a random projection, is a table in which tokens that mean
similar movements have similar rows. With independent rows a new model first has to learn that
thousands of tokens form a space; in the small model the loss then stood still for 400 steps.

Shape letters: N action tokens, F features of a token, V text tokens, D hidden size.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..actions.grid import ActionGrid
from ..geometry.frequency import frequency_encoding

CHUNK_ROWS = 16384


def token_features(grid: ActionGrid, num_freqs: int = 2) -> list[Float[Tensor, "N F"]]:
    """Frequency encoding of what each token decodes to, slot by slot.

    A translation has three coordinates, a rotation three angles, a joint one, the gripper a state.
    """
    ids = np.tile(np.asarray(grid.offsets), (max(grid.counts), 1))
    for index, count in enumerate(grid.counts):
        ids[:count, index] += np.arange(count)
    decoded = torch.as_tensor(grid.decode(ids), dtype=torch.float32)
    return [
        frequency_encoding(decoded[:count, slot.start : slot.stop] * np.pi, num_freqs)
        for slot, count in zip(grid.slots, grid.counts, strict=True)
    ]


def ordered_table(
    grid: ActionGrid, hidden_size: int, seed: int = 0, num_freqs: int = 2
) -> Float[Tensor, "N D"]:
    """Rows for a model without text embeddings worth following.

    As the head's rows they meet hidden states of unit RMS, so their standard deviation is
    2 / sqrt(D): logits start with a spread of about 2, which lets training sharpen them at once.
    """
    std = 2 / hidden_size**0.5
    generator = torch.Generator().manual_seed(seed)
    tables = []
    for features in token_features(grid, num_freqs):
        projection = torch.randn(features.shape[1], hidden_size, generator=generator)
        table = features @ projection
        tables.append(table / table.std().clamp_min(1e-6) * std)
    return torch.cat(tables)


def text_like_table(
    text_rows: Float[Tensor, "V D"], grid: ActionGrid, seed: int = 0, num_freqs: int = 2
) -> Float[Tensor, "N D"]:
    """Rows with the mean, the directions and the spread of a trained model's text rows, float32.

    The projection's rows are Gaussian mixtures of centred text rows: exactly draws from the normal
    distribution that has the text rows' covariance, without decomposing it. Around the text rows'
    mean, the action rows have the text rows' mean squared distance, so the layers behind them, and
    the logits of a head that starts as their copy, see rows of the kind they were trained on.
    """
    count, width = text_rows.shape
    chunks = text_rows.split(CHUNK_ROWS)
    mean = sum(chunk.double().sum(0) for chunk in chunks) / count
    mean = mean.float()
    spread = float(sum((c.float() - mean).square().sum() for c in chunks)) / count
    generator = torch.Generator().manual_seed(seed)
    tables = []
    for features in token_features(grid, num_freqs):
        projection = torch.zeros(features.shape[1], width)
        for chunk in chunks:
            weights = torch.randn(features.shape[1], len(chunk), generator=generator)
            projection += weights @ (chunk.float() - mean)
        table = features @ projection
        rms = table.square().sum(1).mean().sqrt().clamp_min(1e-12)
        tables.append(mean + table * (spread**0.5 / rms))
    return torch.cat(tables)
