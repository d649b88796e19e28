"""The tables of action tokens: their first values, other sizes, and rows trained apart.

First values: neighbouring bins start as neighbours. Every token decodes to numbers (x, y, z of a
translation, three angles of a rotation, the gripper's state). Their frequency encoding, times a
random projection, is a table in which tokens that mean similar movements have similar rows. With
independent rows a new model first has to learn that thousands of tokens form a space; in the small
model the loss then stood still for 400 steps.

Other sizes: action tokens are the last real ids of the vocabulary, so a grid of another size only
moves its end.

Rows apart: an untied head is one matrix over the whole vocabulary, of which adaptation wants only
the action rows. Separated, they are a small trainable table beside a head that stays as it is; what
is saved has them joined again, in the released layout.

Shape letters: N action tokens, F features of a token, V text tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..actions.grid import ActionGrid
from ..geometry.frequency import frequency_encoding

if TYPE_CHECKING:
    from .configuration_spatialvla import SpatialVLAConfig
    from .modeling_spatialvla import SpatialVLAForConditionalGeneration

CHUNK_ROWS = 16384


# ---------------------------------------------------------------- first values


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


# ---------------------------------------------------------------- the head's rows, apart

ACTION_HEAD = "action_head_rows"
"""Name of the module, for `lora.train_whole` and `train.only`."""

_ROWS = f"{ACTION_HEAD}.weight"
_HEAD = "language_model.lm_head.weight"


@torch.no_grad()
def separate_action_head(model: SpatialVLAForConditionalGeneration) -> None:
    """Copy the head's action rows into `model.action_head_rows`, which the head reads from now on.

    Raises:
        ValueError: the head has none of its own, since they are tied to the spatial table.
    """
    if model.config.tie_action_head:
        raise ValueError(
            f"{ACTION_HEAD}: the head of this model has no action rows of its own, they are the "
            f"spatial table itself (tie_action_head); leave {ACTION_HEAD} out and train "
            "spatial_embed_tokens"
        )
    assert model.action_head_rows is None, "the action rows are separated already"
    rows = model.grid_tokens.rows(slice(0, model.config.spatial_token_num))
    model.action_head_rows = nn.Embedding.from_pretrained(rows.clone(), freeze=False)


@torch.no_grad()
def join_action_head(model: SpatialVLAForConditionalGeneration) -> None:
    """Write separated action rows back into the head (in place); nothing where there are none."""
    if model.action_head_rows is None:
        return
    begin = model.config.action_token_begin_idx
    rows = model.action_head_rows.weight
    head = model.language_model.lm_head.weight
    head[begin : begin + len(rows)] = rows.to(head)
    model.action_head_rows = None


def joined_weights(config: SpatialVLAConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with separated action rows in their place in the head."""
    if _ROWS not in weights:
        return weights
    begin = config.action_token_begin_idx
    joined = {name: tensor for name, tensor in weights.items() if name != _ROWS}
    rows, head = weights[_ROWS], weights[_HEAD]
    joined[_HEAD] = torch.cat((head[:begin], rows.to(head), head[begin + len(rows) :]))
    return joined


# ---------------------------------------------------------------- other sizes


@torch.no_grad()
def set_action_rows(
    model: SpatialVLAForConditionalGeneration,
    counts: Sequence[int],
    table: Float[Tensor, "V D"],
    head: Float[Tensor, "V D"],
) -> None:
    """Give the model these action tokens (in place): its three tables, and what its config says.

    Args:
        model: any; the ids of its text tokens stay.
        counts: action tokens of each slot, V altogether.
        table: their embeddings.
        head: their rows of the head; not used where the head is tied to the table.
    """
    assert model.action_head_rows is None, "action rows are separated after they are set"
    config = model.config
    total = sum(counts)
    if len(table) != total or len(head) != total:
        raise ValueError(
            f"{list(counts)} action tokens need {total} rows, got {len(table)} embeddings and "
            f"{len(head)} rows of the head"
        )
    begin, had = config.action_token_begin_idx, config.spatial_token_num
    language = model.language_model
    tied = config.tie_action_head
    # Rows that the model never reads only have to be there.
    _replace(language.model.embed_tokens, begin, had, table, used=not config.use_spatial_token)
    _replace(language.lm_head, begin, had, table if tied else head, used=not tied)
    if config.use_spatial_token:
        _replace(model.spatial_embed_tokens, 0, had, table)
    set_action_counts(config, counts)
    model.action_grid = None  # what these mean their caller knows
    for holder in (language.config, language, language.model):
        if hasattr(holder, "vocab_size"):
            holder.vocab_size = config.text_config.vocab_size


def set_action_counts(config: SpatialVLAConfig, counts: Sequence[int]) -> None:
    """Make a configuration (in place) that of the same model with these action tokens per slot."""
    config.text_config.vocab_size += sum(counts) - config.spatial_token_num
    config.spatial_token_num = sum(counts)
    config.action_token_counts = list(counts)
    config.check()


def _replace(
    module: nn.Embedding | nn.Linear, begin: int, had: int, rows: Tensor, *, used: bool = True
) -> None:
    """Exchange `had` rows of a weight, from `begin` on, for `rows`; in place if the size stays."""
    weight = module.weight
    if len(rows) == had:
        if used:
            weight[begin : begin + had] = rows.to(weight)
        return
    whole = torch.cat((weight[:begin], rows.to(weight), weight[begin + had :]))
    module.weight = nn.Parameter(whole, requires_grad=weight.requires_grad)
    if isinstance(module, nn.Embedding):
        module.num_embeddings = len(whole)
    else:
        module.out_features = len(whole)
