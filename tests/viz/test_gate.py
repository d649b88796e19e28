import json

import pytest
from run_folder import SOLVED, result, write_json, write_run

from spatialvla_ft.viz.gate import judge
from spatialvla_ft.viz.run_files import patch_layout, read_run


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run")


def verdict(run_dir, **changed):
    for name, content in changed.items():
        write_json(run_dir / "eval" / f"{name}.json", [content])
    return judge(read_run(run_dir).outcomes)


def test_passes(run_dir):
    gate = verdict(run_dir)
    assert gate.passed
    assert gate.reasons == ()


@pytest.mark.parametrize("solved", [24, 25])
def test_half_of_the_episodes(run_dir, solved):
    others = {name: result(name, 0) for name in SOLVED if name != "adapted"}
    gate = verdict(run_dir, adapted=result("adapted", solved), **others)
    assert gate.passed == (solved == 25)
    assert gate.passed or gate.reasons == ("the adapted policy solved 24 of 50",)


# Wilson 95 % of 37/50 begins at 60.45 %; of 22/50 ends at 57.71 %, of 24/50 at 61.50 %
# (statsmodels.stats.proportion.proportion_confint(k, 50, method="wilson")).
@pytest.mark.parametrize(("baseline", "passes"), [(22, True), (24, False)])
def test_intervals_must_not_overlap(run_dir, baseline, passes):
    gate = verdict(run_dir, scratch=result("scratch", baseline))
    assert gate.passed == passes
    if not passes:
        assert len(gate.reasons) == 1
        assert "From scratch" in gate.reasons[0]
        assert "60.4%" in gate.reasons[0] or "60.5%" in gate.reasons[0]


def test_the_base_on_its_own_robot_is_no_baseline(run_dir):
    assert verdict(run_dir, base_on_a=result("base_on_a", 50)).passed


@pytest.mark.parametrize("gone", ["adapted", "no_motion", "mean_action", "unadapted", "scratch"])
def test_nothing_is_shown_about_what_is_missing(run_dir, gone):
    (run_dir / "eval" / f"{gone}.json").unlink()
    gate = verdict(run_dir)
    assert not gate.passed
    assert f"eval/{gone}.json" in gate.reasons[0]


@pytest.mark.parametrize("change", [{"robot": "robot_a"}, {"settings": {"distractors": 1}}])
def test_other_conditions_do_not_count(run_dir, change):
    gate = verdict(run_dir, unadapted=result("unadapted", 3, **change))
    assert not gate.passed
    assert "other conditions" in gate.reasons[0]


def test_counts_that_contradict_the_episodes(run_dir):
    content = result("adapted", 37) | {"successes": 38}
    with pytest.raises(ValueError, match=r"adapted\.json: it says 38 of 50 .* lists 37 of 50"):
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
