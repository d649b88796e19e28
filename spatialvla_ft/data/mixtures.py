"""Mixtures: which datasets are learnt from, and how much of each.

A mixture is data: a name, and a weight per `dataset/version`. The published ones come with the
toolkit; a laboratory writes its own in the same form, where an entry may also say more than a
weight (see `Part`). Opening a mixture looks at every dataset before it gives up, so that one run
tells all that is missing.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, Field

from spatialvla_ft.checked_yaml import Located, load_yaml
from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.fields import Intrinsics
from spatialvla_ft.data.cards.files import load_cards
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.filters import Failed, NoOps, Validation, divide
from spatialvla_ft.data.lerobot.info import is_lerobot
from spatialvla_ft.data.opening import CARD_FILE, Reading, SampleDataset, open_as
from spatialvla_ft.near import near_path
from spatialvla_ft.shipped import shipped

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
CARDS, CAMERAS, MIXTURES = "oxe_cards.yaml", "oxe_intrinsics.yaml", "oxe_mixtures.yaml"
SOURCES = ("mixtures", "openvla", "octo")
"""Sections of a mixture file; a name of the first needs no prefix."""
PRIMARY = Reading(card=None, cameras=("primary",))
"""Each by the card of its part, and of its pictures only the main camera's."""


class Part(BaseModel):
    """One dataset of a mixture.

    Attributes:
        weight: share of the draws, on any scale; 0 opens the dataset but never draws from it.
        path: its folder or address; None for `<root>/<name>/<version>`.
        card: how to read it; None for its own card.yaml, else the one that comes with the toolkit.
        split: name of the split.
        episodes: use only so many, drawn by the seed.
        failed: leave out episodes that failed.
        no_ops: leave out steps that do nothing.
        validation: episodes that are held out; None leaves it to the recipe's `data.holdout`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(1.0, ge=0)
    path: str | None = None
    card: Path | None = None
    split: str = "train"
    episodes: int | None = Field(None, ge=1)
    failed: Failed | None = None
    no_ops: NoOps | None = None
    validation: Validation | None = None


Mixture = dict[str, Part]
"""`dataset/version` -> part."""


def load_mixtures(path: str | Path | None = None) -> dict[str, Mixture]:
    """All mixtures of a file by name; None takes the published ones.

    Mixtures outside the section `mixtures` have its name in front: `openvla/oxe_magic_soup`.

    Raises:
        DatasetError: every mistake at once, each with file and line.
    """
    document = load_yaml(Path(path) if path is not None else shipped(MIXTURES), DatasetError)
    content = document.value
    if not isinstance(content, dict) or not isinstance(content.get("mixtures"), dict):
        raise DatasetError(
            f"{document.path}: a mixture file has schema_version and mixtures: "
            "{<name>: {<dataset/version>: <weight>}}"
        )
    problems: list[str] = []
    if content.get("schema_version") != SCHEMA_VERSION:
        problems.append(
            f"{document.where(('schema_version',))}: schema_version "
            f"{content.get('schema_version')} is not {SCHEMA_VERSION}"
        )
    found = {}
    for section in SOURCES:
        for name, entries in (content.get(section) or {}).items():
            full = name if section == SOURCES[0] else f"{section}/{name}"
            found[full] = _mixture(document, (section, name), entries, problems)
    if problems:
        raise DatasetError("\n".join(problems))
    return found


def _mixture(
    document: Located, place: tuple[str, str], entries: Any, problems: list[str]
) -> Mixture:
    if not isinstance(entries, dict) or not entries:
        problems.append(f"{document.where(place)}: mixture {place[1]!r} names no dataset")
        return {}
    parts = {}
    for dataset, entry in entries.items():
        raw = entry if isinstance(entry, dict) else {"weight": entry}
        try:
            parts[str(dataset)] = Part.model_validate(raw)
        except pydantic.ValidationError as error:
            problems += [
                f"{document.where((*place, dataset, *map(str, item['loc'])))}: {place[1]}."
                f"{dataset}: {'.'.join(map(str, item['loc']))}: {item['msg']} (got "
                f"{item['input']!r})"
                for item in error.errors()
            ]
    return parts


def find_mixture(name: str, path: str | Path | None = None) -> Mixture:
    """One mixture; ValueError with the nearest names if there is none of that name."""
    known = load_mixtures(path)
    if name in known:
        return known[name]
    elsewhere = [full for full in known if full.endswith(f"/{name}")]
    near = elsewhere or difflib.get_close_matches(name, list(known), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    raise DatasetError(f"no mixture {name!r} in {path or MIXTURES}; {hint}")


def exclude_lists(path: str | Path | None = None) -> dict[str, tuple[str, ...]]:
    """Lists of datasets that a mixture file leaves out of the fits of a grid, by name.

    Datasets may be called `name/version` or `name`; None takes the published file.

    Raises:
        DatasetError: a list is no list of names; with file and line.
    """
    document = load_yaml(Path(path) if path is not None else shipped(MIXTURES), DatasetError)
    lists = (document.value or {}).get("exclude_lists") or {}
    if not isinstance(lists, dict):
        place = document.where(("exclude_lists",))
        raise DatasetError(f"{place}: exclude_lists must be {{<name>: [<dataset/version>, ...]}}")
    problems = [
        f"{document.where(('exclude_lists', name))}: exclude list {name!r} must be a list of "
        f"dataset names, got {found!r}"
        for name, found in lists.items()
        if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found)
    ]
    if problems:
        raise DatasetError("\n".join(problems))
    return {str(name): tuple(found) for name, found in lists.items()}


def excluded_datasets(
    wanted: Sequence[str], parts: Collection[str], path: str | Path | None = None
) -> tuple[str, ...]:
    """Datasets of a mixture that `wanted` leaves out: names of datasets, and of exclude lists.

    Args:
        wanted: datasets as `name/version` or `name`, and names of lists of the mixture's file. A
            list may name datasets that the mixture has not.
        parts: the mixture's datasets.
        path: the mixture's file; None for the published one.

    Raises:
        DatasetError: neither a list nor a dataset of the mixture.
    """
    lists = exclude_lists(path) if wanted else {}
    gone: set[str] = set()
    for name in wanted:
        found = {part for part in parts if name in (part, _short(part))}
        if name in lists:
            found |= {part for part in parts if {part, _short(part)} & set(lists[name])}
        elif not found:
            near = difflib.get_close_matches(name, [*lists, *parts, *map(_short, parts)], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(parts)}"
            raise DatasetError(
                f"cannot exclude {name!r}: the mixture has no such dataset; {hint} Lists of "
                f"datasets: {', '.join(lists) or 'none'}"
            )
        gone |= found
    return tuple(part for part in parts if part in gone)


def assumed_camera(name: str) -> Intrinsics:
    """A camera of `oxe_intrinsics.yaml`, such as `default`, for datasets without intrinsics."""
    cameras = load_yaml(shipped(CAMERAS), DatasetError).value["intrinsics"]
    if name not in cameras:
        raise DatasetError(f"no camera {name!r} in {CAMERAS}; there are {', '.join(cameras)}")
    return Intrinsics.model_validate(cameras[name])


@dataclass(frozen=True)
class Opened:
    """An opened mixture.

    Attributes:
        datasets: in the order of the mixture, without the excused ones.
        parts: what the mixture says of each.
        weights: their shares of the draws; they add up to 1.
        excused: {`dataset/version`: what is wrong with it}, of those that were excused by name.
        heldout: the episodes that the mixture holds out of each dataset, or None.
    """

    datasets: list[SampleDataset]
    parts: list[Part]
    weights: list[float]
    excused: dict[str, str]
    heldout: list[SampleDataset | None]


def open_mixture(
    parts: Mapping[str, Part],
    *,
    root: str | Path | None = None,
    reading: Reading = PRIMARY,
    assume_intrinsics: str | None = None,
    balance_weights: bool = True,
    excuse: Collection[str] = (),
) -> Opened:
    """Open every dataset of a mixture.

    Args:
        parts: the mixture.
        root: where datasets lie as `<name>/<version>`, if their part does not say.
        reading: how to read each; card and split are those of its part. The cameras are slots that
            every dataset must have, with intrinsics.
        assume_intrinsics: a camera of `oxe_intrinsics.yaml` where a dataset knows none: a guess.
        balance_weights: multiply weights by the number of steps, as the released loaders do.
        excuse: datasets (`name/version` or `name`) that may be missing or broken.

    Raises:
        DatasetError: the list of everything that is missing or broken and not excused, or nothing
            is left; a reading with a card or a split.
    """
    if reading.card is not None or reading.split != PRIMARY.split:
        raise DatasetError(
            f"a mixture is not read with card={reading.card!r}, split={reading.split!r} for all of "
            "its datasets: give card and split to its parts"
        )
    unknown = sorted(set(excuse) - {alias for name in parts for alias in (name, _short(name))})
    if unknown:
        raise DatasetError(
            f"excused datasets that the mixture has not: {unknown}; it has {', '.join(parts)}"
        )
    camera = assumed_camera(assume_intrinsics) if assume_intrinsics is not None else None
    shipped_cards = load_cards(shipped(CARDS))
    opened: dict[str, SampleDataset] = {}
    heldout: dict[str, SampleDataset | None] = {}
    problems: dict[str, str] = {}
    for name, part in parts.items():
        try:
            dataset = _open(name, part, root, shipped_cards, camera, reading)
            opened[name], heldout[name] = divide(
                dataset,
                split=part.split,
                failed=part.failed,
                no_ops=part.no_ops,
                validation=part.validation,
            )
        except (DatasetError, OSError) as error:
            problems[name] = str(error)
    excused = {n: p for n, p in problems.items() if n in excuse or _short(n) in excuse}
    serious = {n: p for n, p in problems.items() if n not in excused}
    if serious:
        lines = "\n".join(f"- {name}: {problem}" for name, problem in serious.items())
        raise DatasetError(
            f"{len(serious)} of {len(parts)} datasets cannot be used:\n{lines}\n"
            "Mend them; those of a mixture may be excused by name (data.mixture.excuse)"
        )
    for name, problem in excused.items():
        logger.warning("%s is left out of the mixture, as excused: %s", name, problem)
    if not opened:
        raise DatasetError(f"all {len(parts)} datasets of the mixture are excused; nothing is left")
    weights = mixture_weights(
        [parts[name].weight for name in opened],
        [int(dataset.episode_lengths.sum()) for dataset in opened.values()],
        balance=balance_weights,
    )
    kept = [parts[name] for name in opened]
    return Opened(list(opened.values()), kept, weights.tolist(), excused, list(heldout.values()))


def mixture_weights(
    weights: Sequence[float], transitions: Sequence[int], *, balance: bool
) -> Float64[np.ndarray, " n"]:
    """Shares of the draws, adding up to 1; `balance` multiplies by the number of transitions."""
    share = np.asarray(weights, np.float64)
    if balance:
        share = share * np.asarray(transitions, np.float64)
    total = share.sum()
    if not total > 0:
        raise DatasetError(f"the weights {list(weights)} leave nothing to draw from")
    return np.asarray(share / total)


def _short(name: str) -> str:
    return name.split("/", 1)[0]


def _open(
    name: str,
    part: Part,
    root: str | Path | None,
    known: Mapping[str, Card],
    camera: Intrinsics | None,
    reading: Reading,
) -> SampleDataset:
    place = _place(name, part, root)
    local = isinstance(place, Path)
    if local and not Path(place).is_dir():
        raise DatasetError(
            f"{place} is no folder; fetch the dataset, or give its part a path{near_path(place)}"
        )
    card: Card | Path | None = part.card
    if card is None and local and not _tells_itself(Path(place)):
        if _short(name) not in known:
            raise DatasetError(
                f"{place} brings no {CARD_FILE}, and none of the {len(known)} cards of the "
                "toolkit has its name; write one (data_mixtures/README.md)"
            )
        card = known[_short(name)]
    dataset = open_as(place, dataclasses.replace(reading, card=card, split=part.split))
    unknown = [slot for slot in reading.cameras or () if slot not in dataset.card.intrinsics]
    if unknown and camera is None:
        raise DatasetError(
            f"the intrinsics of {unknown} are not known: put them into its card, or accept a guess "
            "for all such datasets (data.assume_intrinsics: default in a recipe)"
        )
    if unknown and camera is not None:
        dataset = dataset.with_intrinsics(dict.fromkeys(unknown, camera))
    return dataset


def _tells_itself(folder: Path) -> bool:
    return (folder / CARD_FILE).is_file() or is_lerobot(folder)


def _place(name: str, part: Part, root: str | Path | None) -> Path | str:
    if part.path is not None:
        return part.path if "://" in part.path else Path(part.path)
    if root is None:
        raise DatasetError(
            "it has no path, and no root was given; give --root, in a recipe data.mixture.root, or "
            "its part a path"
        )
    if "/" not in name:
        raise DatasetError(f"{name!r} has no version; write {name}/<version>")
    return Path(root) / name
