"""More or fewer action tokens than the base: in the model's tables, and in its tokenizer.

Action tokens are the last real ids of the vocabulary, so a grid of another size only moves its end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..actions.tokenizer import action_token, action_tokens

if TYPE_CHECKING:
    from .configuration_spatialvla import SpatialVLAConfig
    from .modeling_spatialvla import SpatialVLAForConditionalGeneration

_APPENDED = {"<mask>"}
"""Tokens that a tokenizer class puts behind everything by itself, without a row in the model."""


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


def with_action_tokens(tokenizer: Any, count: int) -> Any:
    """The tokenizer with exactly `count` action tokens; itself if it has them, or has none.

    transformers can add tokens but not take any away, so the files that it saves are edited and
    read again.

    Raises:
        ValueError: other tokens come after the action tokens, so that these cannot move.
    """
    have = action_tokens(tokenizer)
    if not have or len(have) == count:
        return tokenizer
    begin = min(have.values())
    behind = {
        token
        for token, index in tokenizer.get_vocab().items()
        if index >= begin + len(have) and token not in _APPENDED
    }
    if behind:
        raise ValueError(
            f"the tokenizer has {sorted(behind)[:5]} after its {len(have)} action tokens, so there "
            f"cannot be {count}; use a grid of {len(have)} tokens"
        )
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        _edit(path, "added_tokens", begin, count)
        _edit(Path(folder) / "tokenizer_config.json", "added_tokens_decoder", begin, count)
        return type(tokenizer).from_pretrained(folder)


def _edit(path: Path, key: str, begin: int, count: int) -> None:
    """Write `count` action tokens from id `begin` in place of all tokens from there on."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if key not in content:
        return
    old = content[key]
    if isinstance(old, dict):  # {"1736": {"content": ...}}
        like = old[str(begin)]
        kept = {index: entry for index, entry in old.items() if int(index) < begin}
        content[key] = kept | {
            str(begin + i): {**like, "content": action_token(i)} for i in range(count)
        }
    else:  # [{"id": 1736, "content": ...}]
        like = next(entry for entry in old if entry["id"] == begin)
        kept = [entry for entry in old if entry["id"] < begin]
        content[key] = kept + [
            {**like, "id": begin + i, "content": action_token(i)} for i in range(count)
        ]
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
