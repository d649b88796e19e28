"""Where weights come from: the run that trained them, the base it started from, and its terms."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, try_to_load_from_cache

from ..models.base_place import BASE_FILE, FROM_HERE, HUB_ID, base_folder, read_base
from ..models.configuration_spatialvla import SpatialVLAConfig

HUB_DATASET = re.compile(r"hf:/{1,2}datasets/([\w.-]+/[\w.-]+)(?:@\S+)?")
PALIGEMMA_IMAGE_TOKEN = 257152
"""Id of <image> in PaliGemma's vocabulary, by which a PaliGemma is known."""
GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
LONGEST_CHAIN = 8
TRAINED_FILE = "trained.json"


@dataclass(frozen=True)
class Lineage:
    """What is known of a model's past.

    Attributes:
        recipe: of the run that made it; None where no recipe.yaml lies beside it.
        base: what that run started from, as it is named there; None for random weights, or unknown.
        hub_base: the base's name on the Hub, where it is known to have one.
        fingerprint: of the base's weights, which an adapter records.
        fresh: whether the first run of the chain started from random weights; None if unknown.
        base_licence: what the base's own card says.
        dataset_licences: of the datasets of all runs of the chain, None where one states none.
    """

    recipe: dict[str, Any] | None = None
    base: str | None = None
    hub_base: str | None = None
    fingerprint: str | None = None
    fresh: bool | None = None
    base_licence: str | None = None
    dataset_licences: dict[str, str | None] = field(default_factory=dict)

    @property
    def hub_datasets(self) -> list[str]:
        """Datasets that the recipe took from the Hub."""
        entries = ((self.recipe or {}).get("data") or {}).get("datasets") or []
        found = (HUB_DATASET.fullmatch(str(entry.get("path"))) for entry in entries)
        return [match[1] for match in found if match]


@dataclass(frozen=True)
class Licence:
    """Terms of the weights as a model card states them.

    Attributes:
        name: the Hub's identifier.
        link: to the terms, where there is one.
        why: a sentence for people.
    """

    name: str
    link: str | None
    why: str


def read_lineage(
    folder: Path, *, base: str | None = None, hub_base: str | None = None, depth: int = 0
) -> Lineage:
    """What lies beside a checkpoint or adapter, and beside its base, and so on.

    Args:
        folder: checkpoint or adapter.
        base: where the base lies now, if it moved.
        hub_base: the base's name on the Hub, if its user knows.
        depth: bases followed so far.
    """
    recipe = _recipe(folder)
    fingerprint, way = None, None
    named = ((recipe or {}).get("model") or {}).get("base")
    if (folder / BASE_FILE).is_file():
        recorded = read_base(folder)
        named, fingerprint = recorded["base"], recorded["fingerprint"]
        way = recorded.get(FROM_HERE)
    named, way = base or named, None if base else way
    place = None if named is None else base_folder(folder, named, way)
    if place is None and named is not None and Path(named).is_dir():
        place = Path(named)  # what is left of it may still tell
    fresh: bool | None = None
    licence, licences = None, _dataset_licences(folder)
    if recipe is not None and (recipe.get("model") or {}).get("new") is not None:
        fresh = True
    elif place is not None and depth < LONGEST_CHAIN:
        earlier = read_lineage(place, depth=depth + 1)
        fresh, licence = earlier.fresh, _card_licence(place) or earlier.base_licence
        hub_base = hub_base or earlier.hub_base
        licences = {**earlier.dataset_licences, **licences}
    elif named is not None and _is_cached(named):
        hub_base, fresh = hub_base or named, False
    return Lineage(recipe, named, hub_base, fingerprint, fresh, licence, licences)


def licence_of(config: SpatialVLAConfig, lineage: Lineage) -> Licence:
    """The terms that flow down to the weights: never a guess in the user's favour."""
    if lineage.fresh:
        return Licence(
            "other",
            None,
            "This is a small model that was trained from random weights, so no base passes its "
            "terms on. Its owner has stated no licence yet.",
        )
    if config.image_token_index == PALIGEMMA_IMAGE_TOKEN or lineage.base_licence == "gemma":
        return Licence(
            "gemma",
            GEMMA_TERMS,
            "The weights derive from PaliGemma 2, so the Gemma Terms of Use and their prohibited "
            "use policy apply to them and to what is made from them.",
        )
    return Licence(
        "other",
        None,
        "Where the weights come from is not recorded, so the terms of their base are unknown: "
        "state them before you publish.",
    )


def _recipe(folder: Path) -> dict[str, Any] | None:
    """recipe.yaml of the run that a result belongs to."""
    for place in (folder, folder.parent):
        file = place / "recipe.yaml"
        if file.is_file() and (place == folder or folder.name == "final"):
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else None
    return None


def _dataset_licences(folder: Path) -> dict[str, str | None]:
    """What training noted of its datasets in the result's folder."""
    file = folder / TRAINED_FILE
    return (
        json.loads(file.read_text(encoding="utf-8")).get("licences", {}) if file.is_file() else {}
    )


def _is_cached(name: str) -> bool:
    """Whether it is known to be a Hub repository: its configuration has been fetched."""
    return bool(HUB_ID.fullmatch(name)) and isinstance(
        try_to_load_from_cache(name, "config.json"), str
    )


def _card_licence(folder: Path) -> str | None:
    card = folder / "README.md"
    if not card.is_file():
        return None
    licence = ModelCard.load(card).data.get("license")
    return str(licence) if licence is not None else None
