"""Episodes that move: which are chosen, and what the film of them shows."""

from __future__ import annotations

import numpy as np
import pytest
from page_text import decoded
from run_folder import SETTINGS, result, write_json, write_run

from spatialvla_ft.quickstart.replay import (
    HOLD_MILLISECONDS,
    SOLVED,
    UNSOLVED,
    Episode,
    Panel,
    Replay,
    replay_episodes,
    side_by_side,
)
from spatialvla_ft.quickstart.run_files import read_run
from spatialvla_ft.quickstart.scenes import choose
from spatialvla_ft.viz.embed import Film, film_uri

STEP = [[0.0] * 7]


def kept(*seeds):
    return {str(seed): STEP for seed in seeds}


def chosen(folder, adapted, unadapted):
    """Names and seeds of what is shown of these results."""
    write_json(folder / "eval/adapted.json", [adapted])
    write_json(folder / "eval/unadapted.json", [unadapted])
    choice = choose(read_run(folder))
    return {name: e.seed for name, e in choice.episodes.items()}, choice


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run")


# Seeds 1000, 1005, ... have one block. The adapted one solves 1002 to 1049, the base 1047 to 1049.
def test_the_pair_tells_the_story(run_dir):
    adapted = result("adapted", 48, traces=kept(1000, 1005, 1048, 1012, 1003), swap=None)
    base = result("unadapted", 3, traces=kept(1000, 1005, 1048, 1012, 1009))
    found, choice = chosen(run_dir, adapted, base)
    assert found == {"adapted": 1012, "unadapted": 1012, "failure": 1000}
    assert choice.words["pair"] == (
        "Of the 4 scenes whose motions were kept, the adapted policy solved 3 and the base 1. This "
        "is the first with more than one block that only the adapted policy solved."
    )


def test_a_scene_with_one_block_if_there_is_no_other(run_dir):
    traces = kept(1000, 1005, 1048)
    adapted = result("adapted", 48, traces=traces, swap=None)
    found, choice = chosen(run_dir, adapted, result("unadapted", 3, traces=traces))
    assert found["adapted"] == 1005
    assert choice.words["pair"].endswith("This is the first that only the adapted policy solved.")


def test_where_the_story_is_not_true_it_is_not_told(run_dir):
    traces = kept(1001, 1048)
    adapted = result("adapted", 48, traces=traces, swap=None)
    found, choice = chosen(run_dir, adapted, result("unadapted", 3, traces=traces))
    assert found == {"adapted": 1001, "unadapted": 1001}
    assert choice.words["pair"].startswith("None of the 2 scenes")


def test_other_conditions_are_no_pair(run_dir):
    traces = kept(1003, 1001)
    other = dict(SETTINGS, camera_mode="fixed")
    adapted = result("adapted", 48, traces=traces, swap=None)
    base = result("unadapted", 3, traces=traces, settings=other)
    found, _ = chosen(run_dir, adapted, base)
    assert found == {"adapted": 1003, "failure": 1001}


def test_the_swap_shows_a_followed_scene(run_dir):
    adapted = result("adapted", 48, traces=kept(1001, 1003, 1004))
    adapted["swap"]["traces"] = kept(1001, 1004, 1009)
    found, choice = chosen(run_dir, adapted, result("unadapted", 3, traces={}))
    assert (found["told"], found["retold"]) == (1004, 1004)
    assert not choice.told.swapped
    assert choice.retold.swapped
    assert choice.words["swap"] == (
        "Of the 2 such scenes whose motions were kept, both words were followed in 1; this is the "
        "first of those."
    )


def test_a_replay_is_the_scene_with_the_other_word(run_dir):
    (outcome,) = read_run(run_dir).outcomes["adapted"]
    own, other = replay_episodes([Episode(outcome, 1001), Episode(outcome, 1001, True)], size=48)
    assert own.instruction != other.instruction
    assert len(own.frames) == len(other.frames) == 81
    assert (own.ending, own.as_recorded) == ("not solved in 8 s", True)
    np.testing.assert_array_equal(own.depth, other.depth)
    # The blocks keep places and colours; only a physics engine's order differs.
    assert np.abs(own.frames.astype(int) - other.frames).mean() < 0.5


def replay(level, length, *, success=False, wrong=False, hz=5.0):
    frames = np.full((length, 96, 96, 3), level, np.uint8)
    frames[:, :, :, 1] = np.arange(length)[:, None, None]
    nothing = np.zeros((2, 2))
    return Replay(7, "go", success, wrong, True, frames, nothing, nothing, np.eye(3), hz)


def test_episodes_run_in_step_and_the_shorter_one_waits():
    short, long = replay(40, 3, success=True), replay(200, 6, wrong=True)
    film = side_by_side([Panel("left", short), Panel("right", long)])
    assert film.milliseconds == (200,) * 5 + (HOLD_MILLISECONDS,)
    assert film.frames.shape[0] == 6
    head, middle = film.frames.shape[1] - 96, film.frames.shape[2] // 2
    left, right = film.frames[:, head + 30, 48], film.frames[:, head + 30, middle + 52]
    assert left[:, 0].tolist() == [40] * 6
    assert left[:, 1].tolist() == [0, 1, 2, 2, 2, 2]
    assert right[:, 1].tolist() == [0, 1, 2, 3, 4, 5]
    edge = film.frames[:, head + 30, 0]
    assert [tuple(pixel) == SOLVED for pixel in edge.tolist()] == [False] * 2 + [True] * 4
    assert tuple(film.frames[-1, head + 30, -1].tolist()) == UNSOLVED
    assert (short.ending, long.ending) == ("solved after 0.4 s", "wrong block after 1.0 s")


def test_the_animation_has_every_frame_at_the_right_speed():
    frames = np.zeros((5, 64, 48, 3), np.uint8)
    frames[:, :, :, 1] = np.arange(0, 250, 50)[:, None, None]
    shown = decoded(film_uri(Film(frames, (250, 250, 130, 250, 900))))
    assert (shown.n_frames, shown.size) == (5, (48, 64))
    durations = []
    for i in range(5):
        shown.seek(i)
        shown.load()
        durations.append(shown.info["duration"])
        assert abs(int(np.asarray(shown.convert("RGB"))[40, 24, 1]) - 50 * i) < 12
    assert durations == [250, 250, 130, 250, 900]
