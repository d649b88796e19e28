"""Recipes: what a training run is, in one YAML file.

Unknown keys, wrong types and contradictions are reported all at once, with file and line;
`key.sub=value` overrides take the same path. A recipe may build on another: `extends: other.yaml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from ..checked_yaml import RecipeError, apply_overrides, explain, read_text
from ..data.filters import Failed, NoOps, Validation
from ..data.pictures import ImagePath
from ..models.lora_targets import TARGETS
from ..shipped import find_recipe, no_recipe
from .tracker_names import check_trackers


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


class Head(BaseModel):
    """What turns hidden states into actions: a kind, and settings of that kind (docs/heads.md)."""

    model_config = ConfigDict(extra="allow")
    kind: str


class Model(Section):
    """Where the weights come from: a checkpoint, or a new small model."""

    base: str | None = None
    new: NewModel | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    head: Head | None = Field(None, exclude_if=lambda head: head is None)  # as before heads
    """None keeps the base's. One that the base does not have begins with random numbers."""
    dtype: Literal["float32", "bf16"] = "float32"
    """Of the frozen weights under adapters; what is trained is float32 always."""
    quantisation: Literal["nf4"] | None = None
    """Frozen linear layers under adapters in four bits (QLoRA); needs bitsandbytes."""

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
    """Random crop and colour jitter (see `data/augment.py`)."""

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
    cache: Literal["never"] | Path | None = None
    """Folder of what is kept. With `estimate`, None keeps depth under the output where pictures
    come back, and `never` estimates it in every forward pass."""
    cache_gb: float = Field(20.0, gt=0)
    """With `estimate`, the most that may be kept, in 10^9 bytes."""
    resolution: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    """Pictures per run of the estimator."""

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> Depth:
        own = {
            "estimator": ("checkpoint", "cache", "resolution", "batch_size"),
            "estimate": ("cache", "cache_gb", "batch_size"),
        }
        if self.source == "estimator":
            absent = [name for name in ("checkpoint", "cache") if getattr(self, name) is None]
            if absent:
                raise ValueError(
                    f"source estimator needs {' and '.join(absent)}, e.g. depth: {{source: "
                    "estimator, checkpoint: PATH, cache: DIR}"
                )
            if self.cache == "never":
                raise ValueError("source estimator keeps what it estimates: give cache: DIR")
        given = sorted(self.model_fields_set - {"source", *own.get(self.source, ())})
        given = [name for name in given if getattr(self, name) != _default(type(self), name)]
        if given:
            owner = next(name for name, fields in own.items() if given[0] in fields)
            raise ValueError(
                f"{', '.join(given)} of data.depth belong to source: {owner}, but the source is "
                f"{self.source}"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, write: Any) -> Any:
        """The word where a word says it all, so that recipes read and hash as before."""
        content = write(self)
        if self.source == "estimator":
            return {name: value for name, value in content.items() if name != "cache_gb"}
        asked = any(content[name] != _default(type(self), name) for name in ("cache", "cache_gb"))
        if not asked and self.batch_size == _default(type(self), "batch_size"):
            return self.source
        return {name: content[name] for name in ("source", "cache", "cache_gb", "batch_size")}


def _default(section: type[Section], name: str) -> Any:
    return section.model_fields[name].default


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
    action_range: Literal["motion", "quantiles"] | None = None
    """What becomes -1 and 1 in the robot's actions: `quantiles` takes q01 and q99, as released, and
    `motion` more where those clip rare motion away. None is `motion`, but a run that began by
    quantiles goes on by them (see docs/decisions/0018-rare-motion.md)."""

    @model_validator(mode="after")
    def _one_of(self) -> Data:
        if (self.datasets is None) == (self.mixture is None):
            raise ValueError("set exactly one of data.datasets (folders) and data.mixture (a name)")
        return self


