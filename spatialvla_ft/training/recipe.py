"""Recipes: what a training run is, in one YAML file.

Every field stands here with its default. Unknown keys, wrong types and contradictions are reported
all at once, with file and line; `key.sub=value` overrides take the same path.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from ..data.filters import Failed, NoOps, Validation
from ..data.image_path import ImagePath
from ..models.lora import TARGETS


class RecipeError(ValueError):
    """A recipe that cannot be run; the message lists every problem."""


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class NewModel(Section):
    """A small model from random weights (see `models/small.py`)."""

    image_size: int = 64
    patch_size: int = 16
    action_chunk_size: int = 1
    bins: tuple[int, ...] | None = None
    vision: dict[str, Any] = Field(default_factory=dict)
    text: dict[str, Any] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)


class Model(Section):
    """Where the weights come from: a checkpoint, or a new small model."""

    base: str | None = None
    new: NewModel | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of(self) -> Model:
        if (self.base is None) == (self.new is None):
            raise ValueError("set exactly one of model.base (a checkpoint) and model.new")
        return self


class Dataset(Section):
    """One dataset of the mixture."""

    path: Path
    card: Path | None = None
    split: str = "train"
    weight: float = Field(1.0, ge=0)
    episodes: int | None = Field(None, ge=1)
    """Use only this many episodes, drawn by the seed; None uses all."""
    failed: Failed | None = None
    """Leave out episodes that failed, e.g. {key: success, value: false}."""
    no_ops: NoOps | None = None
    """Leave out steps that do nothing, e.g. {tolerance: 1e-3}."""
    validation: Validation | None = None
    """Hold episodes out, e.g. 0.05 or {split: val}, instead of data.holdout."""


class MixtureOf(Section):
    """A mixture by name: a published one, or one of your own file (see data_mixtures/README.md)."""

    name: str
    file: Path | None = None
    root: Path | None = None
    """Where datasets lie as <name>/<version>, unless the mixture says."""
    balance_weights: bool = True
    """Multiply weights by the number of steps, as the released loaders do."""
    excuse: list[str] = Field(default_factory=list)
    """Datasets that may be missing or broken; all others stop the run."""


class Augmentation(Section):
    """Random crop and colour jitter (see `training/augment.py`)."""

    crop_area: float = Field(0.9, gt=0, le=1)
    brightness: float = Field(0.2, ge=0, lt=1)
    contrast: float = Field(0.2, ge=0, lt=1)
    saturation: float = Field(0.2, ge=0, lt=1)
    hue: float = Field(0.05, ge=0, le=0.5)

    @model_validator(mode="before")
    @classmethod
    def _no_flip(cls, value: Any) -> Any:
        if isinstance(value, dict) and "flip" in value:
            raise ValueError(
                "flip is not offered: actions and proprioception do not follow a mirrored picture "
                "(docs/decisions/0011-flips.md); remove it"
            )
        return value


class Depth(Section):
    """Where depth comes from; `depth: sensor` is short for `depth: {source: sensor}`.

    `sensor` takes the dataset's depth, `estimate` the model's ZoeDepth, and `estimator` a
    checkpoint of its own, run once over the data before training (see docs/depth.md).
    """

    source: Literal["sensor", "estimate", "estimator"] = "estimate"
    checkpoint: str | None = None
    """ZoeDepth, Depth Anything V2 (metric), Depth Pro, or a SpatialVLA checkpoint's ZoeDepth."""
    cache: Path | None = None
    resolution: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    """Pictures per run of the estimator."""

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> Depth:
        if self.source == "estimator":
            absent = [name for name in ("checkpoint", "cache") if getattr(self, name) is None]
            if absent:
                raise ValueError(
                    f"source estimator needs {' and '.join(absent)}, e.g. depth: {{source: "
                    "estimator, checkpoint: PATH, cache: DIR}"
                )
        else:
            given = sorted(self.model_fields_set - {"source"})
            if given:
                raise ValueError(
                    f"{', '.join(given)} of data.depth belong to source: estimator, but the source "
                    f"is {self.source}"
                )
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, write: Any) -> Any:
        """The word where a word says it all, so that recipes read and hash as before."""
        return write(self) if self.source == "estimator" else self.source


class Data(Section):
    """What is learnt from."""

    datasets: list[Dataset] | None = Field(None, min_length=1)
    mixture: MixtureOf | None = None
    assume_intrinsics: str | None = None
    """A camera of data_mixtures/oxe_intrinsics.yaml for datasets without K: a guess."""
    cameras: list[str] | None = Field(None, min_length=1)
    """Slots the model looks through, the reference camera first; None keeps the base's."""
    window: int | None = Field(None, ge=1)
    """Observed steps, the present one included; None keeps the base's."""
    proprio: bool | None = None
    """Whether the model reads the dataset's proprioception; None keeps the base's."""
    depth: Depth = Field(default_factory=Depth)
    holdout: float = Field(0.05, ge=0, lt=1)
    workers: int = Field(1, ge=0)
    images: ImagePath = "fast"
    """How training pictures get to the model's size: `parity` has the released pipeline's pixels,
    `fast` those of inference, at less cost (see docs/pictures.md)."""
    augment: Augmentation | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Data:
        if (self.datasets is None) == (self.mixture is None):
            raise ValueError("set exactly one of data.datasets (folders) and data.mixture (a name)")
        return self


