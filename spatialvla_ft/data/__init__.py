"""From demonstrations on disk to samples: index, cards, standard steps, sampling."""

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.files import load_cards
from spatialvla_ft.data.cards.standardise import Standardised, standardise
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.opening import (
    LeRobotDataset,
    Reading,
    RldsDataset,
    SampleDataset,
    holdout,
    open_as,
    open_dataset,
)
from spatialvla_ft.data.rlds.index import FrameIndex, build_index
from spatialvla_ft.data.sample import Sample
from spatialvla_ft.data.sampler import Sampler

__all__ = [
    "Card",
    "DatasetError",
    "FrameIndex",
    "LeRobotDataset",
    "Reading",
    "RldsDataset",
    "Sample",
    "SampleDataset",
    "Sampler",
    "Standardised",
    "build_index",
    "holdout",
    "load_cards",
    "open_as",
    "open_dataset",
    "standardise",
]
