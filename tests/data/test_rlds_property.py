"""Random small RLDS datasets with random defects are read right, or refused by name."""

import tempfile
import zlib
from pathlib import Path

import numpy as np
import plain_rlds as plain
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_rlds import Spec, sequence, tensor

from spatialvla_ft.data import DatasetError, open_dataset

SENTENCES = ("push it", "schieb es weg", "pousse-le là", "推一下", "")
DEFECTS = (
    "none", "null", "absent", "too many", "too few", "of another type", "one long row",
    "not utf-8", "slice", "no such class",
)  # fmt: skip
NAMED = ("action", "observation.state", "words")
UNNAMED = ("force", "comment", "contacts")


@st.composite
def cases(draw):
    """Lengths, forms of action and words, and which column is spoilt in which episode."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    return {
        "lengths": lengths,
        "action": draw(st.sampled_from(["plain", "ragged", "zlib"])),
        "words": draw(st.sampled_from(list(WORDS))),
        "several": draw(st.sampled_from([None, "first", "drawn"])),
        "column": draw(st.sampled_from(NAMED + UNNAMED)),
        "episode": draw(st.integers(0, len(lengths) - 1)),
        "said": draw(st.lists(st.sampled_from(SENTENCES), min_size=3, max_size=3)),
        "window": draw(st.integers(1, 2)),
    }


def per_step(case, count):
    """Of every episode, `count` sentences at each of its steps."""
    return [
        [f"{s} {e}".strip().encode() if s else b"" for _ in range(n) for s in case["said"][:count]]
        for e, n in enumerate(case["lengths"])
    ]


def one_string(case):
    return {"words": Spec(plain.TEXT, per_step(case, 1))}, "string", "words", 1


def fixed_number(case):
    return {"words": Spec(tensor(3, dtype="string"), per_step(case, 3))}, "string_array", "words", 3


def any_number(case):
    rows = [[3] * n for n in case["lengths"]]
    spec = Spec(sequence(plain.TEXT), per_step(case, 3), rows=rows)
    return {"words": spec}, "string_array", "words", 3


def three_columns(case):
    found = per_step(case, 3)
    keys = ["words", "words_2", "words_3"]
    specs = {key: Spec(plain.TEXT, [part[i::3] for part in found]) for i, key in enumerate(keys)}
    return specs, "string", keys, 3


def of_the_episode(case):
    spec = Spec(plain.TEXT, [part[:1] for part in per_step(case, 1)], per="episode")
    return {"episode_metadata.words": spec}, "string", "episode_metadata.words", 1


def beside_the_steps(case):
    spec = Spec(plain.TEXT, [part[:1] for part in per_step(case, 1)], per="episode")
    return {"words": spec}, "string", "words", 1


def letters(case):
    rows = [
        [code for text in part for code in [*map(ord, text.decode()), *[0] * 40][:40]]
        for part in per_step(case, 1)
    ]
    return {"words": Spec(tensor(40, dtype="int32"), rows)}, "utf8_codepoints", "words", 1


WORDS = {
    make.__name__: make
    for make in (one_string, fixed_number, any_number, three_columns, of_the_episode,
                 beside_the_steps, letters)
}  # fmt: skip


def action_of(form, numbers):
    """The action's column, which says the number of its step."""
    spec = numbers["action"]
    if form == "ragged":
        rows = [[7] * (len(values) // 7) for values in spec.values]
        return Spec(sequence(tensor()), spec.values, rows=rows)
    if form == "zlib":
        packed = [
            [zlib.compress(row.tobytes()) for row in np.float32(values).reshape(-1, 7)]
            for values in spec.values
        ]
        return Spec(tensor(7, encoding="zlib"), packed)
    return spec


def spoil(spec, defect, episode):
    """Make one episode of a column wrong; whether that was possible."""
    values = spec.values[episode]
    if defect == "null" and spec.rows is None:
        spec.values[episode] = []
    elif defect == "absent":
        spec.values[episode] = None
    elif defect == "too many":
        spec.values[episode] = [*values, values[0]]
    elif defect == "too few" and len(values) > 1:
        spec.values[episode] = values[:-1]
    elif defect == "of another type":
        other = [1.5] if isinstance(values[0], bytes | int) else [b"text"]
        spec.values[episode] = other * len(values)
    elif defect == "one long row" and spec.rows is not None and len(spec.rows[episode]) > 1:
        spec.values[episode] = [*values, values[0]]
        spec.rows[episode] = [*spec.rows[episode][:-1], spec.rows[episode][-1] + 1]
    elif defect == "not utf-8" and spec.node is plain.TEXT:
        spec.values[episode] = [b"pour caf\xe9"] * len(values)
    elif defect == "no such class":
        spec.node = {"pythonClassName": "my.features.Smell", "jsonFeature": {}}
    else:
        return False
    return True


def build(case, defect, root):
    """(directory, column that is spoilt or None, whether the card reads it, sentences per step)."""
    columns = plain.robot(case["lengths"])
    del columns["language_instruction"]
    specs, kind, key, count = WORDS[case["words"]](case)
    columns |= specs | {"action": action_of(case["action"], columns)}
    steps = case["lengths"]
    columns |= {
        "force": Spec(tensor(2, dtype="int64"), [[e, -(2**40)] * n for e, n in enumerate(steps)]),
        "comment": Spec(plain.TEXT, [[b"fine"] * n for n in steps]),
        "contacts": Spec(
            sequence(tensor(dtype="int32")),
            [[7] * sum(range(n)) for n in steps],
            rows=[[*range(n)] for n in steps],
        ),
    }
    card = {
        **plain.CARD,
        "language": {"kind": kind, "key": key, "several": case["several"]},
        "proprio": {
            "encoding": None,
            "terms": ["observation.state[0:6]", "observation.state[-1:]"],
        },
    }
    first = key if isinstance(key, str) else key[0]
    column = first if case["column"] == "words" else case["column"]
    is_read = case["column"] in NAMED
    if defect == "slice":
        column, is_read = "observation.state", True
        card["proprio"] = {"terms": ["observation.state[0:9]"]}
    elif not spoil(columns[column], defect, case["episode"]):
        column = None
    folder = plain.write(root, columns, episodes=len(steps), card=card)
    return folder, column, is_read, count


@pytest.mark.parametrize("defect", DEFECTS)
@settings(
    max_examples=20, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(case=cases())
def test_read_right_or_refused_by_name(defect, case):
    with tempfile.TemporaryDirectory() as place:
        folder, spoilt, is_read, count = build(case, defect, Path(place))
        try:
            dataset = open_dataset(folder, card=None, horizon=2, window=case["window"])
            samples = dataset[:]
            actions = dataset.actions()
        except DatasetError as error:
            told = str(error)
            assert spoilt is not None, told
            assert is_read, told
            assert plain.NAME in told
            assert spoilt in told
            if defect not in ("slice", "no such class"):
                assert f"episode {case['episode']}" in told
            return
        assert spoilt is None or not is_read
        check(case, samples, actions, count)


def check(case, samples, actions, count):
    """Everything that was read says which step it is of."""
    total = sum(case["lengths"])
    assert len(samples) == len(actions) == total
    np.testing.assert_array_equal(actions, np.arange(total)[:, None] + np.arange(7) / 8)
    places = [(e, t) for e, n in enumerate(case["lengths"]) for t in range(n)]
    for number, (sample, place) in enumerate(zip(samples, places, strict=True)):
        assert (sample.episode, sample.step) == place
        assert plain.number_of(sample.images["primary"]) == number
        expected = [number + j / 8 for j in (*range(6), 7)]
        np.testing.assert_array_equal(sample.proprio, np.float32(expected))
        said = [f"{s} {place[0]}".strip() for s in case["said"][:count] if s]
        assert sample.instruction == (said or [""])[0]
        assert sample.sentences == (tuple(said) if case["several"] == "drawn" else ())
