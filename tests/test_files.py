"""A file that appears whole or not at all."""

import threading

import pytest

from spatialvla_ft.files import clean, whole_file


def test_the_old_content_stays_until_the_new_one_is_whole(tmp_path):
    place = tmp_path / "a.bin"
    place.write_bytes(b"old")
    with whole_file(place) as scratch:
        scratch.write_bytes(b"ne")
        assert place.read_bytes() == b"old"
        scratch.write_bytes(b"new")
    assert place.read_bytes() == b"new"
    assert [found.name for found in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, error):
    place = tmp_path / "a.bin"
    place.write_bytes(b"old")

    def fail():
        with whole_file(place) as scratch:
            scratch.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert place.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.bin"]


def test_writers_do_not_meet_in_the_scratch_file(tmp_path):
    place = tmp_path / "a.bin"
    both = threading.Barrier(2)

    def write(content):
        with whole_file(place) as scratch:
            scratch.write_bytes(content)
            both.wait(timeout=10)
            assert scratch.read_bytes() == content

    writers = [threading.Thread(target=write, args=(content,)) for content in (b"one", b"other")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert place.read_bytes() in (b"one", b"other")
    assert [found.name for found in tmp_path.iterdir()] == ["a.bin"]


def test_what_a_killed_process_left_is_cleaned_up(tmp_path):
    block = whole_file(tmp_path / "a.bin")
    scratch = block.__enter__()
    scratch.write_bytes(b"half")
    assert clean(tmp_path) == [scratch]
    assert not list(tmp_path.iterdir())
