"""`bench video` at its smallest: every figure is there and consistent; no time is judged."""

import json

import pytest
from typer.testing import CliRunner

from spatialvla_ft.bench import video
from spatialvla_ft.cli.main import app


def test_it_reports_rate_cost_and_wait_of_every_combination(monkeypatch):
    monkeypatch.setattr(video, "SIZES", ((48, 64),))
    monkeypatch.setattr(video, "GOPS", (2,))
    monkeypatch.setattr(video, "WORKERS", (0, 1))
    monkeypatch.setattr(video, "BATCHES", {2: 1})
    monkeypatch.setattr(video, "EPISODES", 2)
    monkeypatch.setattr(video, "STEPS", 20)
    monkeypatch.setattr(video, "NEEDED", 1000)
    done = CliRunner().invoke(app, ["bench", "video", "--rounds", "1", "--json"])
    assert done.exit_code == 0, done.output
    (report,) = json.loads(done.stdout)["reports"]
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert set(figures) == {
        f"{codec} 64 x 48, key every 2, {workers} workers, {what}"
        for codec in ("av1", "h264")
        for workers in (0, 1)
        for what in ("rate", "cpu", "wait")
    } | {f"{codec} 64 x 48, key every 2, size" for codec in ("av1", "h264")}
    for name, figure in figures.items():
        assert figure["value"] >= 0
        if name.endswith("wait"):
            assert figure["value"] <= 100
    assert report["settings"]["frames"] == "16 times 40"


def test_the_files_have_the_key_frames_that_are_said(tmp_path):
    import av

    frames = list(video._scene(48, 64, 1000))
    assert len({frame.tobytes() for frame in frames[:20]}) == 20
    for codec, gop in (("h264", 5), ("av1", 2)):
        folder = video._write(tmp_path, frames, codec, gop)
        (path,) = folder.rglob("*.mp4")
        with av.open(str(path)) as container:
            keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
        assert [i for i, key in enumerate(keys) if key] == list(range(0, 1000, gop))


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_it_says_so(monkeypatch, platform):
    monkeypatch.setattr(video.sys, "platform", platform)
    with pytest.raises(ValueError, match="bench video reads /proc"):
        video.bench_video(rounds=1)
