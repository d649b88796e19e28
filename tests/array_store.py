"""Episodes in memory, without pictures: an `EpisodeStore` for tests of what is built upon it."""

from collections import Counter
from pathlib import Path

import numpy as np

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.reading import Reading
from spatialvla_ft.data.samples import SampleDataset

ARM = {
    "translation": ["action[0:3]"],
    "rotation": {"raw": "labelled_euler", "terms": ["action[3:6]"]},
    "gripper": ["action[6:7]"],
}
JOINTS = {"encoding": "JOINT_POS", "joints": ["action[0:6]"], "gripper": ["action[6:7]"]}


class ArrayStore:
    """`episodes`: a dict of columns each; a column without a step axis is of the episode."""

    def __init__(self, episodes, *, folder, label="arrays/1.0.0", splits=None):
        self.episodes = episodes
        self.label = label
        self.splits = splits or {"train": range(len(episodes))}
        self.statistics_dir = Path(folder)
        self.content_hash = f"{label} {len(episodes)}"
        self.licence = None
        self.reads = Counter()

    @property
    def episode_lengths(self):
        return np.array([len(episode["action"]) for episode in self.episodes], np.int64)

    def check_column(self, key):
        if key not in self.episodes[0]:
            raise DatasetError(f"no column {key!r}; there are {sorted(self.episodes[0])}")

    def check_image(self, key, *, depth):
        raise AssertionError("there are no pictures")

    def trajectory(self, episode, keys, steps=None):
        self.reads[episode] += 1
        columns = {key: self.episodes[episode][key] for key in keys}
        if steps is None:
            return columns
        return {key: column[steps.start : steps.stop] for key, column in columns.items()}

    def value(self, key, episode, step):
        return self.episodes[episode][key][step]


def array_dataset(episodes, folder, *, action=ARM, horizon=4, split="train", card=None, **store):
    """A `SampleDataset` of episodes in memory."""
    card = {
        "name": "arrays",
        "version": "1.0.0",
        "source_hash": "arrays",
        "language": {"kind": "none"},
        "action": action,
        **(card or {}),
    }
    found = ArrayStore(episodes, folder=folder, **store)
    return SampleDataset(
        found,
        Card.model_validate(card),
        Reading(card=None, horizon=horizon),
        episodes=np.array(found.splits[split], np.int64),
    )
