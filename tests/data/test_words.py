"""What the robot was told: where it lies, how it is written, and which of several is said."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import plain_rlds as plain
import pytest
from plain_rlds import Spec, sequence, tensor
from torch.utils.data import DataLoader

from spatialvla_ft.converters.mapping import read_mapping
from spatialvla_ft.converters.rlds_to_lerobot import to_lerobot
from spatialvla_ft.data import DatasetError, Sampler, open_dataset, standardise
from spatialvla_ft.data import samples as sample_dataset
from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.fields import Language
from spatialvla_ft.data.words import read_words
from spatialvla_ft.inspection import inspect_dataset
from spatialvla_ft.training.batches import Frames, StepBatches

LENGTHS = (3, 2)
KEY = "language_instruction"


def card(**language):
    return {**plain.CARD, "language": language}


def said(*texts):
    """The same texts at each step."""
    return [[text.encode() for _ in range(n) for text in texts] for n in LENGTHS]


def dataset_of(tmp_path, columns, language, **options):
    columns = plain.robot(LENGTHS) | columns
    if KEY not in str(language.get("key", KEY)):
        del columns[KEY]
    folder = plain.write(tmp_path, columns, episodes=len(LENGTHS), card=card(**language))
    return open_dataset(folder, card=None, **options)


def array(*texts):
    return {KEY: Spec(tensor(len(texts), dtype="string"), said(*texts))}


def read(language, values, steps=None):
    return read_words(Language(**language), {KEY: values}, steps or range(len(values)))


def test_several_sentences_the_first_that_says_something(tmp_path):
    dataset = dataset_of(tmp_path, array("", "b", "c"), {"kind": "string_array", "key": KEY})
    assert {sample.instruction for sample in dataset[:]} == {"b"}
    assert {sample.sentences for sample in dataset[:]} == {()}
    assert dataset.instructions() == ["b"]


def test_several_columns(tmp_path):
    keys = [KEY, f"{KEY}_2", f"{KEY}_3"]
    columns = {
        key: Spec(plain.TEXT, said(text)) for key, text in zip(keys, ("a", "", "c"), strict=True)
    }
    language = {"kind": "string", "key": keys, "several": "drawn"}
    dataset = dataset_of(tmp_path, columns, language)
    assert dataset[0].instruction == "a"
    assert dataset[4].sentences == ("a", "c")
    assert dataset.instructions() == ["a", "c"]


def test_none_says_anything():
    found = read({"kind": "string_array", "several": "drawn"}, [["", ""], ["a", ""]])
    assert found.first == ["", "a"]
    assert found.sentences == [(), ("a",)]


@pytest.mark.parametrize("kept", [256, 0])
@pytest.mark.parametrize("per", ["beside", "episode_metadata"])
def test_words_of_the_episode(tmp_path, per, kept, monkeypatch):
    monkeypatch.setattr(sample_dataset, "CACHED_EPISODES", kept)
    key = "told" if per == "beside" else "episode_metadata.told"
    columns = {key: Spec(plain.TEXT, [[b"one"], [b"two"]], per="episode")}
    dataset = dataset_of(tmp_path, columns, {"kind": "string", "key": key})
    assert [sample.instruction for sample in dataset[:]] == ["one"] * 3 + ["two"] * 2


def test_an_episode_and_its_steps_may_use_one_name(tmp_path):
    columns = {
        KEY: Spec(plain.TEXT, said("step")),
        f"episode/{KEY}": Spec(plain.TEXT, [[b"one"], [b"two"]], per="episode"),
    }
    dataset = dataset_of(tmp_path, columns, {"kind": "string", "key": KEY})
    assert {sample.instruction for sample in dataset[:]} == {"step"}
    whole = dataset.card.model_copy(update={"language": Language(key=f"episode/{KEY}")})
    again = open_dataset(dataset.frame_index, card=whole)
    assert [sample.instruction for sample in again[:]] == ["one"] * 3 + ["two"] * 2


def test_words_of_the_episode_alone_in_a_trajectory():
    made = Card.model_validate({**card(kind="string", key="told"), "name": "made"})
    found = standardise(made, {"action": np.zeros((3, 7), np.float32), "told": b"go"})
    assert found.language == ["go"] * 3


def test_text_in_another_encoding(tmp_path):
    latin = {KEY: Spec(plain.TEXT, [[b"ok"] * 3, [b"ok", b"pour caf\xe9"]])}
    dataset = dataset_of(tmp_path, latin, {"kind": "string", "key": KEY})
    assert dataset[0].instruction == "ok"
    with pytest.raises(DatasetError, match="made/1.0.0, episode 1: 'language_instruction' at step 1"
                       r" is not utf-8 text: byte 8 of .*encoding: latin-1"):  # fmt: skip
        dataset[4]
    with pytest.raises(DatasetError, match="episode 1"):
        inspect_dataset(tmp_path / "made" / "1.0.0")
    named = dataset.card.model_copy(update={"language": Language(encoding="latin-1")})
    assert open_dataset(dataset.frame_index, card=named)[4].instruction == "pour café"
    marked = dataset.card.model_copy(update={"language": Language(errors="replace")})
    assert open_dataset(dataset.frame_index, card=marked)[4].instruction == "pour caf\ufffd"


@pytest.mark.parametrize(
    ("language", "complaint"),
    [
        ({"encoding": "utf-9"}, "'utf-9' is no encoding of text"),
        ({"encoding": "hex"}, "'hex' is no encoding"),
        ({"key": ["a", "a"]}, "list of different ones"),
        ({"key": []}, "list of different ones"),
    ],
)
def test_what_a_card_cannot_say(language, complaint):
    with pytest.raises(ValueError, match=complaint):
        Language(**language)


def test_numbers_of_letters():
    kind = {"kind": "utf8_codepoints"}
    assert read(kind, np.array([[104, 233, 0, 7]], np.int32)).first == ["hé"]
    in_bytes = np.frombuffer("hé\0x".encode(), np.uint8)[None]
    assert read(kind, in_bytes).first == ["hé"]
    with pytest.raises(DatasetError, match="at step 0 is not utf-8 text"):
        read(kind, np.array([[104, 233]], np.uint8))
    with pytest.raises(DatasetError, match="step 5 holds float32"):
        read(kind, np.zeros((1, 3), np.float32), range(5, 6))


@pytest.mark.parametrize(
    ("spec", "kind", "complaint"),
    [
        (Spec(tensor(3, dtype="string"), said("a", "b", "c")), "string", "holds text of shape 3;.*"
         "several: drawn"),
        (Spec(sequence(plain.TEXT), said("a"), rows=[[1] * n for n in LENGTHS]), "string",
         r"holds text of shape \?"),
        (Spec(tensor(dtype="int64"), [[1] * n for n in LENGTHS]), "string", "holds one number"),
        (Spec(tensor(40, dtype="int32"), [[65] * 40 * n for n in LENGTHS]), "string",
         "write kind: utf8_codepoints"),
        (Spec(plain.TEXT, said("a")), "utf8_codepoints", "holds one text; write kind: string"),
        (Spec(plain.IMAGE, [[plain.picture(0)] * n for n in LENGTHS]), "string", "holds pictures"),
    ],
)  # fmt: skip
def test_a_kind_that_the_column_cannot_be(tmp_path, spec, kind, complaint):
    with pytest.raises(DatasetError, match=f"made/1.0.0.*{KEY}.*{complaint}"):
        dataset_of(tmp_path, {KEY: spec}, {"kind": kind, "key": KEY})


def test_what_is_no_text():
    with pytest.raises(DatasetError, match="at step 1 holds nan, a float and no text"):
        read({"kind": "string"}, ["a", float("nan")])
    assert read({"kind": "string"}, ["a", None]).first == ["a", ""]


def test_the_draft_finds_them(tmp_path):
    def drafted(name, columns):
        robot = plain.robot(LENGTHS)
        del robot[KEY]
        folder = plain.write(tmp_path / name, robot | columns, episodes=2)
        (folder / "card.yaml").unlink()
        return inspect_dataset(folder)

    three = [KEY, f"{KEY}_2", f"{KEY}_3"]
    seen = drafted("three", {key: Spec(plain.TEXT, said("a")) for key in three})
    assert seen.card.language == Language(key=tuple(three), several="first")
    assert "several: drawn" in seen.draft.to_yaml()
    seen = drafted("array", array("a", "b"))
    assert seen.card.language == Language(kind="string_array", key=KEY, several="first")
    told = {"episode_metadata.instruction": Spec(plain.TEXT, [[b"one"], [b"two"]], per="episode")}
    seen = drafted("episode", told)
    assert seen.card.language == Language(key="episode_metadata.instruction")
    assert seen.words == {"one": 1, "two": 1}
    assert "no column with words" in drafted("nothing", {}).draft.to_yaml()


@pytest.mark.parametrize("text", ["b'push it'", '["push it"]', '{"task": "push"}', "array(['a'])"])
def test_words_that_are_code_are_told(tmp_path, text):
    dataset = dataset_of(tmp_path, array(text, "x"), {"kind": "string_array", "key": KEY})
    seen = inspect_dataset(tmp_path / "made" / "1.0.0", card=dataset.card)
    (found,) = [one for one in seen.findings if one.rule == "words look like code"]
    assert "2 of 2 episodes (100 %)" in found.evidence


@pytest.mark.parametrize("several", ["array", "columns", "episode"])
def test_conversions_carry_the_words(tmp_path, several):
    """`task` says what the dataset said, there and back."""
    columns, language = {
        "array": (array("", "b", "c"), {"kind": "string_array", "key": KEY}),
        "columns": (
            {KEY: Spec(plain.TEXT, said("b")), "more": Spec(plain.TEXT, said("c"))},
            {"kind": "string", "key": [KEY, "more"], "several": "drawn"},
        ),
        "episode": (
            {"told": Spec(plain.TEXT, [[b"one"], [b"two"]], per="episode")},
            {"kind": "string", "key": "told"},
        ),
    }[several]
    dataset = dataset_of(tmp_path, columns, language)
    expected = [sample.instruction for sample in dataset[:]]
    source = tmp_path / "made" / "1.0.0"
    report = to_lerobot(dataset.frame_index, dataset.card, source / "card.yaml", tmp_path / "l")
    there = open_dataset(tmp_path / "l", card=None)
    assert [sample.instruction for sample in there[:]] == expected
    assert there[0].sentences == dataset[0].sentences
    assert (KEY in report.left_out) == (several == "array")
    kept = read_mapping(tmp_path / "l")
    words = Language(**kept.card["language"])
    carried = {entry.rlds for entry in kept.entries}
    assert set(words.keys) <= carried


def frames_of(dataset, seed):
    """What training reads, without its model."""
    return Frames(
        SimpleNamespace(
            datasets=[dataset], depth=None, augment=None,
            recipe=SimpleNamespace(seed=seed, data=SimpleNamespace(images="fast")),
            processor=SimpleNamespace(image_size=8),
        )
    )  # fmt: skip


def texts_of(dataset, seed, *, steps, workers=0):
    sampler = Sampler(seed, [1.0], [len(dataset)], batch=4)
    loader = DataLoader(
        frames_of(dataset, seed),
        batch_sampler=StepBatches(sampler, *steps),
        num_workers=workers,
        collate_fn=lambda samples: [(s.episode, s.step, s.instruction) for s in samples],
        multiprocessing_context="fork" if workers else None,
    )
    return [text for batch in loader for text in batch]


def test_the_draw_follows_seed_and_slot(tmp_path):
    language = {"kind": "string_array", "key": KEY, "several": "drawn"}
    dataset = dataset_of(tmp_path, array("a", "", "b", "c"), language)
    whole = texts_of(dataset, 1, steps=(0, 60))
    drawn = Counter(text for _, _, text in whole)
    assert set(drawn) == {"a", "b", "c"}  # and never the empty one
    assert min(drawn.values()) > 240 / 3 - 4 * np.sqrt(240 * 2 / 9)
    assert texts_of(dataset, 1, steps=(20, 60)) == whole[80:]  # resumed
    assert texts_of(dataset, 1, steps=(0, 10), workers=2) == whole[:40]
    assert [text for *_, text in texts_of(dataset, 2, steps=(0, 60))] != [t for *_, t in whole]
    at_one_place = {text for *place, text in whole if place == [0, 0]}
    assert len(at_one_place) > 1  # another one when the frame comes again


def test_without_a_draw_training_says_the_first(tmp_path):
    language = {"kind": "string_array", "key": KEY, "several": "first"}
    dataset = dataset_of(tmp_path, array("a", "b"), language)
    assert {text for *_, text in texts_of(dataset, 1, steps=(0, 5))} == {"a"}
