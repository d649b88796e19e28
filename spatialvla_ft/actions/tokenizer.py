"""Action tokens inside a language model's vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .axes import like, to_numpy
from .grid import ActionGrid

_APPENDED = {"<mask>"}
"""Tokens that a tokenizer class puts behind everything by itself, without a row in the model."""


class SpatialActionTokenizer:
    """A transformers tokenizer and an action grid: normalised actions to absolute token ids.

    The tokens are called <ACTION00000>, <ACTION00001>, ... and their ids are contiguous; the number
    in the name is the grid's relative id. A tokenizer without any gets them all, as special tokens
    at its end (the caller resizes the model's embeddings). One with more or fewer than the grid
    has is refused.

    Attributes:
        tokenizer: the transformers tokenizer.
        grid: the action grid.
        begin_id: absolute id of <ACTION00000>.
        num_added: how many tokens were added to the tokenizer, 0 if it had them.
    """

    def __init__(self, tokenizer: Any, grid: ActionGrid) -> None:
        self.tokenizer = tokenizer
        self.grid = grid
        have = action_tokens(tokenizer)
        self.num_added = 0
        if not have:
            tokens = [action_token(index) for index in range(grid.total)]
            self.num_added = int(tokenizer.add_tokens(tokens, special_tokens=True))
            have = action_tokens(tokenizer)
        self.begin_id = _check_tokens(have, grid)

    @property
    def end_id(self) -> int:
        """Absolute id after the last action token."""
        return self.begin_id + self.grid.total

    def encode(self, actions: Any) -> Any:
        """Normalised actions (n, dim) to absolute ids (n, tokens) int64, a column per slot.

        ValueError as `ActionGrid.encode`.
        """
        return self.grid.encode(actions) + self.begin_id

    def decode(self, ids: Any, *, mode: Any = None) -> Any:
        """Absolute ids (n, tokens) to normalised actions (n, dim) float64.

        ValueError names the id that is no action token, or one of another slot.
        """
        array = to_numpy(ids)
        if array.ndim == 1 and len(array) == self.grid.tokens:
            array = array[None]
        self.grid.check_ids(array, begin=self.begin_id)
        relative = array.astype(np.int64) - self.begin_id
        return like(self.grid.decode(relative, mode=mode), ids)

    def text(self, actions: Any) -> str:
        """The tokens of normalised actions (n, dim) as one string."""
        return "".join(action_token(int(i)) for i in to_numpy(self.grid.encode(actions)).ravel())


def action_token(index: int) -> str:
    """Name of the action token with a relative id."""
    return f"<ACTION{index:05d}>"


def action_tokens(tokenizer: Any) -> dict[int, int]:
    """{relative id: absolute id} of the tokens called <ACTIONn>."""
    return {
        int(token[7:-1]): index
        for token, index in tokenizer.get_vocab().items()
        if token.startswith("<ACTION") and token.endswith(">") and token[7:-1].isdigit()
    }


def _check_tokens(have: dict[int, int], grid: ActionGrid) -> int:
    """Absolute id of the first action token; ValueError unless the grid's tokens are all there."""
    if len(have) != grid.total or set(have) != set(range(grid.total)):
        missing = next((i for i in range(grid.total) if i not in have), None)
        detail = "" if missing is None else f" (the first one missing is {action_token(missing)})"
        raise ValueError(
            f"the tokenizer has {len(have)} action tokens but the grid with bins {grid.bins} needs "
            f"{grid.total}{detail}; use a grid with the bins that the tokenizer was made for "
            "(`spatialvla-ft grids fit --bins ...`)"
        )
    begin = have[0]
    wrong = next((i for i in range(grid.total) if have[i] != begin + i), None)
    if wrong is not None:
        raise ValueError(
            f"action tokens must have contiguous ids: {action_token(wrong)} has id {have[wrong]}, "
            f"not {begin + wrong}; build the tokenizer anew from one without action tokens"
        )
    return begin


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
        content[key] = [entry for entry in old if entry["id"] < begin] + [
            {**like, "id": begin + i, "content": action_token(i)} for i in range(count)
        ]
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
