"""An adaptation: what it was given, where it writes, and its recipe.

Short hashes of what a job is given: a checkpoint, a file, a card.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.near import near_path
from spatialvla_ft.shipped import find_recipe, no_recipe, shipped

if TYPE_CHECKING:
    from spatialvla_ft.data.mixtures import Opened
    from spatialvla_ft.data.store import Source
    from spatialvla_ft.training.preflight.report import Preflight
    from spatialvla_ft.training.recipe import Recipe
    from spatialvla_ft.training.run import Run

WHOLE = 4 * 2**20
"""Files up to so many bytes are read whole, ..."""
LATER = ("video", "recorded")
LATER_OF_LANGUAGE = ("several", "encoding", "errors")
"""Fields that cards did not always have: they count where they say something."""
CHUNKS, CHUNK = 64, 64 * 2**10
"""... of larger ones so many pieces of so many bytes, evenly spread."""


def of_file(path: Path) -> str:
    """Of the content of a file, a large one by its size and pieces of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
        else:
            for i in range(CHUNKS):
                file.seek((size - CHUNK) * i // (CHUNKS - 1))
                digest.update(file.read(CHUNK))
    return digest.hexdigest()[:16]


def of_checkpoint(folder: Path) -> str:
    """Of all files of a checkpoint folder, wherever it lies; a few MiB of each are read."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    parts = [(p.name, of_file(p)) for p in files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def of_card(card: Card) -> str:
    """Of what a card says; comments and the order of its lines count for nothing."""
    content = card.model_dump(exclude={"source_hash", "name"})
    for model, values, names in (
        (type(card), content, LATER),
        (type(card.language), content["language"], LATER_OF_LANGUAGE),
    ):
        for name in names:
            default = getattr(model.model_construct(), name)
            plain = default.model_dump() if isinstance(default, BaseModel) else default
            if values[name] == plain:  # as before, so that earlier jobs hold
                del values[name]
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


OURS = {
    "output": "--out DIR",
    "model.base": "--base CHECKPOINT",
    "data.datasets.0.path": "the DATASET argument",
    "data.datasets.0.card": "--card FILE",
}
"""What a recipe calls them, and how `adapt` is told."""


Tell = Callable[..., None]


class View(Protocol):
    """Who is told how far the long stages are."""

    def preflight(self, report: Preflight) -> None:
        """The report before the first step."""

    def training(self, run: Run) -> AbstractContextManager[tuple[Tell, Tell]]:
        """What is called with (completed steps, metrics), and with (frames, of so many)."""

    def watching(self) -> AbstractContextManager[Callable[[str, int], Tell]]:
        """What begins (a work, of so much) and gives what is called with how much is done."""


class Unseen:
    """Nobody is told."""

    def preflight(self, report: Preflight) -> None:
        """Nothing."""

    @contextmanager
    def training(self, run: Run) -> Iterator[tuple[Tell, Tell]]:
        """Nothing at any step."""
        yield _say_nothing, _say_nothing

    @contextmanager
    def watching(self) -> Iterator[Callable[[str, int], Tell]]:
        """Nothing of any work."""
        yield lambda what, total: _say_nothing


def _say_nothing(*facts: object) -> None:
    pass


@dataclass
class Job:
    """One robot's adaptation.

    Attributes:
        dataset: RLDS version directory or LeRobot folder.
        base: checkpoint folder, or OWNER/NAME on the Hub.
        out: folder of everything that is written.
        recipe_file: what training starts from, a file or a shipped name; overrides go on top.
        overrides: "key.sub=value".
        card_file: card of the dataset, if it brings none.
        accept_draft: go on with a drafted card.
        accept_errors: go on though the inspection found errors.
        export: whether the export stage writes a checkpoint.
        view: who is told how far it is.
    """

    dataset: str
    base: str
    out: Path
    recipe_file: Path
    overrides: Sequence[str] = ()
    card_file: Path | None = None
    accept_draft: bool = False
    accept_errors: bool = False
    export: bool = False
    view: View = field(default_factory=Unseen)
    _run: Run | None = None
    _preflight: Preflight | None = None

    def __post_init__(self) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "adapt is one process. For training on several GPUs give --stop-after plan, launch "
                f"`spatialvla-ft train {self.out / 'recipe.yaml'}` (docs/distributed.md), then "
                "give the same command again, which goes on after it"
            )
        for assignment in self.overrides:
            key = assignment.partition("=")[0]
            if key in OURS:
                raise ValueError(f"{assignment}: adapt sets {key}; give {OURS[key]} instead")
        recipe_file = find_recipe(self.recipe_file)
        if recipe_file is None:
            raise ValueError(f"--recipe {no_recipe(self.recipe_file)}")
        self.recipe_file = recipe_file
        if self.accept_draft and self.card_file is not None:
            raise ValueError(
                f"--accept-draft is for a dataset without a card; --card {self.card_file} is one"
            )
        if self.card_file is not None and not self.card_file.is_file():
            raise ValueError(
                f"--card {self.card_file} does not exist; give a card file"
                + near_path(self.card_file)
            )
        if self.base.count("/") == 1 and not Path(self.base).exists():
            from spatialvla_ft.models.checkpoint_files import refuse_out_of_reach

            try:
                refuse_out_of_reach(self.base)  # whether it has one shows when it is fetched
            except ValueError as error:
                raise ValueError(f"--base {error}") from error
            return
        if not (Path(self.base) / "config.json").is_file():
            raise ValueError(
                f"--base {self.base} is no checkpoint folder (it has no config.json): give a "
                "folder with SpatialVLA's weights, such as the final/ of a run or an export, or "
                f"OWNER/NAME on the Hub{near_path(self.base)}"
            )

    @property
    def draft_file(self) -> Path:
        """Where a drafted card goes."""
        return self.out / "card.yaml"

    @property
    def records(self) -> Path:
        """Where stages keep what they did."""
        return self.out / "stages"

    @property
    def final(self) -> Path:
        """The trained adapter."""
        return self.out / "train" / "final"

    @cached_property
    def base_folder(self) -> Path:
        """The base on this disk; one of the Hub is fetched."""
        if Path(self.base).is_dir():
            return Path(self.base)
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self.base))

    @cached_property
    def base_fingerprint(self) -> str:
        """Hash of the base's files."""
        return of_checkpoint(self.base_folder)

    @cached_property
    def assignments(self) -> list[str]:
        """Everything that goes on top of the recipe file, in its order."""
        card = self.card_file
        if card is None and self.accept_draft and self.own_card is None:
            card = self.draft_file
        ours = [("output", str(self.out / "train")), ("model.base", self.base)]
        ours += [("data.datasets.0.path", self.dataset)]
        ours += [("data.datasets.0.card", str(card))] if card is not None else []
        return [f"{key}={json.dumps(value)}" for key, value in ours] + list(self.overrides)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe as asked for: with the data and the base, before the grid is fitted."""
        from spatialvla_ft.checked_yaml import read_text
        from spatialvla_ft.training.recipe import RecipeError, load_recipe

        data = read_text(self.recipe_file).content.get("data") or {}
        entries = data.get("datasets") if isinstance(data, dict) else None
        if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
            raise RecipeError(
                f"{self.recipe_file}: adapt is for one dataset, so data.datasets must have one "
                "entry (- path: anything), which DATASET replaces; several datasets or a mixture "
                "are trained with `spatialvla-ft train`"
            )
        recipe = load_recipe(self.recipe_file, self.assignments)
        if recipe.model.base is None:
            raise RecipeError(
                f"{self.recipe_file} makes a new model (model.new); adapt starts from --base: take "
                "a recipe with model.base"
            )
        return recipe

    @property
    def origins(self) -> dict[tuple[str, ...], str]:
        """Where the values of the recipe come from, {path of keys: words}."""
        from spatialvla_ft.checked_yaml import apply_overrides, read_text

        text = read_text(self.recipe_file)
        found = {path: "recipe" for path in text.places if not _is_section(text.content, path)}
        paths = apply_overrides(text, self.recipe_file, self.assignments)
        for path, assignment in zip(paths, self.assignments, strict=True):
            found[path] = "given" if assignment in self.overrides else "adapt"
        grid = text.content.get("grid") or {}
        # A key that another took the place of says nothing more.
        return {p: o for p, o in found.items() if p[:1] != ("grid",) or len(p) < 2 or p[1] in grid}

    @cached_property
    def source(self) -> Source:
        """The raw side of the dataset; an RLDS dataset is indexed if it is not yet."""
        from spatialvla_ft.data import DatasetError
        from spatialvla_ft.data.opening import open_source

        if not Path(self.dataset).is_dir():
            raise DatasetError(
                f"{self.dataset} is no folder; give the version directory of an RLDS dataset, e.g. "
                "datasets/my_robot/1.0.0, or a LeRobot folder (fetch what is not on this disk)"
                + near_path(self.dataset)
            )
        return open_source(self.dataset)

    @cached_property
    def content(self) -> str:
        """Hash that changes whenever the data may have changed."""
        from spatialvla_ft.data.lerobot.store import LeRobotSource

        source: Any = self.source
        kept = source.store if isinstance(source, LeRobotSource) else source.index
        return str(kept.content_hash)[:16]

    @cached_property
    def own_card(self) -> Card | None:
        """The card that the dataset brings, or the toolkit has for it; None without one."""
        from spatialvla_ft.data import load_cards
        from spatialvla_ft.data.lerobot.store import LeRobotSource
        from spatialvla_ft.data.mixtures import CARDS
        from spatialvla_ft.data.opening import find_card

        found = find_card(self.source)
        if found is not None or isinstance(self.source, LeRobotSource):
            return found
        return load_cards(shipped(CARDS)).get(self.source.name)

    @cached_property
    def card(self) -> Card | None:
        """How the dataset is read; None before one was drafted."""
        from spatialvla_ft.data.opening import pick_card

        file = self.recipe.data.datasets[0].card
        if file is None:
            return self.own_card
        return pick_card(file, self.source.name) if file.is_file() else None

    @cached_property
    def opened(self) -> Opened:
        """The dataset as it is trained on, with episodes held out."""
        from spatialvla_ft.training.build import chunk_and_layout, open_data

        return open_data(self.recipe, *chunk_and_layout(self.recipe))

    @cached_property
    def final_recipe(self) -> Recipe:
        """What is trained: `recipe.yaml`, as the plan wrote it."""
        from spatialvla_ft.training.recipe import load_recipe

        return load_recipe(self.out / "recipe.yaml")

    def run(self) -> Run:
        """The training run, built once; `forget_run` frees its memory."""
        from spatialvla_ft.training.build import build

        if self._run is None:
            self._run = build(self.final_recipe)
        return self._run

    def preflight(self) -> Preflight:
        """The report before the first step, made once and shown."""
        from spatialvla_ft.training.preflight.report import preflight

        if self._preflight is None:
            self._preflight = preflight(self.run())
            # Its warnings are told by the stage.
            self.view.preflight(replace(self._preflight, warnings=[]))
        return self._preflight

    def forget_run(self) -> None:
        """Free the model and what belongs to it."""
        import gc

        import torch

        self._run = self._preflight = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_section(content: Any, path: Sequence[str]) -> bool:
    """Whether a path of keys leads to a mapping, or to a list of them."""
    value = content
    for name in path:
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdigit():
            value = value[int(name)]
    if isinstance(value, list):
        return any(isinstance(part, dict) for part in value)
    return isinstance(value, dict)
