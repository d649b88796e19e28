"""Checkpoints are whole or absent, and belong to one run."""

from __future__ import annotations

import json

import pytest
import torch

from spatialvla_ft.training import checkpoints
from spatialvla_ft.training.trackers import forget_after


def parts(seed=0, size=3):
    torch.manual_seed(seed)
    model = torch.nn.Linear(size, 2)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([model.weight], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    return model, optimizer, scheduler


def advance(model, optimizer, scheduler):
    model(torch.ones(1, model.in_features)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()


def test_saved_and_loaded(tmp_path):
    one = parts()
    advance(*one)
    checkpoints.save(tmp_path, 1, *one, keep_last=2, extra={"recipe": "r"})
    other = parts(seed=9)
    (place,) = checkpoints.all_checkpoints(tmp_path)
    assert checkpoints.load(place, *other, expected={"recipe": "r"}) == 1
    assert torch.equal(one[0].weight, other[0].weight)
    assert not torch.equal(one[0].bias, other[0].bias)  # frozen: it belongs to the base
    other[0].bias.copy_(one[0].bias)
    for run in (one, other):
        advance(*run)
    assert torch.equal(one[0].weight, other[0].weight)
    assert one[2].get_last_lr() == other[2].get_last_lr() == [0.025]


def test_the_oldest_are_dropped(tmp_path):
    run = parts()
    for step in (2, 4, 10, 100):
        checkpoints.save(tmp_path, step, *run, keep_last=2)
    assert [checkpoints.step_of(p) for p in checkpoints.all_checkpoints(tmp_path)] == [10, 100]


@pytest.mark.parametrize("broken", ["save_file", "torch.save"])
def test_a_full_disk_leaves_earlier_checkpoints_alone(tmp_path, monkeypatch, broken):
    run = parts()
    checkpoints.save(tmp_path, 1, *run, keep_last=1)

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(f"spatialvla_ft.training.checkpoints.{broken}", full)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(tmp_path, 2, *run, keep_last=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_half_written_one_is_not_seen(tmp_path):
    checkpoints.save(tmp_path, 1, *parts(), keep_last=3)
    (tmp_path / "step-00000002").mkdir()
    assert [checkpoints.step_of(p) for p in checkpoints.all_checkpoints(tmp_path)] == [1]
    assert checkpoints.all_checkpoints(tmp_path / "nowhere") == []


def test_those_of_another_run_are_refused(tmp_path):
    run = parts()
    place = checkpoints.save(tmp_path, 1, *run, keep_last=1, extra={"recipe": "aa"})
    with pytest.raises(ValueError, match="written with recipe 'aa', this run has 'bb'"):
        checkpoints.load(place, *run, expected={"recipe": "bb"})
    run[0].bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"other trainable parameters than this run.*bias"):
        checkpoints.load(place, *run)


def test_later_lines_of_the_metrics_are_forgotten(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 10}) for step in (1, 2, 3, 4)]
    file.write_text("\n".join([*lines, '{"step": 5, "lo']) + "\n")
    forget_after(file, 3)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]
    forget_after(tmp_path / "absent.jsonl", 3)
    assert not (tmp_path / "absent.jsonl").exists()
