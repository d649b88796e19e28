"""A recipe with every default written out, and where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

COLUMN = 44
"""Where comments start."""


def annotated(content: Mapping[str, Any], origins: Mapping[tuple[str, ...], str]) -> str:
    """YAML of a recipe, a comment behind every value.

    Args:
        content: the whole recipe, plain values.
        origins: {path of keys: origin} of values and of sections that were given whole; all other
            values are defaults.
    """
    return "".join(f"{line}\n" for line in _mapping(content, (), "", origins))


def _mapping(
    content: Mapping[str, Any],
    at: tuple[str, ...],
    indent: str,
    origins: Mapping[tuple[str, ...], str],
) -> Iterator[str]:
    for key, value in content.items():
        here = (*at, str(key))
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _mapping(value, here, f"{indent}  ", origins)
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            yield f"{indent}{key}:"
            for i, item in enumerate(value):
                lines = list(_mapping(item, (*here, str(i)), f"{indent}  ", origins))
                yield f"{indent}- {lines[0].lstrip()}"
                yield from lines[1:]
        else:
            text = f"{indent}{key}: {_flow(value)}"
            yield f"{text:<{COLUMN}}  # {_origin(here, origins)}"


def _origin(at: tuple[str, ...], origins: Mapping[tuple[str, ...], str]) -> str:
    for length in range(len(at), 0, -1):
        if at[:length] in origins:
            return origins[at[:length]]
    return "default"


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n...\n").strip()
