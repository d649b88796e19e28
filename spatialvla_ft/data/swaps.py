"""Cameras that change places, as a card's `augment` says: DROID's two outside views."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from spatialvla_ft.data.card import Card

Value = TypeVar("Value")


def swapped_slots(card: Card, dataset: str, episode: int) -> dict[str, str]:
    """Slot -> slot whose place it takes in this episode; empty where nothing changes.

    The draw is a function of dataset and episode, so that every process, epoch and resumed run
    sees an episode from the same side.
    """
    places: dict[str, str] = {}
    for i, rule in enumerate(card.augment):
        chance = np.random.default_rng([zlib.crc32(dataset.encode()), episode, i]).random()
        if chance < rule.p:
            a, b = rule.swap
            # A second rule moves what already stands in its slots.
            now = {places.get(slot, slot): slot for slot in {*places, a, b}}
            places[now.get(a, a)], places[now.get(b, b)] = b, a
    return places


def swap(values: Mapping[str, Value], places: Mapping[str, str]) -> dict[str, Value]:
    """The same values under their new slots."""
    return {places.get(slot, slot): value for slot, value in values.items()}
