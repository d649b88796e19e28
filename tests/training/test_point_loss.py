"""Where one head is told to look: places, attention, loss, and that nothing else changes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_distributed import EXACT, PROBE, launch, same_course, yaml_of

from spatialvla_ft.actions.spaces import end_effector_delta
from spatialvla_ft.data.pictures import Region, fit_step
from spatialvla_ft.data.sample import Sample
from spatialvla_ft.models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from spatialvla_ft.models.observation import ObservationLayout
from spatialvla_ft.models.processing_spatialvla import SpatialVLAProcessor
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.point_loss import (
    PatchGrid,
    PointWatch,
    check_points,
    point_fields,
    without_points,
)
from spatialvla_ft.training.recipe import PointLoss, RecipeError

GOLDEN = Path(__file__).parents[1] / "golden"
K = np.array([[40.0, 0, 30.0], [0, 44.0, 22.0], [0, 0, 1]])


def pose(seed):
    """A camera that looks roughly along the base's z, and its inverse by NumPy."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)) * 0.1 + np.eye(3))
    turn *= np.sign(np.diag(turn))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, [0.1, -0.2, 0.05]
    return matrix


@pytest.fixture
def sample():
    return Sample(
        images={"primary": np.zeros((48, 64, 3), np.uint8)},
        intrinsics={"primary": K},
        extrinsics={"primary": pose(1)},
        instruction="touch the red block",
        actions=np.zeros((1, 7), np.float32),
        action_space=end_effector_delta(5.0),
        valid=np.ones(1, bool),
        dataset="d/1",
        episode=2,
        step=5,
        target_point=np.array([0.2, -0.1, 1.3], np.float32),
    )


def where(sample, K, size):
    """Pixel of the point in the square picture, by homogeneous coordinates in NumPy."""
    camera = np.linalg.inv(sample.extrinsics["primary"]) @ [*sample.target_point, 1.0]
    u, v, w = K @ camera[:3]
    return np.array([u, v]) / w


def centre_of(weights, side, patch):
    """Where the weights balance, in pixels."""
    table = weights.view(side, side).double().numpy()
    ticks = (np.arange(side) + 0.5) * patch
    return np.array([table.sum(0) @ ticks, table.sum(1) @ ticks]) / table.sum()


@pytest.mark.parametrize("region", [Region(), Region(0.2, 0.1, 0.7, 0.8)])
def test_weights_balance_at_the_point_and_follow_a_crop(sample, region):
    square = fit_step(sample, 32, "fast", {"primary": region})
    matrix = square.intrinsics["primary"]
    grid = PatchGrid(32, 4, ObservationLayout())
    weights = grid.weights([square], torch.as_tensor(matrix)[None, None].float(), "target_point")
    uv = where(square, matrix, 32)
    assert (uv > 2).all()
    assert (uv < 30).all()
    np.testing.assert_allclose(centre_of(weights[0], 8, 4), uv, atol=1e-3)
    assert float(weights.sum()) == pytest.approx(1)
    assert 1 < int((weights > 0).sum()) <= 4
    # The same scene point lands elsewhere in the crop.
    if region != Region():
        whole = fit_step(sample, 32, "fast").intrinsics["primary"]
        assert np.abs(uv - where(sample, whole, 32)).max() > 2


def test_a_point_outside_or_behind_or_unknown_weighs_nothing(sample):
    grid = PatchGrid(32, 4, ObservationLayout())
    matrix = torch.as_tensor(K)[None, None].float()
    for point in ([5.0, 0, 1.3], [0, 0, -1.0], None):
        point = None if point is None else np.array(point, np.float32)
        other = dataclasses.replace(sample, target_point=point)
        assert float(grid.weights([other], matrix, "target_point").abs().sum()) == 0


def test_only_the_present_step_is_looked_at_and_views_share(sample):
    """Two cameras, two steps, proprioception: tokens are [C0 C1 p] of the past, then of now."""
    layout = ObservationLayout(("primary", "wrist"), 2, 7)
    both = dataclasses.replace(
        sample, extrinsics={"primary": pose(1), "wrist": pose(2)}, history=(sample,)
    )
    grid = PatchGrid(64, 16, layout)
    assert grid.tokens == 2 * (2 * 16 + 1)
    weights = grid.weights([both], torch.as_tensor(K).float().expand(1, 4, 3, 3), "target_point")[0]
    past, now = weights[:33], weights[33:]
    assert float(past.sum()) == 0
    assert float(now[:16].sum()) == pytest.approx(0.5)
    assert float(now[16:32].sum()) == pytest.approx(0.5)
    assert float(now[32]) == 0


