"""Checkpoints are whole or absent, are told when damaged, and are kept as the policy says."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatialvla_ft.files import DamagedError
from spatialvla_ft.training import checkpoints
from spatialvla_ft.training.checkpoints import Keep
from spatialvla_ft.training.states import put, take
from spatialvla_ft.training.trackers import forget_after


def parts(seed=0, size=3):
    torch.manual_seed(seed)
    model = torch.nn.Linear(size, 2)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([model.weight], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    return model, optimizer, scheduler


def advance(model, optimizer, scheduler):
    model(torch.ones(1, model.in_features)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()


def write(folder, step, *, seed=0, keep=None, **more):
    run = parts(seed)
    advance(*run)
    return checkpoints.save(folder, take(step, *run), keep=keep or Keep(last=9), **more)


def steps(folder):
    return [checkpoints.step_of(place) for place in checkpoints.all_checkpoints(folder)]


def test_saved_and_loaded(tmp_path):
    one = parts()
    advance(*one)
    checkpoints.save(tmp_path, take(1, *one), keep=Keep(), extra={"recipe": "r"}, validation=0.1)
    other = parts(seed=9)
    place, damaged = checkpoints.newest(tmp_path)
    state, content = checkpoints.load(place)
    put(state, *other)
    assert (state.step, content["recipe"], content["validation"], damaged) == (1, "r", 0.1, [])
    assert torch.equal(one[0].weight, other[0].weight)
    assert not torch.equal(one[0].bias, other[0].bias)  # frozen: it belongs to the base
    other[0].bias.copy_(one[0].bias)
    for run in (one, other):
        advance(*run)
    assert torch.equal(one[0].weight, other[0].weight)
    assert one[2].get_last_lr() == other[2].get_last_lr() == [0.025]


def test_the_optimiser_finds_its_parameters_by_name(tmp_path):
    """Two layers, the optimiser's groups in another order than when it was saved."""

    def two(order):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        model.requires_grad_(False)
        chosen = [model[i].weight.requires_grad_() for i in order]
        groups = [{"params": [p], "lr": 0.1 * (1 + i)} for p, i in zip(chosen, order, strict=True)]
        optimizer = torch.optim.AdamW(groups)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 9)

    def step(model, optimizer, _):
        model(torch.eye(3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    one, other = two([0, 1]), two([1, 0])
    step(*one)
    place = checkpoints.save(tmp_path, take(1, *one), keep=Keep())
    state, _ = checkpoints.load(place)
    assert set(state.optimizer["state"]) == {"0.weight", "1.weight"}
    put(state, *other)
    assert [group["lr"] for group in other[1].param_groups] == [0.2, 0.1]
    for run in (one, other):
        step(*run)
    for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_those_of_other_parameters_are_refused(tmp_path):
    state, _ = checkpoints.load(write(tmp_path, 1))
    with pytest.raises(ValueError, match=r"other trainable parameters.*weight"):
        put(state, *parts(size=4))
    run = parts()
    run[0].bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"other trainable parameters than this run.*bias"):
        put(state, *run)


def test_the_oldest_are_dropped(tmp_path):
    for step in (2, 4, 10, 100):
        write(tmp_path, step, keep=Keep(last=2))
    assert steps(tmp_path) == [10, 100]


def test_the_best_and_milestones_stay(tmp_path):
    for step, loss in enumerate([0.5, 0.2, 0.9, None, float("nan"), 0.3, 0.2, 0.4], start=1):
        write(tmp_path, step, keep=Keep(last=1, best=2, every=3), validation=loss)
    assert steps(tmp_path) == [2, 3, 6, 7, 8]
    assert checkpoints.step_of(checkpoints.best(tmp_path)) == 2


@given(
    losses=st.dictionaries(st.integers(1, 50), st.none() | st.floats(0, 9), min_size=1),
    last=st.integers(1, 4),
    best=st.integers(0, 3),
)
def test_the_policy(losses, last, best):
    stay = Keep(last, best).of(losses)
    assert max(losses) in stay
    assert stay <= set(losses)
    gone = set(losses) - stay
    assert all(sum(other > step for other in stay) >= last for step in gone)
    known = [step for step in gone if losses[step] is not None]
    better = [sum(losses[o] is not None and losses[o] <= losses[s] for o in stay) for s in known]
    assert all(count >= best for count in better)


def cut(file):
    file.write_bytes(file.read_bytes()[:-5])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["trainable.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [(cut, "were written"), (flip, "another content"), (lambda f: f.unlink(), "is missing")],
)
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, name, damage, words):
    write(tmp_path, 1)
    place = write(tmp_path, 2)
    damage(place / name)
    found, (error,) = checkpoints.newest(tmp_path)
    assert checkpoints.step_of(found) == 1
    assert str(place / name) in str(error)
    assert words in str(error)
    with pytest.raises(DamagedError, match=words):
        checkpoints.load(place)
    (aside,) = checkpoints.set_aside(tmp_path, 1)
    assert aside.name == "step-00000002.damaged"
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": {"state.json": {}}}'])
def test_a_manifest_that_is_none(tmp_path, text):
    (write(tmp_path, 3) / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match=r"none .* is sound: .*manifest.json is not what was"):
        checkpoints.newest(tmp_path)


def test_a_folder_copied_half_way_is_damaged(tmp_path):
    whole = write(tmp_path, 1)
    half = tmp_path / "step-00000002"
    half.mkdir()
    shutil.copy(whole / "state.json", half)
    found, (error,) = checkpoints.newest(tmp_path)
    assert found == whole
    assert "manifest.json is missing" in str(error)
    assert checkpoints.all_checkpoints(tmp_path / "nowhere") == []
    assert checkpoints.newest(tmp_path / "nowhere") == (None, [])


def test_a_folder_of_another_name_is_none(tmp_path):
    write(tmp_path, 1)
    for name in ("step-1", "step-00000002.damaged", ".step-00000003.writing", "best"):
        (tmp_path / name).mkdir()
    assert steps(tmp_path) == [1]


def test_later_lines_of_the_metrics_are_forgotten(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 10}) for step in (1, 2, 3, 4)]
    file.write_text("\n".join([*lines, '{"step": 5, "lo']) + "\n")
    forget_after(file, 3)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]
    forget_after(tmp_path / "absent.jsonl", 3)
    assert not (tmp_path / "absent.jsonl").exists()