class Grid(Section):
    """The action grid: the base's own, or one fitted to this data."""

    fit: Literal["gaussian", "quantile", "uniform"] | None = None
    file: Path | None = None
    min_sigma: float = Field(0.0, ge=0)
    zero_bin: bool = False
    adapt_embeddings: bool = True

    @model_validator(mode="after")
    def _not_both(self) -> Grid:
        if self.fit is not None and self.file is not None:
            raise ValueError("set at most one of grid.fit and grid.file")
        if self.file is not None and self.zero_bin:
            raise ValueError("grid.file says itself whether it has zero bins; leave zero_bin out")
        return self


class Lora(Section):
    """Low-rank adapters; alpha equals rank unless it is set."""

    rank: int = Field(32, ge=1)
    alpha: float | None = None
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str = TARGETS
    train_whole: list[str] = Field(default_factory=list)


class Train(Section):
    """The optimisation."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps."""
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["float32", "bf16"] = "float32"
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    freeze: list[str] | None = None
    """Parameter names, or their beginnings, that stay as they are (full training only).

    None leaves it to the base, whose config may say `frozen_parameters`: a base that
    `init-base` made names its text embeddings. [] trains everything."""
    only: list[str] | None = Field(None, min_length=1)
    """Parameter names, or their beginnings, that are trained; all else stays (no lora, no freeze).

    The paper's spatial embedding adaptation alone: [spatial_embed_tokens, position_embedding_3d].
    """
    log_every: int = Field(10, ge=1)
    save_every: int = Field(500, ge=1)
    keep_last: int = Field(2, ge=1)
    validate_every: int = Field(500, ge=1)
    validate_samples: int = Field(64, ge=1)
    threads: int | None = Field(None, ge=1)
    """CPU threads of torch; None leaves its default."""
    trackers: list[str] = Field(default_factory=lambda: ["jsonl", "tensorboard"])


class Recipe(Section):
    """One training run."""

    output: Path
    seed: int = 0
    model: Model
    data: Data
    grid: Grid = Field(default_factory=Grid)
    lora: Lora | None = None
    train: Train

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        if self.train.only is not None and self.lora is not None:
            raise ValueError(
                "train.only is for training without adapters; with lora, name modules that are "
                "trained whole in lora.train_whole, and remove train.only"
            )
        if self.train.only is not None and self.train.freeze is not None:
            raise ValueError("set at most one of train.only and train.freeze")
        if self.lora is not None and self.model.new is not None:
            raise ValueError(
                "lora needs model.base: an adapter of a new model has no base to come back to. "
                "Train the new model whole first, or remove lora"
            )
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: YAML file.
        overrides: "key.sub=value", values in YAML; list items by number ("data.datasets.0.path").

    Raises:
        RecipeError: every problem, with file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path} does not exist; recipes/ holds recipes to start from")
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
        lines = _lines(yaml.compose(text))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping at its top, see recipes/")
    for override in overrides:
        _override(content, override)
        lines[tuple(override.split("=", 1)[0].split("."))] = f"override {override!r}"
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = [_explain(path, lines, item) for item in error.errors()]
        raise RecipeError("\n".join(problems)) from None


def _override(content: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise RecipeError(f"override {override!r} is not of the form key.sub=value")
    *parents, last = key.split(".")
    node: Any = content
    for i, name in enumerate(parents):
        here = ".".join(parents[: i + 1])
        if isinstance(node, list):
            node = node[_index(node, name, here)]
            continue
        if not isinstance(node.get(name), dict | list):
            if node.get(name) is not None:
                raise RecipeError(f"override {override!r}: {here} is a value, not a section")
            node[name] = {}
        node = node[name]
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(
            f"override {override!r}: {value!r} is not YAML; quote it for the shell, e.g. "
            "'data.augment={hue: 0.1}'"
        ) from None
    if isinstance(node, list):
        node[_index(node, last, key)] = parsed
    else:
        node[last] = parsed


def _index(node: list[Any], name: str, where: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise RecipeError(f"override {where}: {name!r} is not one of 0..{len(node) - 1}")
    return int(name)


def _lines(node: yaml.Node | None, at: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """{path of keys: 'line n'} of a YAML tree."""
    lines: dict[tuple[str, ...], str] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            lines[here] = str(key.start_mark.line + 1)
            lines |= _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            here = (*at, str(i))
            lines[here] = str(value.start_mark.line + 1)
            lines |= _lines(value, here)
    return lines


def _explain(path: Path, lines: dict[tuple[str, ...], str], item: Any) -> str:
    keys = tuple(str(part) for part in item["loc"])
    where = next((lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in lines), "1")
    place = f"{path}:{where}" if where.isdigit() else f"{path}: {where}"
    name = ".".join(keys)
    if item["type"] == "extra_forbidden":
        known = _fields_of(keys[:-1])
        near = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f", did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
        return f"{place}: unknown key {name}{hint}"
    if item["type"] == "missing":
        return f"{place}: {name} is missing"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] == "value_error" else f" (got {item['input']!r})"
    return f"{place}: {name}: {message}{given}" if name else f"{place}: {message}"


def _fields_of(keys: Sequence[str]) -> list[str]:
    model: Any = Recipe
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