def test_a_point_without_a_camera_pose_is_refused_by_place(sample):
    blind = dataclasses.replace(sample, extrinsics={})
    grid = PatchGrid(32, 4, ObservationLayout())
    with pytest.raises(ValueError, match=r"d/1, episode 2, step 5.*extrinsics"):
        grid.weights([blind], torch.as_tensor(K)[None, None].float(), "target_point")


@pytest.fixture(scope="module")
def golden():
    model = SpatialVLAForConditionalGeneration.from_pretrained(
        GOLDEN / "checkpoint", dtype=torch.float32
    ).eval()
    return model, SpatialVLAProcessor.from_pretrained(GOLDEN / "checkpoint")


def training_batch(processor):
    """Two prompts of unequal length, padded on the right, with actions."""
    rng = np.random.default_rng(3)
    side = processor.image_size
    pictures = [rng.integers(0, 255, (side, side, 3), dtype=np.uint8) for _ in range(2)]
    actions = rng.uniform(-1, 1, (2, processor.action_chunk_size, 7)).astype(np.float32)
    batch = processor(
        images=pictures,
        text=["touch the red block", "put the cup onto the very blue plate"],
        suffix_actions=actions,
        intrinsic=np.array([[200.0, 0, side / 2], [0, 200, side / 2], [0, 0, 1]]),
    )
    return {n: t for n, t in batch.items() if n != "actions"}


@pytest.mark.parametrize("layer", [None, 0])
def test_attention_is_that_of_the_released_model(golden, layer):
    """Oracle: the weights that transformers' own eager attention returns."""
    model, processor = golden
    batch = training_batch(processor)
    head = model.config.text_config.num_attention_heads - 1
    watch = PointWatch(model, PointLoss(layer=layer, head=head))
    with torch.no_grad(), watch.watching(batch):
        outputs = model(**batch, output_attentions=True, logits_to_keep="labels")
    number = model.config.text_config.num_hidden_layers // 2 if layer is None else layer
    table = outputs.attentions[number][:, head]
    image = batch["input_ids"] == model.config.image_token_index
    for row in range(2):
        asks = (batch["token_type_ids"][row] == 0) & (batch["attention_mask"][row] == 1)
        asks &= ~image[row]
        expected = table[row][asks][:, image[row]]
        assert len(expected) > 4
        torch.testing.assert_close(watch._seen["target_point"][watch._sample == row], expected)
        assert 0.05 < float(expected.sum(-1).min()) < 1


def test_loss_is_the_cross_entropy_of_the_samples_with_a_point(golden):
    model, processor = golden
    batch = training_batch(processor)
    watch = PointWatch(model, PointLoss())
    model.zero_grad()
    with watch.watching(batch):
        model(**batch, logits_to_keep="labels")
    mine = watch._sample == 1
    seen = watch._seen["target_point"][mine].detach().double().numpy()
    wanted = torch.zeros(2, seen.shape[1])
    wanted[1, 3:5] = torch.tensor([0.25, 0.75])
    loss, hits = watch.loss({"target_point": wanted})
    expected = -(0.25 * np.log(seen[:, 3] + 1e-6) + 0.75 * np.log(seen[:, 4] + 1e-6)).mean()
    assert float(loss.detach()) == pytest.approx(expected / 2, rel=1e-5)
    last = seen[-1, 3] + seen[-1, 4]
    assert hits == {"attention/target_point": pytest.approx(last, rel=1e-5)}
    loss.backward()
    layers = model.language_model.model.layers
    middle = len(layers) // 2
    moved = [layer.self_attn.q_proj.weight.grad is not None for layer in layers]
    assert moved == [True] * (middle + 1) + [False] * (len(layers) - middle - 1)
    with torch.no_grad():
        none, hits = watch.loss({"target_point": torch.zeros(2, seen.shape[1])})
    assert (float(none), hits) == (0.0, {})
    model.zero_grad()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layer": 99}, "layers 0 to"),
        ({"head": 64}, "heads 0 to"),
        ({"head": 1, "reference_head": 1}, "two heads"),
    ],
)
def test_a_layer_or_head_that_is_not_there(golden, settings, words):
    with pytest.raises(RecipeError, match=words):
        PointWatch(golden[0], PointLoss(**settings))


def test_data_without_points_says_how_to_get_them(recipe_of):
    with pytest.raises(RecipeError, match=r"no target_point.*card.*data annotate"):
        build(recipe_of("full", overrides=["train.point_loss={}"]))


def test_only_a_point_loss_asks_for_the_pose_of_the_camera():
    card = SimpleNamespace(points={"target_point": "observation.point"}, extrinsics={})
    blind = SimpleNamespace(name="d", card=card)
    check_points([blind], point_fields(None))
    with pytest.raises(RecipeError, match=r"point_loss: d has no extrinsics"):
        check_points([blind], point_fields(PointLoss()))


