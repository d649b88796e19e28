"""Errors on recorded steps, counted again by loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_world import NAME, MadeUp, statistics, tiny_model, tiny_processor

from spatialvla_ft.evaluation.open_loop import run_open_loop


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def model(processor):
    return tiny_model(processor)


def test_numbers_against_a_loop(processor, model):
    data = MadeUp(count=7)
    told = []
    result = run_open_loop(model, processor, data, batch_size=3, on_frames=told.append)
    assert told == [3, 6, 7]
    assert result.frames == 7
    assert result.dataset == NAME
    assert result.names[-1] == "gripper"
    stats = statistics()["action"]
    low, high, mean = (np.array(stats[name]) for name in ("q01", "q99", "mean"))
    errors = {"model": [], "no motion": [], "mean action": []}
    hits = []
    for sample in data:
        inputs = processor(
            sample.images["primary"],
            sample.instruction,
            intrinsic=sample.intrinsics["primary"],
            depth=sample.depth["primary"],
        )
        ids = model.predict_action(inputs).reshape(-1, 3).numpy()
        guess = processor.decode_actions(ids.ravel())["actions"][0]
        for k in range(2):
            if not sample.valid[k]:
                continue
            true = sample.actions[k]
            unit = np.append(np.clip(2 * (true - low) / (high - low) - 1, -1, 1)[:6], true[6])
            hits.append(ids[k] == processor.action_tokenizer.encode(unit[None])[0])
            still = np.append(np.zeros(6), round(mean[6]))
            for name, value in (("model", guess[k]), ("no motion", still), ("mean action", mean)):
                errors[name].append(np.abs(value - true))
    assert len(hits) == 7 + 6  # the last step has no second action
    for name, values in errors.items():
        np.testing.assert_allclose(result.l1[name], np.mean(values, axis=0), atol=1e-6)
    wanted = dict(zip(("translation", "rotation", "gripper"), np.mean(hits, axis=0), strict=True))
    assert result.token_accuracy == pytest.approx(wanted)


def test_a_model_that_knows_the_answer(processor, model, monkeypatch):
    """All tokens right; what is left is the width of the bins."""
    data = MadeUp(count=5)
    low, high = (np.array(statistics()["action"][name]) for name in ("q01", "q99"))
    truth = iter(data)

    def knowing(inputs):
        rows = []
        for _ in range(len(inputs["input_ids"])):
            actions = next(truth).actions
            unit = np.clip(2 * (actions - low) / (high - low) - 1, -1, 1)
            unit[:, 6] = actions[:, 6]
            rows.append(processor.action_tokenizer.encode(unit).ravel())
        return torch.as_tensor(np.stack(rows))

    monkeypatch.setattr(model, "predict_action", knowing)
    result = run_open_loop(model, processor, data)
    assert set(result.token_accuracy.values()) == {1.0}
    bins = np.array([5, 4, 3])
    assert (np.array(result.l1["model"][3:6]) <= (high - low)[3:6] / bins / 2 + 1e-6).all()
    assert result.l1["model"][6] == 0


def test_few_frames_are_spread_over_the_dataset(processor, model, monkeypatch):
    data = MadeUp(count=7)
    asked = []
    monkeypatch.setattr(
        MadeUp, "__getitem__", lambda self, i: asked.append(i) or list.__getitem__(self, i)
    )
    assert run_open_loop(model, processor, data, frames=3).frames == 3
    assert asked == [0, 3, 6]


def test_unknown_statistics_are_an_error(processor, model):
    with pytest.raises(ValueError, match=r"unnorm_key 'x' is unknown: .*made_up/1.0.0"):
        run_open_loop(model, processor, MadeUp(count=2), unnorm_key="x")