class Grid(Section):
    """The action grid: the base's own, or one fitted to this data."""

    fit: Literal["gaussian", "quantile", "uniform"] | None = None
    file: Path | None = None
    bins: tuple[int, ...] | None = None
    """Of a fitted grid, in the order of the action, e.g. 16,32,8,16,16,16,2; None takes the base's
    (or model.new.bins)."""
    min_sigma: float = Field(0.0, ge=0)
    zero_bin: bool = False
    exclude: list[str] = Field(default_factory=list)
    """Datasets that the fit leaves out, or lists under `exclude_lists` of the mixture's file; they
    train all the same."""
    adapt_embeddings: bool = True

    @field_validator("bins", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _not_both(self) -> Grid:
        if self.fit is not None and self.file is not None:
            raise ValueError(
                "set at most one of grid.fit and grid.file (grid.fit=null takes the file)"
            )
        if self.file is not None and self.bins is not None:
            raise ValueError("grid.file says itself how many bins it has; leave bins out")
        if self.file is not None and self.zero_bin:
            raise ValueError("grid.file says itself whether it has zero bins; leave zero_bin out")
        if self.exclude and self.fit is None:
            raise ValueError("grid.exclude leaves datasets out of a fit: set grid.fit too")
        return self


class Lora(Section):
    """Low-rank adapters; alpha equals rank unless it is set."""

    rank: int = Field(32, ge=1)
    alpha: float | None = None
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str = TARGETS
    train_whole: list[str] = Field(default_factory=list)


class LossGuard(Section):
    """When a loss has run away: so many steps in a row above a multiple of its running median."""

    factor: float = Field(3.0, gt=1)
    steps: int = Field(20, ge=1)
    window: int = Field(100, ge=1)
    """Steps that the median is of."""


class PointLoss(Section):
    """One attention head is told where the named thing lies (see `training/point_loss.py`)."""

    weight: float = Field(1.0, gt=0)
    """Of this loss beside that of the tokens."""
    layer: int | None = Field(None, ge=0)
    """Of the language model; None takes the middle one."""
    head: int = Field(0, ge=0)
    reference_head: int | None = Field(None, ge=0)
    """A second head that is told where the thing of reference lies."""


class SlotWeights(Section):
    """What the tokens of each kind count in the loss; all 1 is the released loss."""

    translation: float = Field(1.0, ge=0)
    rotation: float = Field(1.0, ge=0)
    gripper: float = Field(1.0, ge=0)
    joint: float = Field(1.0, ge=0)
    end: float = Field(1.0, ge=0)
    """The token that ends the sequence."""

    @model_validator(mode="after")
    def _something(self) -> SlotWeights:
        if not any(self.model_dump().values()):
            raise ValueError("every weight is 0: nothing would be learnt")
        return self


class Train(Section):
    """The optimisation."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    """Samples that a process computes at once."""
    gradient_accumulation: int = Field(1, ge=1)
    global_batch: int | None = Field(None, ge=1)
    """Samples of an optimiser step over all processes; gradient_accumulation follows from it."""
    learning_rate: float = Field(gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the schedule's steps."""
    schedule_start: int = Field(0, ge=0)
    """Steps of the schedule that earlier training took: this run is steps k + 1 to k + steps of a
    schedule of k + steps, so its learning rate goes on where that one's stopped."""
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = Field(1.0, gt=0)
    loss_guard: LossGuard | None = Field(default_factory=LossGuard)
    """Stops a run whose loss has run away; None lets it run. NaN and infinity stop it always."""
    point_loss: PointLoss | None = None
    """Tell one attention head where the named thing lies; the datasets need a `target_point`."""
    slot_weights: SlotWeights | None = None
    """Weigh the tokens of translation, rotation and gripper; None counts all alike."""
    precision: Literal["float32", "bf16"] = "float32"
    sharding: Literal["none", "fsdp2", "zero1", "zero2"] = "none"
    """What processes share to save memory: all (FSDP2), or by DeepSpeed the optimiser's states
    (zero1) and gradients (zero2)."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Added to DeepSpeed's configuration, e.g. {zero_optimization: {offload_optimizer: ...}}."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    freeze: list[str] | None = None
    """Names, or their beginnings, that stay as they are (full training only); [] trains everything.
    None leaves it to the base, whose config may say `frozen_parameters` (`init-base`)."""
    only: list[str] | None = Field(None, min_length=1)
    """Names, or their beginnings, of what alone is trained (no lora, no freeze). The paper's
    spatial embedding adaptation: [spatial_embed_tokens, position_embedding_3d]."""
    log_every: int = Field(10, ge=1)
    save_every: int = Field(500, ge=1)
    keep_last: int = Field(2, ge=1)
    """Checkpoints that stay: the newest, ..."""
    keep_best: int = Field(1, ge=0)
    """... those with the lowest validation loss (where episodes are held out), ..."""
    keep_every: int | None = Field(None, ge=1)
    """... and those of every so many steps, a multiple of save_every."""
    result: Literal["last", "best"] = "last"
    """Which weights `final/` holds: those of the last step, or of the lowest validation loss."""
    validate_every: int = Field(500, ge=1)
    validate_samples: int = Field(64, ge=1)
    threads: int | None = Field(None, ge=1)
    """CPU threads of torch; None leaves its default."""
    trackers: list[str] = Field(default_factory=lambda: ["jsonl", "tensorboard"])
    """Where metrics go, by name: jsonl, tensorboard, wandb, trackio, or another of Accelerate's."""

    @field_validator("trackers")
    @classmethod
    def _trackers_exist(cls, names: list[str]) -> list[str]:
        return check_trackers(names)

    @model_validator(mode="after")
    def _checkpoints_fit(self) -> Train:
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise ValueError(
                f"keep_every is {self.keep_every}, but checkpoints are written every "
                f"{self.save_every} steps (save_every): set a multiple of that"
            )
        if self.result == "best" and self.keep_best == 0:
            raise ValueError("result: best needs keep_best: 1 or more, or there is none to take")
        return self


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
        if None not in (self.train.only, self.train.freeze):
            raise ValueError("set at most one of train.only and train.freeze")
        if self.model.quantisation is not None and self.lora is None:
            raise ValueError(
                "model.quantisation is for frozen weights under adapters; set lora, or remove it"
            )
        if self.model.dtype == "bf16":
            if self.lora is None:
                raise ValueError(
                    "model.dtype bf16 is for frozen weights under adapters: small steps of trained "
                    "weights would be rounded away. Set lora, or model.dtype: float32 with "
                    "train.precision: bf16"
                )
            if self.train.precision != "bf16":
                raise ValueError(
                    "model.dtype bf16 needs train.precision: bf16, in which layers of both types "
                    "work together"
                )
        if "action_head" in self.model.overrides:
            raise ValueError("set the action head by model.head, not by model.overrides")
        if self.lora is not None and self.model.new is not None:
            raise ValueError(
                "lora needs model.base: an adapter of a new model has no base to come back to. "
                "Train the new model whole first, or remove lora"
            )
        if self.grid.bins is not None and self.grid.fit is None and self.model.new is None:
            raise ValueError(
                "grid.bins is of a grid that is fitted: set grid.fit, or resize the base "
                "(`spatialvla-ft grids resize`)"
            )
        return self


def load_recipe(given: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        given: YAML file, or the name of a shipped recipe, such as adapt_lora.
        overrides: "key.sub=value", values in YAML; list items by number ("data.datasets.0.path").

    Raises:
        RecipeError: every problem, with file and line.
    """
    path = find_recipe(given)
    if path is None:
        raise RecipeError(no_recipe(given))
    text = read_text(path)
    apply_overrides(text, path, overrides)
    try:
        return Recipe.model_validate(text.content)
    except ValidationError as error:
        problems = [explain(Recipe, path, text.places, item) for item in error.errors()]
        raise RecipeError("\n".join(problems)) from None