@pytest.fixture(scope="module")
def touching(tmp_path_factory):
    """Two recorded blocks, and the points that the words name."""
    from typer.testing import CliRunner

    from spatialvla_ft.cli.main import app

    out = tmp_path_factory.mktemp("touching")
    arguments = f"data record --episodes 6 --image-size 32 --distractors 1,2 --out {out} --name two"
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 0, result.output
    return out / "two" / "1.0.0"


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_training_leaves_nothing_behind_but_a_head_that_looks(recipe_of, touching, kind):
    """Same names and shapes of weights, same config, with and without; the head learns to look."""
    results = {}
    for name, wanted in (("plain", "null"), ("points", "{weight: 5.0}")):
        overrides = [
            f"train.point_loss={wanted}",
            f"data.datasets.0.path={touching}",
            "train.steps=30",
        ]
        results[name] = train(build(recipe_of(kind, f"{kind}_{name}", overrides)))
    kept = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    plain, points = (load_file(results[name] / kept) for name in ("plain", "points"))
    assert {n: t.shape for n, t in plain.items()} == {n: t.shape for n, t in points.items()}
    assert any(not torch.equal(plain[n], points[n]) for n in plain)
    files = [{p.name for p in results[name].iterdir()} for name in ("plain", "points")]
    assert files[0] == files[1]
    if kind == "full":
        configs = [json.loads((results[n] / "config.json").read_text()) for n in results]
        assert configs[0] == configs[1]
    rows = [
        json.loads(line)
        for line in (results["points"].parent / "metrics.jsonl").read_text().splitlines()
    ]
    told = [row for row in rows if "loss/points" in row]
    assert len(told) == 30
    looks = [row["attention/target_point"] for row in told]
    assert np.mean(looks[-5:]) > 2 * np.mean(looks[:5])


def test_two_sharded_processes_are_told_the_same_as_one(recipe_of, touching, tmp_path):
    """FSDP2: the hook runs inside the layer, where its weights are whole."""
    overrides = [f"data.datasets.0.path={touching}", "train.point_loss={weight: 2.0}"]
    recipe = recipe_of("full", "two", overrides)
    sharded = (*EXACT["full"], *overrides, "train.sharding=fsdp2")
    launch(PROBE, yaml_of(recipe), str(tmp_path / "held"), "0", *sharded)
    one = recipe_of("full", "one", [*EXACT["full"], *overrides, "train.batch_size=4"])
    train(build(one))
    same_course(one.output, recipe.output)


def test_slot_weights_are_a_weighted_mean(recipe_of):
    """Oracle: cross entropies summed in a NumPy loop."""
    run = build(recipe_of("full", overrides=["train.slot_weights={rotation: 0.25, end: 0}"]))
    from spatialvla_ft.training.objective import label_weights, weighted_loss

    batch = run.collate([run.datasets[0][i] for i in range(3)])
    logits = run.model(**batch, logits_to_keep="labels").logits.detach()
    weights = label_weights(run.recipe.train.slot_weights, run.processor)
    found = weighted_loss(logits, batch["labels"], weights, run.model.config)
    table = logits.double().numpy()
    wanted = batch["labels"][:, 1:][batch["labels"][:, 1:] != -100].numpy()
    total = count = 0.0
    for row, label in enumerate(wanted):
        kind = row % (2 * 3 + 1)
        weight = 0.0 if kind == 6 else (1.0, 0.25, 1.0)[kind % 3]
        peak = table[row].max()
        total += weight * (np.log(np.exp(table[row] - peak).sum()) + peak - table[row, label])
        count += weight
    assert float(found) == pytest.approx(total / count, rel=1e-5)


def test_points_are_no_inputs_of_the_model():
    batch = {"input_ids": torch.zeros(1), "point_weights.target_point": torch.ones(1)}
    inputs, points = without_points(batch)
    assert list(inputs) == ["input_ids"]
    assert list(points) == ["target_point"]


def test_a_recipe_of_before_is_the_same_run(recipe_of):
    """Fields that recipes did not have yet do not make a half-finished run another one."""
    from spatialvla_ft.training.identity import differences, recipe_identity

    now = recipe_identity(recipe_of("full"))
    before = {n: v for n, v in now.items() if n not in ("train.point_loss", "train.slot_weights")}
    assert differences(before, now) == []
    asked = recipe_identity(recipe_of("full", overrides=["train.point_loss={}"]))
    assert any(line.startswith("train.point_loss") for line in differences(before, asked))


def test_recipe_keeps_what_it_says(recipe_of):
    recipe = recipe_of("full", overrides=["train.point_loss={weight: 0.5, layer: 1, head: 2}"])
    dumped = yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert dumped["train"]["point_loss"] == {
        "weight": 0.5,
        "layer": 1,
        "head": 2,
        "reference_head": None,
    }
