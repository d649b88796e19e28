"""YAML with line numbers, so that a mistake in a file can be pointed at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.near import near_path


@dataclass(frozen=True)
class Located:
    """A parsed document that knows where its values stand."""

    path: Path
    value: Any
    root: yaml.Node

    def where(self, location: tuple[str | int, ...]) -> str:
        """`file:line` of a value, or of the nearest thing around it that stands in the file."""
        node, line = self.root, self.root.start_mark.line
        for part in location:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return f"{self.path}:{line + 1}"


def _child(node: yaml.Node, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line, value
            if key.value == "<<":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
        for other in merged:
            found = _child(other, part)
            if found is not None:
                return found
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line, node.value[part]
    return None


def _refuse_duplicates(node: yaml.Node, path: Path, seen: set[int]) -> None:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in keys and key.value != "<<":
                raise DatasetError(
                    f"{path}:{line}: {key.value!r} stands twice, first in line {keys[key.value]}; "
                    "remove one"
                )
            keys[key.value] = line
            _refuse_duplicates(value, path, seen)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(value, path, seen)


# libyaml reads the published cards in a tenth of the time of pure Python.
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(path: Path) -> Located:
    """Parse a file; DatasetError if it is missing, no YAML, or names a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}{near_path(path)}") from None
    try:
        root = yaml.compose(text, Loader=_LOADER)
        if root is None:
            raise DatasetError(f"{path} is empty")
        _refuse_duplicates(root, path, set())
        return Located(path, yaml.load(text, Loader=_LOADER), root)
    except yaml.YAMLError as error:
        raise DatasetError(f"{path} is no valid YAML: {error}") from None
