"""Samples to batches: units, camera, depth, and names in every error."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_world import NAME, MadeUp, statistics, tiny_processor

from spatialvla_ft.models.observation import ObservationLayout
from spatialvla_ft.policy.inputs import Collator, model_depth_input, takes_depth


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(bins=(16, 24, 12, 20, 20, 20, 2))


@pytest.fixture(scope="module")
def samples():
    return MadeUp()[:3]


def test_a_batch_of_training(processor, samples):
    batch = Collator(processor, "sensor")(samples)
    assert set(batch) == {
        "input_ids", "attention_mask", "token_type_ids", "labels", "pixel_values", "intrinsics",
        "depth",
    }  # fmt: skip
    low, high = (np.array(statistics()["action"][name]) for name in ("q01", "q99"))
    for i, sample in enumerate(samples):
        labels = batch["labels"][i]
        ids = labels[labels != -100][:-1].numpy()
        got = processor.decode_actions(ids)["normalised"][0]
        wanted = 2 * (sample.actions - low) / (high - low) - 1
        wanted[:, 6] = sample.actions[:, 6]
        assert np.abs(got - wanted)[:, 3:6].max() <= 1.01 / 20  # half a bin of the rotation
        assert np.abs(got - wanted)[:, :3].max() < 0.5
        np.testing.assert_array_equal(got[:, 6], wanted[:, 6])
        K = np.diag([32 / 64, 32 / 40, 1]) @ sample.intrinsics["primary"]
        np.testing.assert_allclose(batch["intrinsics"][i], K, rtol=1e-6)


def test_prompts_and_estimated_depth(processor, samples):
    batch = Collator(processor, "estimate", with_actions=False)(samples)
    assert "labels" not in batch
    assert "depth" not in batch
    assert bool(batch["attention_mask"][:, -1].all())


def test_the_chosen_camera_is_used(processor, samples):
    both = [
        dataclasses.replace(
            s,
            images={**s.images, "wrist": 255 - s.images["primary"]},
            intrinsics={**s.intrinsics, "wrist": np.diag([9.0, 8, 1])},
        )
        for s in samples
    ]
    looking_down = copy.copy(processor)
    looking_down.layout = ObservationLayout(("wrist",))
    wrist = Collator(looking_down, "estimate")(both)
    primary = Collator(processor, "estimate")(both)
    total = wrist["pixel_values"] + primary["pixel_values"]
    torch.testing.assert_close(total.mean(), torch.tensor(1.0), rtol=0, atol=0.02)
    assert wrist["intrinsics"][0, 0, 0] == 9 * 32 / 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {}}, r"episode 0, step 1 has no images of camera 'primary' \(it has \[\]\)"),
        ({"depth": None}, "has no depth of camera .* set data.depth: estimate"),
        ({"intrinsics": {}}, "has no intrinsics of camera .* into the dataset's card"),
    ],
)
def test_what_a_sample_lacks_is_named(processor, samples, change, message):
    broken = [samples[0], dataclasses.replace(samples[1], **change)]
    with pytest.raises(ValueError, match=f"{NAME}.*{message}"):
        Collator(processor, "sensor")(broken)


@pytest.mark.parametrize(
    ("ego3d", "zoe", "wanted"),
    [(True, None, "sensor"), (True, {}, "estimate"), (False, None, "estimate"),
     (False, {}, "estimate")],
)  # fmt: skip
def test_depth_is_an_input_only_where_it_is_used_and_not_estimated(ego3d, zoe, wanted):
    config = SimpleNamespace(use_vision_zoe=ego3d, vision_zoe_config=zoe)
    assert model_depth_input(config) == wanted
    assert takes_depth(config) == (wanted == "sensor")
