"""Which columns hold the words, guessed from their names and what they hold."""

from __future__ import annotations

import re
from typing import Any

from spatialvla_ft.data.store import Field

DRAWN = (
    "several sentences per step: first takes the first that is not empty; CHECK whether training "
    "is to draw another each time, several: drawn"
)
_WORDS = ("instruction", "task", "language", "text", "caption", "prompt", "command")


def draft_language(fields: tuple[Field, ...], remarks: dict[str, str]) -> dict[str, Any]:
    """The `language` of a card: the column with the words, or the columns that are called alike.

    Args:
        fields: of the dataset.
        remarks: takes what is doubtful, under `language`.
    """
    words = [f for f in fields if f.kind == "words" and "embedding" not in f.key.lower()]
    words.sort(key=lambda field: field.per != "step")
    for pattern in _WORDS:
        found = [f for f in words if pattern in f.key.rsplit(".", 1)[-1].lower()]
        if not found:
            continue
        alike = [f for f in found if _stem(f) == _stem(found[0]) and f.per == found[0].per]
        single = all(field.shape in ((), (1,)) for field in alike)
        kind = "string" if single else "string_array"
        keys = [field.key for field in alike]
        card: dict[str, Any] = {"kind": kind, "key": keys[0] if len(keys) == 1 else keys}
        if not single or len(keys) > 1:
            card["several"] = "first"
            _add_remark(remarks, DRAWN)
        if found[0].per == "episode":
            _add_remark(remarks, "one value per episode, the same at all its steps")
        return card
    codes = [f for f in fields if "instruction" in f.key and f.kind == "numbers"]
    codes = [f for f in codes if f.dtype in ("int32", "int64", "uint8") and _long(f)]
    if codes:
        return {"kind": "utf8_codepoints", "key": codes[0].key, "end": "nul"}
    others = ", ".join(field.key for field in words)
    _add_remark(remarks, "CHECK no column with words was found"
                + (f" by its name; columns of text: {others}" if others else ""))  # fmt: skip
    return {"kind": "none", "key": None}


def _stem(field: Field) -> str:
    """`language_instruction_2` -> `language_instruction`."""
    return re.sub(r"_?\d+$", "", field.key)


def _long(field: Field) -> bool:
    return field.width > 16 or field.width < 0


def _add_remark(remarks: dict[str, str], text: str) -> None:
    remarks["language"] = "; ".join(filter(None, (text, remarks.get("language"))))
