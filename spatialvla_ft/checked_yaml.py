"""YAML with line numbers: a mistake in a card, a mixture or a recipe is pointed at by file:line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from .near import near_names, near_path
from .shipped import find_recipe, no_recipe


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


def _refuse_duplicates(
    node: yaml.Node, path: Path, seen: set[int], error: type[ValueError]
) -> None:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in keys and key.value != "<<":
                raise error(
                    f"{path}:{line}: {key.value!r} stands twice, first in line {keys[key.value]}; "
                    "remove one"
                )
            keys[key.value] = line
            _refuse_duplicates(value, path, seen, error)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(value, path, seen, error)


# libyaml reads the published cards in a tenth of the time of pure Python.
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(path: Path, error: type[ValueError]) -> Located:
    """Parse a file; `error` is raised if it is missing, no YAML, or names a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not UTF-8 text ({cause}); save it as UTF-8") from None
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}{near_path(path)}") from None
    try:
        root = yaml.compose(text, Loader=_LOADER)
        if root is None:
            raise error(f"{path} is empty")
        _refuse_duplicates(root, path, set(), error)
        return Located(path, yaml.load(text, Loader=_LOADER), root)
    except yaml.YAMLError as cause:
        raise error(f"{path} is no valid YAML: {cause}") from None


INSTEAD = {"file": ("fit", "bins", "min_sigma", "zero_bin", "exclude"), "fit": ("file",)}
"""Keys of `grid` that take the place of others: a grid is read, or fitted."""
MEANT: dict[str, tuple[str, ...]] = {
    "checkpoint_every": ("save_every",),
    "checkpoint_interval": ("save_every",),
    "checkpointing_steps": ("save_every",),
    "save_steps": ("save_every",),
    "save_total_limit": ("keep_last",),
    "eval_every": ("validate_every",),
    "eval_steps": ("validate_every",),
    "eval_interval": ("validate_every",),
    "validation_every": ("validate_every",),
    "log_interval": ("log_every",),
    "logging_steps": ("log_every",),
    "lr": ("learning_rate",),
    "lr_scheduler": ("schedule",),
    "lr_scheduler_type": ("schedule",),
    "scheduler": ("schedule",),
    "warmup_ratio": ("warmup",),
    "warmup_steps": ("warmup",),
    "max_steps": ("steps",),
    "num_steps": ("steps",),
    "epochs": ("steps",),
    "num_train_epochs": ("steps",),
    "grad_clip": ("clip_norm",),
    "max_grad_norm": ("clip_norm",),
    "accumulate": ("gradient_accumulation",),
    "accumulation_steps": ("gradient_accumulation",),
    "per_device_train_batch_size": ("batch_size",),
    "effective_batch_size": ("global_batch",),
    "bf16": ("precision", "dtype"),
    "fp16": ("precision", "dtype"),
    "mixed_precision": ("precision",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "num_workers": ("workers",),
    "dataloader_num_workers": ("workers",),
    "r": ("rank",),
    "lora_alpha": ("alpha",),
    "output_dir": ("output",),
    "report_to": ("trackers",),
    "load_in_4bit": ("quantisation",),
    "quantization": ("quantisation",),
    "pretrained": ("base",),
    "checkpoint": ("base", "checkpoint"),
    "image_aug": ("augment",),
}
"""Keys as other programs call them, or as one might, and what they are called here."""


class RecipeError(ValueError):
    """A recipe that cannot be run; the message lists every problem."""


@dataclass
class RecipeText:
    """A recipe as written.

    Attributes:
        content: of the file, on top of those that it extends.
        places: where each key stands, {path of keys: "file:line"}.
    """

    content: dict[str, Any]
    places: dict[tuple[str, ...], str]


def read_text(path: Path, below: tuple[Path, ...] = ()) -> RecipeText:
    """A recipe, with what it extends: sections are merged key by key, all else is replaced.

    Args:
        path: YAML file; `extends` names one file or several, as seen from its folder, or shipped
            recipes by name, and what comes later wins.
        below: files that led here.

    Raises:
        RecipeError: no such file, no mapping, or files that extend each other.
    """
    if path.resolve() in below:
        raise RecipeError(f"{path} extends itself, through {' and '.join(p.name for p in below)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as cause:
        raise RecipeError(f"{path} is not UTF-8 text ({cause}); save it as UTF-8") from None
    try:
        content = yaml.safe_load(text)
        places = places_in(path, yaml.compose(text))
    except yaml.YAMLError as cause:
        raise RecipeError(f"{path} is not valid YAML: {cause}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping at its top, see `spatialvla-ft recipes`")
    named = content.pop("extends", [])
    whole = RecipeText({}, {})
    for name in named if isinstance(named, list) else [named]:
        parent = find_recipe(str(name), path.parent)
        if parent is None:
            raise RecipeError(
                f"{places[('extends',)]}: extends {name}, but {no_recipe(str(name), path.parent)}"
            )
        found = read_text(parent, (*below, path.resolve()))
        _lay_over(whole.content, found.content)
        whole.places |= found.places
    _lay_over(whole.content, content)
    whole.places |= places
    return whole


def apply_overrides(
    text: RecipeText, path: Path, assignments: Sequence[str]
) -> list[tuple[str, ...]]:
    """Apply every "key.sub=value" (in place); returns the path of keys of each.

    `grid.file=...` alone takes the place of a recipe's grid.fit, and the other way round.
    """
    found = []
    for assignment in assignments:
        found.append(override(text.content, assignment))
        text.places[found[-1]] = f"{path}: override {assignment!r}"
    grid = text.content.get("grid")
    if isinstance(grid, dict):
        _instead(grid, {keys[1] for keys in found if keys[0] == "grid" and len(keys) > 1})
    return found


def _instead(grid: dict[str, Any], given: set[str]) -> None:
    """Drop what keys that were just given take the place of (in place)."""
    for key in given & set(INSTEAD):
        if grid.get(key) is not None:
            for other in set(INSTEAD[key]) - given:
                grid.pop(other, None)


def _lay_over(content: dict[str, Any], upper: dict[str, Any]) -> None:
    for key, value in upper.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            _lay_over(content[key], value)
            if key == "grid":
                _instead(content[key], set(value))
        else:
            content[key] = value


def override(content: dict[str, Any], assignment: str) -> tuple[str, ...]:
    """Apply "key.sub=value" (in place); returns the path of keys."""
    key, sign, value = assignment.partition("=")
    if not sign or not key:
        raise RecipeError(f"override {assignment!r} is not of the form key.sub=value")
    *parents, last = key.split(".")
    node: Any = content
    for i, name in enumerate(parents):
        here = ".".join(parents[: i + 1])
        if isinstance(node, list):
            node = node[_index(node, name, here)]
            continue
        if not isinstance(node.get(name), dict | list):
            if node.get(name) is not None:
                raise RecipeError(f"override {assignment!r}: {here} is a value, not a section")
            node[name] = {}
        node = node[name]
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(
            f"override {assignment!r}: {value!r} is not YAML; quote it for the shell, e.g. "
            "'data.augment={hue: 0.1}'"
        ) from None
    if isinstance(node, list):
        node[_index(node, last, key)] = parsed
    else:
        node[last] = parsed
    return (*parents, last)


def _index(node: list[Any], name: str, where: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise RecipeError(f"override {where}: {name!r} is not one of 0..{len(node) - 1}")
    return int(name)


def places_in(path: Path, node: yaml.Node | None) -> dict[tuple[str, ...], str]:
    """{path of keys: "file:line"} of a YAML tree."""
    return {keys: f"{path}:{line}" for keys, line in _lines(node, ())}


def _lines(node: yaml.Node | None, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    parts: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        parts = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        parts = [(str(i), value, value) for i, value in enumerate(node.value)]
    for name, start, value in parts:
        yield (*at, name), start.start_mark.line + 1
        yield from _lines(value, (*at, name))


def explain(
    schema: type[BaseModel], path: Path, places: dict[tuple[str, ...], str], item: Any
) -> str:
    """One of pydantic's errors in words, with the place of the key or of the section around it.

    Args:
        schema: what the recipe was checked against.
        path: the recipe, for what has no place of its own.
        places: of the keys, as words.
        item: the error, from `ValidationError.errors()`.
    """
    keys = tuple(str(part) for part in item["loc"])
    known = (places[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in places)
    place = next(known, f"{path}:1")
    name = ".".join(keys)
    if item["type"] == "extra_forbidden":
        fields = _fields_of(schema, keys[:-1])
        meant = [name for name in MEANT.get(keys[-1], ()) if name in fields]
        near = meant or near_names(keys[-1], fields)
        hint = (
            f", did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(fields)}"
        )
        return f"{place}: unknown key {name}{hint}"
    if item["type"] == "missing":
        return f"{place}: {name} is missing"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] == "value_error" else f" (got {item['input']!r})"
    return f"{place}: {name}: {message}{given}" if name else f"{place}: {message}"


def _fields_of(schema: type[BaseModel], keys: Sequence[str]) -> list[str]:
    model: Any = schema
    for key in keys:
        if not key.isdigit():
            model = _section_in(model.model_fields[key].annotation)
    return sorted(model.model_fields)


def _section_in(annotation: Any) -> Any:
    """The section somewhere inside an annotation such as `list[Dataset] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(part) for part in getattr(annotation, "__args__", ()))
    return next((section for section in found if section is not None), None)


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
