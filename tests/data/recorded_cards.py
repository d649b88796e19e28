"""The public cards, and recorded trajectories that each can read; tests/golden/oxe_all_cards.md."""

import json
from pathlib import Path

import numpy as np

from spatialvla_ft.data import load_cards

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
CARDS = load_cards(ROOT / "data_mixtures/oxe_cards.yaml")
CONFIGS = json.loads((GOLDEN / "oxe_all_cards.json").read_text())
NUMBERS = np.load(GOLDEN / "oxe_all_cards.npz")


def byte_strings(packed):
    data, rows = packed.tobytes(), []
    while data:
        size = 4 + int.from_bytes(data[:4], "little")
        rows.append(data[4:size])
        data = data[size:]
    return np.array([*rows, None], object)[:-1]


def recorded(dataset):
    """(raw columns, {action, proprio, language}) of each trajectory of a dataset."""
    prefix = CONFIGS[dataset]["numbers"] + "/"
    found = {k[len(prefix) :]: NUMBERS[k] for k in NUMBERS.files if k.startswith(prefix)}
    found = {
        key.removesuffix("|bytes"): byte_strings(value) if key.endswith("|bytes") else value
        for key, value in found.items()
    }
    ends, kept_ends = np.cumsum(found.pop("steps")), np.cumsum(found.pop("kept"))
    raw = {key[4:]: value for key, value in found.items() if key.startswith("raw/")}
    out = {key: value for key, value in found.items() if not key.startswith("raw/")}
    for i in range(len(ends)):
        at = slice(ends[i - 1] if i else 0, ends[i])
        left = slice(kept_ends[i - 1] if i else 0, kept_ends[i])
        yield {k: v[at] for k, v in raw.items()}, {k: v[left] for k, v in out.items()}
