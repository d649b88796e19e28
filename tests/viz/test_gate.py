import json

import pytest
from run_folder import SOLVED, result, write_json, write_run

from spatialvla_ft.quickstart.run_files import judge, patch_layout, read_run


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run")


def verdict(run_dir, **changed):
    for name, content in changed.items():
        write_json(run_dir / "eval" / f"{name}.json", [content])
    return judge(read_run(run_dir).outcomes)


def plain(text):
    return text.replace("\u00a0", " ")


def test_passes(run_dir):
    found = verdict(run_dir)
    assert found.passed
    assert found.reasons == ()
    assert len(found.sentences) == 1 + len(found.conditions) == 8
    headline, first, *_ = map(plain, found.sentences)
    assert headline == "Gate passed: all 7 conditions, fixed beforehand, hold."
    assert first == (
        "Holds: the adapted policy solves at least 85 %; it solved 48 of 50 (96 %, 95 % interval "
        "87 % to 99 %)."
    )


def solving(run_dir, name, solved, episodes=100):
    """The verdict where one policy solved so many, and the rest is beyond doubt."""
    others = {n: result(n, 0, episodes, swap=None) for n in SOLVED if n != "adapted"}
    adapted = result("adapted", episodes, episodes, swap=None)
    return verdict(
        run_dir, **{"adapted": adapted, **others, name: result(name, solved, episodes, swap=None)}
    )


@pytest.mark.parametrize("solved", [84, 85])
def test_most_episodes_must_be_solved(run_dir, solved):
    found = solving(run_dir, "adapted", solved)
    assert found.passed == (solved == 85)
    assert [c.holds for c in found.conditions] == [solved == 85] + [True] * 6
    if solved == 84:
        headline, first, *_ = map(plain, found.sentences)
        assert headline == "Gate NOT passed: 1 of 7 conditions, fixed beforehand, failed."
        assert first.startswith("DOES NOT HOLD: the adapted policy solves at least 85 %; it solved")
        assert "84 of 100" in found.reasons[0]


# scipy.stats.binomtest(k, 100).proportion_ci(method="wilson"): of k = 100 it begins at 96.30 %, of
# 62 it ends at 70.90 %, of 63 at 71.82 %.
@pytest.mark.parametrize(("baseline", "passes"), [(62, True), (63, False)])
def test_intervals_must_lie_apart(run_dir, baseline, passes):
    found = solving(run_dir, "scratch", baseline)
    assert found.passed == passes
    if not passes:
        (reason,) = map(plain, found.reasons)
        assert reason == (
            "its interval begins at least 25 points above the end of that of “From scratch on B”; "
            "96 % is 24 points above 72 % (63 of 100)"
        )


def test_a_baseline_that_is_better(run_dir):
    (reason,) = map(plain, solving(run_dir, "mean_action", 100).reasons)
    assert "96 % is 4 points BELOW 100 % (100 of 100)" in reason


@pytest.mark.parametrize("solved", [20, 21])
def test_there_must_be_something_to_adapt(run_dir, solved):
    found = solving(run_dir, "unadapted", solved)
    assert found.passed == (solved == 20)
    if solved == 21:
        assert "solves at most 20 % without adaptation" in plain(found.reasons[0])
        assert "21 of 100" in found.reasons[0]


@pytest.mark.parametrize("wrong", [5, 6])
def test_wrong_blocks(run_dir, wrong):
    adapted = result("adapted", 90, 100, wrong, swap=None)
    others = {n: result(n, 0, 100) for n in SOLVED if n != "adapted"}
    found = verdict(run_dir, adapted=adapted, **others)
    assert found.passed == (wrong == 5)
    if wrong == 6:
        assert plain(found.reasons[0]).startswith("it ends at a wrong block in at most 5 %; it did")
        assert "6 of 100" in found.reasons[0]


@pytest.mark.parametrize("name", ["base_on_a", "exported", "no_ego3d"])
def test_others_are_no_baselines(run_dir, name):
    assert verdict(run_dir, **{name: result(name, 50)}).passed


@pytest.mark.parametrize("gone", ["adapted", "no_motion", "mean_action", "unadapted", "scratch"])
def test_nothing_is_shown_about_what_is_missing(run_dir, gone):
    (run_dir / "eval" / f"{gone}.json").unlink()
    found = verdict(run_dir)
    assert not found.passed
    assert all(f"not evaluated (eval/{gone}.json)" in reason for reason in found.reasons)


@pytest.mark.parametrize("change", [{"robot": "robot_a"}, {"settings": {"distractors": [1]}}])
def test_other_conditions_do_not_count(run_dir, change):
    found = verdict(run_dir, unadapted=result("unadapted", 3, **change))
    assert len(found.reasons) == 2
    assert all("other conditions" in reason for reason in found.reasons)


def test_counts_that_contradict_the_episodes(run_dir):
    content = result("adapted", 48) | {"successes": 49}
    with pytest.raises(ValueError, match=r"adapted\.json: it says 49 of 50 .* lists 48 of 50"):
        verdict(run_dir, adapted=content)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("eval/adapted.json", "[{", "no valid JSON"),
        ("eval/adapted.json", "{}", "list of closed-loop results"),
        ("eval/adapted.json", "[{}]", "no closed-loop result"),
        ("open_loop/adapted.json", "[]", "one JSON object"),
        ("base/metrics.jsonl", '{"step": 1}\n{"st', r"metrics\.jsonl:2"),
        ("timings.json", '[{"stage": "x"}]', "stage, seconds, command"),
    ],
)
def test_damaged_files_are_named(run_dir, name, text, match):
    (run_dir / name).write_text(text)
    with pytest.raises(ValueError, match=match):
        read_run(run_dir)


def test_no_run(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds none of .*eval/adapted\.json"):
        read_run(tmp_path)


def test_patch_layout(run_dir):
    assert patch_layout(read_run(run_dir).config) == (32, 8, 2)
    assert patch_layout(None) == (64, 16, 2)
    assert json.loads((run_dir / "export/config.json").read_text())["ego3d_patch_reso"] == 2
