"""Two cameras, a window of two steps and proprioception: trained, saved, loaded, evaluated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spatialvla_ft.data.opening import open_dataset
from spatialvla_ft.evaluation.open_loop import run_open_loop
from spatialvla_ft.models.observation import ObservationLayout
from spatialvla_ft.policy.load import load_policy_model
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train

MORE = ["data.cameras=[primary, wrist]", "data.window=2", "data.proprio=true"]
LAYOUT = ObservationLayout(("primary", "wrist"), 2, 8)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_trained_saved_and_evaluated(recipe_of, demo_data, kind):
    recipe = recipe_of(kind, overrides=[*MORE, "model.overrides.use_vision_zoe=false",
                                        "data.depth=estimate"])  # fmt: skip
    run = build(recipe)
    assert run.processor.layout == LAYOUT
    assert run.overrides["num_cameras"] == 2
    statistics = run.processor.statistics[run.datasets[0].name]["proprio"]
    values = run.datasets[0].proprio()
    np.testing.assert_allclose(statistics["q99"], np.quantile(values, 0.99, axis=0), rtol=1e-6)
    before = run.spatialvla.observation_tokens.proprio_projector[0].weight
    before = None if kind == "lora" else before.detach().clone()
    train(run)
    model, processor = load_policy_model(recipe.output / "final")
    assert processor.layout == LAYOUT
    tokens = model.observation_tokens
    assert tokens.view_embedding.abs().sum() > 0  # it was zero before training
    if before is not None:
        assert not torch.equal(tokens.proprio_projector[0].weight, before)
    data = open_dataset(
        demo_data, card=None, horizon=processor.action_chunk_size, window=LAYOUT.window
    )
    assert run_open_loop(model, processor, data, frames=4).frames == 4


def test_history_is_the_steps_before(demo_data):
    plain = open_dataset(demo_data, card=None)
    windowed = open_dataset(demo_data, card=None, window=3)
    for frame in (0, 1, 2, 5):
        sample = windowed[frame]
        assert len(sample.history) == 2
        for back, past in zip((2, 1), sample.history, strict=True):
            wanted = plain[frame - min(back, sample.step)]
            for camera, image in wanted.images.items():
                np.testing.assert_array_equal(past.images[camera], image)
            np.testing.assert_array_equal(past.proprio, wanted.proprio)
            np.testing.assert_array_equal(past.extrinsics["primary"], wanted.extrinsics["primary"])


def test_a_window_must_be_opened(recipe_of, demo_data):
    run = build(recipe_of("full", overrides=["data.window=2"]))
    short = open_dataset(demo_data, card=None, horizon=2)
    with pytest.raises(ValueError, match=r"comes with 1 step\(s\), the model sees 2: open the"):
        run.collate([short[0]])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.cameras=[primary, left]"], r"its card has no camera \['left'\]; it has"),
        (["data.cameras=[]"], "data.cameras"),
        (["data.camera=primary"], "unknown key data.camera, did you mean cameras"),
        (["data.window=0"], "data.window"),
    ],
)
def test_what_cannot_be_seen(recipe_of, overrides, message):
    with pytest.raises(ValueError, match=message):
        build(recipe_of("full", overrides=overrides))
