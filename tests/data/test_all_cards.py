"""Every shipped card standardises a trajectory that is made of the card's own terms."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from spatialvla_ft.data import load_cards, standardise

PLACE = Path(__file__).parents[2] / "data_mixtures/oxe_cards.yaml"
CARDS = load_cards(PLACE)
FILE = yaml.safe_load(PLACE.read_text())
STEPS = 17
WORDS = "push the püd"
STATE = 7
"""Width of a column whose card takes it whole, where nothing says how wide it is."""


def least_width(term):
    """Columns that a term's slice needs, and whether it takes all there are."""
    start, stop = term.columns.start, term.columns.stop
    if start is None and stop is None:
        return 1, True
    ends = [abs(end) for end in (start, stop) if end is not None]
    return max(ends), False


def wide(term):
    """Columns that a term gives; None if it takes a column whole."""
    if term.path is None:
        return term.width
    for op in term.ops:
        if op.name == "quat_to_euler":
            return 3
        if op.name == "zlib_float32":
            return op.args[0]
    start, stop = term.columns.start or 0, term.columns.stop
    if least_width(term)[1]:
        return None
    return (0 if stop is None else stop) - start


def groups(card):
    """(terms, total width or None) of what the card joins."""
    action = card.action
    if action.joints is None:
        yield action.translation, 3
        yield action.rotation.terms, 3
    else:
        yield action.joints, None
    yield action.gripper, 1
    if card.relabel:
        yield [card.relabel.source], card.relabel.dims[1] - card.relabel.dims[0]
    if card.proprio:
        yield card.proprio.terms, None


def widths(card):
    """Column -> width, by every slice and every group that must have a certain width."""
    found = {}
    for terms, total in groups(card):
        given = [wide(term) for term in terms]
        for term, width in zip(terms, given, strict=True):
            if term.path is None:
                continue
            least, whole = least_width(term)
            if whole and width is None:
                known = sum(w for w in given if w is not None)
                least = total - known if total is not None else STATE
            found[term.path] = max(found.get(term.path, 0), least)
    return found


def column(name, width, terms, rng):
    """Values that a term's ops accept: events, quaternions, packed bytes, or plain numbers."""
    ops = {op.name for term in terms for op in term.ops if term.path == name}
    if "zlib_float32" in ops:
        (size,) = {op.args[0] for t in terms if t.path == name for op in t.ops}
        rows = rng.normal(size=(STEPS, size)).astype(np.float32)
        packed = np.empty(STEPS, object)
        packed[:] = [zlib.compress(row.tobytes()) for row in rows]
        return packed
    if "rel_to_abs" in ops:
        return rng.choice([-1.0, 0.0, 1.0], (STEPS, width)).astype(np.float32)
    if "quat_to_euler" in ops:
        values = rng.uniform(0, 1, (STEPS, width))
        values[:, 3:7] /= np.linalg.norm(values[:, 3:7], axis=1, keepdims=True)
        return values.astype(np.float32)
    return rng.uniform(0, 1, (STEPS, width)).astype(np.float32)


def language(kind):
    if kind == "utf8_codepoints":
        codes = np.zeros((STEPS, 40), np.int32)
        codes[:, : len(WORDS)] = list(map(ord, WORDS))
        return codes
    values = np.array([WORDS.encode()] * STEPS, object)
    return values[:, None] if kind == "string_array" else values


def trajectory(card, seed):
    rng = np.random.default_rng(seed)
    terms = [term for group, _ in groups(card) for term in group]
    raw = {name: column(name, width, terms, rng) for name, width in widths(card).items()}
    if card.language.key:
        raw[card.language.key] = language(card.language.kind)
    return raw


def nested(flat):
    tree = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


@pytest.mark.parametrize("name", sorted(CARDS))
def test_every_card(name):
    card = CARDS[name]
    raw = trajectory(card, seed=len(name))
    got = standardise(card, raw)
    kept = STEPS - card.drop.first - (card.relabel is not None)
    width = 7 if card.action.joints is None else 8
    assert got.action.shape == (kept, width)
    assert got.action.dtype == np.float32
    assert np.isfinite(got.action).all()
    assert got.action[:, -1].min() >= 0
    assert got.action[:, -1].max() <= 1
    np.testing.assert_array_equal(got.steps, card.drop.first + np.arange(kept))
    assert got.proprio.shape[0] == kept
    assert got.proprio.dtype == np.float32
    assert np.isfinite(got.proprio).all()
    assert got.language == (None if card.language.kind == "none" else [WORDS] * kept)
    assert card.action_space_of(width).dim == width
    # The same from nested mappings, and from text as str.
    again = {key: np.array(["x"] * STEPS) if key == card.language.key and
             card.language.kind == "string" else value for key, value in raw.items()}  # fmt: skip
    twin = standardise(card, nested(again))
    np.testing.assert_array_equal(twin.action, got.action)


def texts(name):
    """The action's terms as the YAML file writes them."""
    action = FILE["cards"][name]["action"]
    arm = action.get("joints") or [*action["translation"], *action["rotation"]["terms"]]
    return [*arm, *action["gripper"]]


@pytest.mark.parametrize("name", sorted(CARDS))
def test_plain_terms_are_columns_as_they_are(name):
    """By hand with NumPy slices: every term without ops is what its text says."""
    card = CARDS[name]
    raw = trajectory(card, seed=3)
    got = standardise(card, raw)
    replaced = range(*card.relabel.dims) if card.relabel else range(0)
    at = 0
    for written in texts(name):
        ops = written.get("ops", []) if isinstance(written, dict) else []
        text = written["src"] if isinstance(written, dict) else written
        part = got.action[:, at:]
        if constant := re.fullmatch(r"(zeros|ones)\((\d)\)", text):
            assert (part[:, : int(constant[2])] == (constant[1] == "ones")).all()
            at += int(constant[2])
            continue
        key, _, ends = text.removesuffix("]").partition("[")
        columns = [int(end) if end else None for end in ends.split(":")] if ends else [None]
        values = raw[key][got.steps][:, slice(*columns)]
        count = 3 if {"quat_to_euler": "xyzw"} in ops else values.shape[1]
        if not ops and at not in replaced:
            np.testing.assert_array_equal(part[:, :count], values)
        at += count
    assert at == got.action.shape[1]
