"""Files of dataset cards: read, checked whole, every mistake told with its line and a cure."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, get_args

import pydantic
from pydantic import BaseModel

from spatialvla_ft.checked_yaml import Located, load_yaml
from spatialvla_ft.data.cards.card import Card, Template
from spatialvla_ft.data.errors import DatasetError

SCHEMA_VERSION = 1
_CURES = {
    "list_type": "; write it in [ ]",
    "string_type": "; write it in quotes",
    "dict_type": "; write it as {key: value}",
    "model_type": "; write it as {key: value}",
}


def load_cards(path: str | Path) -> dict[str, Card]:
    """All cards of a YAML file, checked.

    Raises:
        DatasetError: every mistake at once, each with file and line.
    """
    path = Path(path)
    document = load_yaml(path, DatasetError)
    content = document.value
    if not isinstance(content, dict) or not isinstance(content.get("cards"), dict):
        raise DatasetError(f"{path}: a card file has schema_version and cards: {{<name>: <card>}}")
    problems = []
    allowed = {"schema_version", "defaults", "cards", "templates"}
    problems += [
        f"{document.where((key,))}: unknown key {key!r}; allowed are {sorted(allowed)}"
        for key in content.keys() - allowed
    ]
    if content.get("schema_version") != SCHEMA_VERSION:
        problems.append(
            f"{document.where(('schema_version',))}: schema_version {content.get('schema_version')}"
            f" is not {SCHEMA_VERSION}"
        )
    defaults = content.get("defaults") or {}
    cards = {}
    for name, raw in content["cards"].items():
        if not isinstance(raw, dict):
            problems.append(f"{document.where(('cards', name))}: a card is a mapping, got {raw!r}")
            continue
        full = with_defaults(raw, defaults)
        digest = hashlib.sha256(json.dumps(full, sort_keys=True, default=str).encode()).hexdigest()
        try:
            cards[name] = Card.model_validate({**full, "name": name, "source_hash": digest})
        except pydantic.ValidationError as error:
            problems += _explain(error, document, ("cards", name))
    for name, raw in (content.get("templates") or {}).items():
        try:
            Template.model_validate(with_defaults(raw, {}))
        except pydantic.ValidationError as error:
            problems += _explain(error, document, ("templates", name))
    if problems:
        raise DatasetError("\n".join(problems))
    return cards


def raw_card(path: Path, name: str) -> dict[str, Any]:
    """The card called `name` of a card file, or its only one, as the file has it with defaults."""
    content = load_yaml(path, DatasetError).value
    cards: dict[str, Any] = content["cards"]
    raw = cards[name] if name in cards else next(iter(cards.values()))
    return with_defaults(raw, content.get("defaults") or {})


def with_defaults(raw: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Keys of `raw` win; the action is filled key by key, all else as a whole."""
    full = {**defaults, **raw}
    if isinstance(raw.get("action"), dict) and isinstance(defaults.get("action"), dict):
        full["action"] = {**defaults["action"], **raw["action"]}
    return full


def _suggest(key: str, parents: tuple[str | int, ...]) -> str:
    """The nearest name that is allowed there, as a question."""
    model: Any = Card
    for part in parents:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        kinds = [annotation, *get_args(annotation)]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not inner:
            return ""
        model = inner[0]
    near = difflib.get_close_matches(key, list(model.model_fields), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _explain(
    error: pydantic.ValidationError, document: Located, prefix: tuple[str, ...]
) -> list[str]:
    lines = []
    for item in error.errors():
        location = (*prefix, *item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key" + _suggest(str(item["loc"][-1]), item["loc"][:-1])
        elif item["type"] not in ("value_error", "missing"):
            message += f", got {item['input']!r}{_CURES.get(item['type'], '')}"
        lines.append(f"{document.where(location)}: {'.'.join(map(str, location))}: {message}")
    return lines
