"""Filters that a mixture declares: failed episodes, steps without motion, episodes held out.

They apply in this order: failed episodes go first; then steps without motion leave the
trajectories, before action chunks are cut; then episodes are held out for validation. All of them
are part of the hash under which statistics are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator

from spatialvla_ft.actions.spaces import ActionSpace, RawActions
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.samples import SampleDataset
from spatialvla_ft.data.stats.kept import content_key, kept_array
from spatialvla_ft.data.stats.statistics import dataset_statistics, normalised_dimensions
from spatialvla_ft.data.words import UTF8, text_of

logger = logging.getLogger(__name__)


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NoOps(_Rule):
    """Remove steps that do nothing.

    A step does nothing if no arm dimension moves by more than `tolerance` of the normalised range,
    which is 2 wide, and the gripper moves by no more than `tolerance` since the last step that was
    kept (the first step, until one is). A dimension that is a change per step moves by its own
    value; one that is a position moves by its difference from the last step that was kept, and the
    first step of such a trajectory is always kept. The range is that of all steps before the
    filter.
    """

    tolerance: float = Field(1e-3, gt=0)


class Failed(_Rule):
    """Remove episodes whose column `key` is `value`; of a column per step, the last step counts."""

    key: str
    value: bool | int | float | str = False


class Validation(_Rule):
    """Hold episodes out: a split of the dataset by name, or a share of the episodes.

    `validation: 0.05` is short for `validation: {fraction: 0.05}`. A share is drawn by a hash of
    the episode's place in its split, or of its column `key`, so that more episodes at the end of a
    dataset leave every earlier one on its side. If none falls into the share, the one with the
    lowest hash is taken.
    """

    fraction: float | None = Field(None, gt=0, lt=1)
    split: str | None = None
    key: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return {"fraction": value} if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _one_of(self) -> Validation:
        if (self.fraction is None) == (self.split is None):
            raise ValueError("give a fraction or the name of a split, and not both")
        if self.split is not None and self.key is not None:
            raise ValueError("a named split needs no key; leave it out")
        return self


Gaps = Literal["failed episodes", "steps without motion"]


@dataclass(frozen=True)
class MovingSteps:
    """The `RowFilter` of `NoOps`.

    Attributes:
        tolerance: in normalised units.
        space: what the actions are.
        spread: (dim,) q99 - q01 of each dimension; infinite where nothing ever changes.
        lengths: (episodes of the store,) steps that stay; 0 of episodes that were not asked for.
    """

    tolerance: float
    space: ActionSpace
    spread: Float64[np.ndarray, " dim"]
    lengths: Int64[np.ndarray, " episodes"] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def key(self) -> str:
        """Hash of the rule and the range."""
        parts = ["no-ops 1", self.tolerance, self.spread.tolist(), self.space.to_dict()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def keep(self, action: RawActions) -> Bool[np.ndarray, " T"]:
        """Which steps of (T, dim) actions do something."""
        arm = normalised_dimensions(self.space)
        delta = arm & self.space.deltas
        scaled = 2 * action.astype(np.float64) / self.spread
        keep = np.asarray((np.abs(scaled[:, delta]) > self.tolerance).any(axis=1))
        place = np.where(arm, scaled, action)[:, ~delta]
        drifts = np.abs(np.diff(place, axis=0))
        clear = (drifts == 0) | (drifts > self.tolerance)
        if clear.all() and not (arm & ~delta).any():
            keep[1:] |= (drifts > 0).any(axis=1)
            return keep
        held = place[:1]
        for t in range(len(place)):
            first = t == 0 and bool((arm & ~delta).any())
            if keep[t] or first or (np.abs(place[t] - held) > self.tolerance).any():
                keep[t], held = True, place[t]
        return keep


def drop_failed(dataset: SampleDataset, rule: Failed) -> SampleDataset:
    """The episodes that did not fail.

    Raises:
        DatasetError: there is no such column, its values are of another kind, or all failed.
    """
    dataset.store.check_column(rule.key)

    def compute() -> np.ndarray:
        return np.array([_is(value, rule) for value in _last_values(dataset, rule.key)], bool)

    key = content_key(dataset, "failed", rule.model_dump())
    failed = kept_array(dataset.store.statistics_dir, "failed", key, compute)
    if failed.all():
        raise DatasetError(
            f"{dataset.name}: {rule.key} is {rule.value!r} in all {len(failed)} episodes, so none "
            "is left; look at the column (spatialvla-ft data inspect) and mend `failed`"
        )
    part = dataset.subset(dataset.episodes[~failed])
    return _note(part, dataset, "failed episodes", int(failed.sum()), len(failed))


def _last_values(dataset: SampleDataset, key: str) -> Iterator[Any]:
    """Of a column per step, its last number in each episode; text as str."""
    column = dataset.store.check_column(key)
    for episode in dataset.episodes.tolist():
        if column is not None and column.per == "episode":
            found = dataset.store.value(key, episode, 0)
        else:
            found = dataset.store.trajectory(episode, (key,))[key]
            found = found[-1:] if isinstance(found, list) else found  # lengths may vary
        values = np.asarray(found).reshape(-1)
        value = values[-1] if len(values) else None
        if isinstance(value, bytes):
            value = text_of(value, f"{dataset.name}, episode {episode}: {key!r}", cure=UTF8)
        yield value


def _is(value: Any, rule: Failed) -> bool:
    if value is not None and isinstance(value, str) != isinstance(rule.value, str):
        raise DatasetError(
            f"{rule.key} holds {value!r}, which cannot be compared with {rule.value!r}; give "
            "`failed` a value of the same kind"
        )
    return bool(value == rule.value)


def drop_no_ops(dataset: SampleDataset, rule: NoOps, scale: SampleDataset) -> SampleDataset:
    """The dataset without its steps that do nothing.

    Args:
        dataset: what to filter.
        rule: when a step does nothing.
        scale: the episodes whose range counts; those that are trained on.
    """
    space = dataset.action_space
    found = dataset_statistics(scale).by_quantiles()
    spread = np.where(found.constant, np.inf, found.q99 - found.q01 + 1e-8)
    rows = MovingSteps(rule.tolerance, space, spread)

    def compute() -> np.ndarray:
        lengths = np.zeros(len(dataset.store.episode_lengths), np.int64)
        for episode in dataset.episodes.tolist():
            lengths[episode] = rows.keep(dataset.standardised(episode).action).sum()
        return lengths

    key = content_key(dataset, rows.key)
    lengths = kept_array(dataset.store.statistics_dir, "moving", key, compute)
    before = int(dataset.episode_lengths.sum())
    part = dataset.with_rows(MovingSteps(rule.tolerance, space, spread, lengths))
    after = int(part.episode_lengths.sum())
    if not after:
        raise DatasetError(
            f"{dataset.name}: no step moves by more than {rule.tolerance:g} of the range; lower "
            "no_ops.tolerance, or leave no_ops out"
        )
    return _note(part, dataset, "steps without motion", before - after, before)


def _note(
    part: SampleDataset, whole: SampleDataset, what: Gaps, gone: int, of: int
) -> SampleDataset:
    part.dropped = {**whole.dropped, what: (gone, of)}
    logger.info("%s: %d of %d %s dropped", whole.name, gone, of, what)
    return part


def hold_out(
    dataset: SampleDataset, rule: Validation, *, split: str
) -> tuple[SampleDataset, SampleDataset]:
    """(what is trained on, what is held out) of a dataset.

    Args:
        dataset: all episodes, those of a named validation split among them.
        rule: which to hold out.
        split: the split that is trained on.
    """
    splits = dataset.store.splits
    if rule.split is not None:
        chosen = splits[rule.split]
        held = (dataset.episodes >= chosen.start) & (dataset.episodes < chosen.stop)
    elif rule.key is not None:
        dataset.store.check_column(rule.key)
        names = (str(value) for value in _last_values(dataset, rule.key))
        held = _lowest(np.array([_hash(name) for name in names], np.uint64), rule.fraction or 0)
    else:
        places = dataset.episodes - splits[split].start
        hashes = np.array([_hash(str(place)) for place in places.tolist()], np.uint64)
        held = _lowest(hashes, rule.fraction or 0)
    if held.all() or not held.any():
        raise DatasetError(
            f"{dataset.name}: validation {rule.model_dump(exclude_none=True)} holds out "
            f"{int(held.sum())} of {len(held)} episodes; some must be left on both sides"
        )
    return dataset.subset(dataset.episodes[~held]), dataset.subset(dataset.episodes[held])


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _lowest(hashes: np.ndarray, fraction: float) -> Bool[np.ndarray, " n"]:
    """Those below the fraction of all possible hashes, at least one."""
    chosen = hashes < np.uint64(int(fraction * 2**64))
    return chosen if chosen.any() else np.asarray(hashes == hashes.min())


def divide(
    dataset: SampleDataset,
    *,
    split: str,
    failed: Failed | None = None,
    no_ops: NoOps | None = None,
    validation: Validation | None = None,
) -> tuple[SampleDataset, SampleDataset | None]:
    """(what is trained on, what is held out or None), after all filters.

    Raises:
        DatasetError: no such split or column, or nothing is left on a side.
    """
    if validation is not None and validation.split is not None:
        splits = dataset.store.splits
        if validation.split not in splits or validation.split == split:
            raise DatasetError(
                f"{dataset.name}: validation.split is {validation.split!r}; it must be another "
                f"split than {split!r}, of {list(splits)}"
            )
        more = np.asarray(splits[validation.split], np.int64)
        dataset = dataset.subset(np.concatenate([dataset.episodes, more]))
    if failed is not None:
        dataset = drop_failed(dataset, failed)
    train = dataset
    if validation is not None:
        train, _ = hold_out(dataset, validation, split=split)
    if no_ops is not None:
        dataset = drop_no_ops(dataset, no_ops, train)
    if validation is None:
        return dataset, None
    return hold_out(dataset, validation, split=split)
