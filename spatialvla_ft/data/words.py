"""What the robot was told at each step: words decoded, all ways of saying it, one of them drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spatialvla_ft.data.cards.fields import Language
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.sample import Sample
from spatialvla_ft.data.store import Column

ENCODINGS = (
    "say in the card's language how it is written, e.g. encoding: latin-1, or errors: replace to "
    "put a sign in the place of what cannot be read"
)
UTF8 = "write it again in UTF-8, or leave the column out"
_DRAW = 0x776F7264
"""Keeps the draw of words apart from the augmentation of the same sample."""


@dataclass(frozen=True)
class Words:
    """The words of some steps.

    Attributes:
        first: of each step, the first sentence that is not empty; "" where there is none.
        sentences: of each step, all that are not empty, where the card has them drawn; else None.
    """

    first: list[str]
    sentences: list[tuple[str, ...]] | None


def read_words(language: Language, columns: Mapping[str, Any], steps: range) -> Words | None:
    """The words of steps, None if the dataset has none.

    Args:
        language: of the card.
        columns: by key, a value per step: bytes, str or None, arrays or lists of them, or numbers
            of letters.
        steps: their numbers in the episode, for messages.

    Raises:
        DatasetError: several sentences where the card reads one, no text, or text in another
            encoding; with column and step.
    """
    if not language.keys:
        return None
    parts = [_rows(language, key, columns[key], steps) for key in language.keys]
    rows = parts[0] if len(parts) == 1 else [sum(row, ()) for row in zip(*parts, strict=True)]
    said = {row: tuple(filter(None, row)) for row in set(rows)}  # mostly one for all steps
    firsts = {row: sentences[0] if sentences else "" for row, sentences in said.items()}
    first = [firsts[row] for row in rows]
    return Words(first, [said[row] for row in rows] if language.several == "drawn" else None)


def draw_words(sample: Sample, slot: int, seed: int) -> Sample:
    """The sample with one of its sentences, as a run with this seed says it at a global slot."""
    if len(sample.sentences) < 2:
        return sample
    chosen = np.random.default_rng((seed, slot, _DRAW)).integers(len(sample.sentences))
    return dataclasses.replace(sample, instruction=sample.sentences[int(chosen)])


def check_words(language: Language, key: str, column: Column) -> None:
    """DatasetError, with the cure, if a column cannot hold what the card reads from it."""
    if language.kind == "utf8_codepoints":
        if column.kind != "numbers" or column.shape == ():
            raise DatasetError(
                f"language.kind utf8_codepoints reads the numbers of letters, {key!r} holds "
                f"{_what(column)}; {_cure(column, key)}"
            )
    elif column.kind != "words":
        raise DatasetError(
            f"language.kind {language.kind} reads text, {key!r} holds {_what(column)}; "
            f"{_cure(column, key)}"
        )
    elif language.kind == "string" and column.shape not in ((), (1,)):
        raise DatasetError(_several(key, _what(column)))


def _what(column: Column) -> str:
    size = " x ".join("?" if side < 0 else str(side) for side in column.shape)
    noun = {"words": "text", "numbers": "numbers", "picture": "pictures"}[column.kind]
    return f"{noun} of shape {size}" if size else f"one {'text' if noun == 'text' else 'number'}"


def _cure(column: Column, key: str) -> str:
    if column.kind == "words":
        kind = "string" if column.shape in ((), (1,)) else "string_array"
        return f"write kind: {kind}"
    if column.kind == "numbers" and column.shape not in ((), (1,)):
        return "if these are letters, write kind: utf8_codepoints; else name a column with words"
    return f"name a column with words instead of {key!r}, or kind: none where there is none"


def _several(key: str, found: str) -> str:
    return (
        f"language.kind string reads one sentence per step, {key!r} holds {found}; write kind: "
        "string_array, and several: first for the first that is not empty, or several: drawn for "
        "another one each time that training comes to the step"
    )


def _rows(language: Language, key: str, values: Any, steps: range) -> list[tuple[str, ...]]:
    """The sentences of each step, empty ones among them; equal ones are one object."""
    if language.kind != "utf8_codepoints":
        values = values.tolist() if isinstance(values, np.ndarray) else list(values)
        if all(type(value) in (bytes, str) for value in values):
            places = dict(zip(values[::-1], steps[::-1], strict=True))
            known = {v: (_text(language, key, v, step),) for v, step in places.items()}
            return [known[value] for value in values]
    return [
        tuple(_sentences(language, key, value, step))
        for value, step in zip(values, steps, strict=True)
    ]


def _sentences(language: Language, key: str, value: Any, step: int) -> Iterator[str]:
    if language.kind == "utf8_codepoints":
        yield _letters(language, key, value, step)
        return
    found = list(_flat(value))
    if language.kind == "string" and len(found) != 1:
        raise DatasetError(_several(key, f"{len(found)} at step {step}"))
    for raw in found:
        yield _text(language, key, raw, step)


def _text(language: Language, key: str, value: Any, step: int) -> str:
    where = f"{key!r} at step {step}"
    return text_of(value, where, encoding=language.encoding, errors=language.errors)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, np.ndarray):
        value = value.ravel().tolist()
    if not isinstance(value, list | tuple):
        yield value
        return
    for item in value:
        yield from _flat(item)


def text_of(
    value: Any,
    where: str,
    *,
    encoding: str = "utf-8",
    errors: str = "strict",
    cure: str = ENCODINGS,
) -> str:
    """Text as a dataset stores it, bytes or str, decoded; None is empty.

    Args:
        value: what is stored.
        where: column, and step or episode, for messages.
        encoding: of bytes.
        errors: what becomes of bytes that it does not know, as `bytes.decode` takes it.
        cure: of text in another encoding, for messages.

    Raises:
        DatasetError: it is no text, or not in this encoding.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, bytes):
        raise DatasetError(
            f"{where} holds {value!r}, a {type(value).__name__} and no text; name a column of text"
        )
    try:
        return value.decode(encoding, errors)
    except UnicodeDecodeError as error:
        shown = value if len(value) <= 60 else value[:60] + b"..."
        raise DatasetError(
            f"{where} is not {encoding} text: byte {error.start} of {shown!r}; {cure}"
        ) from None


def _letters(language: Language, key: str, value: Any, step: int) -> str:
    """Code points up to the first 0; of one byte each, they are bytes in the card's encoding."""
    row = np.asarray(value).ravel()
    if row.dtype.kind not in "iu":
        raise DatasetError(
            f"{key!r} at step {step} holds {row.dtype}, language.kind utf8_codepoints reads whole "
            "numbers; write kind: string or string_array for text"
        )
    ends = np.flatnonzero(row == 0)
    row = row[: ends[0] if ends.size else None]
    if row.dtype == np.uint8:
        where = f"{key!r} at step {step}"
        return text_of(row.tobytes(), where, encoding=language.encoding, errors=language.errors)
    codes = row.astype(np.int64)
    none = (codes < 0) | (codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))
    return "".join(map(chr, np.where(none, 0xFFFD, codes).tolist()))
