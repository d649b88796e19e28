"""`Reading` against the keywords of `open_dataset`."""

import dataclasses
import inspect

import numpy as np
import pytest

from spatialvla_ft.data import DatasetError, Reading, build_index, open_as, open_dataset

OTHER = {
    "horizon": 2,
    "split": "val",
    "intrinsics": {"wrist": np.diag([31.0, 37, 1])},
    "depth": False,
    "fast_dct": False,
    "window": 3,
    "cameras": ["wrist"],
}


def test_every_keyword_is_a_field_with_the_same_default():
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(open_dataset).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    none = dataclasses.MISSING, inspect.Parameter.empty
    fields = {
        field.name: none[1] if field.default is none[0] else field.default
        for field in dataclasses.fields(Reading)
    }
    assert list(keywords) == list(fields)
    assert keywords == fields


def same(one, other):
    """Whether two values are the same to the last bit, arrays within included."""
    if dataclasses.is_dataclass(one):
        one, other = vars(one), vars(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    return one == other


def through_all(demo):
    """(keywords, samples opened by keywords, samples opened by a `Reading`) of many readings."""
    for keywords in ({}, *({key: value} for key, value in OTHER.items()), OTHER):
        keywords = {"card": None, **keywords}
        yield keywords, open_dataset(demo, **keywords), open_as(demo, Reading(**keywords))


def test_a_reading_gives_the_samples_of_the_keywords(demo):
    plain = list(open_dataset(demo, card=None))
    for keywords, wanted, got in through_all(demo):
        assert type(got) is type(wanted)
        assert same(list(got), list(wanted)), keywords
        assert len(keywords) == 1 or not same(list(got), plain), keywords


def test_an_opened_index_and_a_card_of_another_place(demo, tmp_path):
    index = build_index(demo, out=tmp_path / "index")
    card = demo / "card.yaml"
    card = card.rename(tmp_path / "mine.yaml")
    wanted = open_dataset(index, card=card)
    assert same(list(open_as(index, Reading(card=card))), list(wanted))
    with pytest.raises(DatasetError, match="brings no card"):
        open_as(index, Reading(card=None))


def test_keywords_and_a_reading_at_once_are_refused(demo):
    with pytest.raises(TypeError, match="unexpected keyword argument 'horizon'"):
        open_as(demo, Reading(card=None), horizon=2)


@pytest.mark.parametrize("wrong", [{"horizon": 0}, {"window": -1}])
def test_a_reading_of_nothing_is_refused(wrong):
    with pytest.raises(DatasetError, match=r"(horizon|window) must be at least 1, got (0|-1)"):
        Reading(card=None, **wrong)
