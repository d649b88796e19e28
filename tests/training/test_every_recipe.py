"""Every recipe of recipes/, at toy size: two real steps, what they train, and what they leave."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import tiny_paligemma
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import extract_model_from_parallel
from tiny_world import tiny_model, tiny_processor
from typer.testing import CliRunner

from spatialvla_ft.cli.main import app
from spatialvla_ft.policy.load import load_policy_model
from spatialvla_ft.training.build import build
from spatialvla_ft.training.loop import train
from spatialvla_ft.training.recipe import load_recipe
from spatialvla_ft.training.trainable import parameter_groups

FOLDER = Path(__file__).parents[2] / "recipes"
NEW = {"debug", "quickstart_base", "quickstart_scratch", "tabletop_full", "tabletop_views"}
"""Recipes of small models from random weights, which are toys themselves."""
TOYS = sorted(p.stem for p in (FOLDER / "toy").glob("[a-z]*.yaml"))

EVERYTHING = {
    *("language model", "head", "spatial table"),
    *("Ego3D", "projector", "vision tower"),
}
ADAPTED = {"language model", "Ego3D", "projector", "vision tower"}
TRAINS = {  # parts with adapters, parts trained whole
    "pretrain_oxe": (set(), EVERYTHING),
    "pretrain_stage2": (set(), EVERYTHING),
    "continue": (set(), EVERYTHING),
    "adapt_full": (set(), EVERYTHING),
    "adapt_lora": (ADAPTED, set()),
    "adapt_lora_spatial": (ADAPTED, {"spatial table", "head's action rows"}),
    "adapt_spatial_only": (set(), {"spatial table", "Ego3D"}),
    "qlora": (ADAPTED, set()),
    "no_ego3d": (ADAPTED - {"Ego3D"}, set()),
    "linear_bins": (ADAPTED, set()),
    "no_embedding_adaptation": (ADAPTED, set()),
    "adapt_actionmap": (ADAPTED, {"action head"}),
    "adapt_l1": (ADAPTED, {"action head"}),
    "adapt_flow": (ADAPTED, {"action head"}),
}


@pytest.fixture(autouse=True)
def own_accelerator():
    """Accelerate keeps the precision of a process' first run; a second one needs a fresh start."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory):
    """Of the released kind: an untied head, and a ZoeDepth."""
    folder = tmp_path_factory.mktemp("toy_base")
    processor = tiny_processor()
    zoe = tiny_paligemma.zoedepth_config().to_dict()
    tiny_model(processor, depth_source="zoe", vision_zoe_config=zoe).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def world(tmp_path, monkeypatch, toy_base, demo_data):
    """A working directory in which the toys find what recipes/debug.yaml leaves."""
    for place, target in (
        ("runs/debug/final", toy_base),
        ("runs/debug_data/robot_b_touch/1.0.0", demo_data),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(target, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_recipe_has_a_toy_or_is_one():
    recipes = {p.stem for p in FOLDER.glob("*.yaml")}
    assert set(TOYS) == set(TRAINS)
    assert recipes == set(TOYS) | NEW | {"quickstart_adapt"}
    for name in TOYS:
        text = (FOLDER / "toy" / f"{name}.yaml").read_text()
        assert f"\nextends: [../{name}.yaml, _size.yaml]\n" in text


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_trains_what_its_recipe_says(world, name):
    if name == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    depth = ["data.depth=estimate"] if name in ("pretrain_oxe", "qlora") else []
    run = build(load_recipe(FOLDER / "toy" / f"{name}.yaml", depth))
    groups = parameter_groups(run.model)
    assert {group.name for group in groups if group.adapters} == TRAINS[name][0]
    whole = {group.name for group in groups if group.trained == group.total}
    assert whole == TRAINS[name][1] == {group.name for group in groups if group.trained}
    trainable = {n for n, p in run.model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in run.model.parameters() if p.requires_grad)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    result = train(run)
    moved = {n for n, p in run.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trainable
    assert not [n for n in moved if "zoe" in n]

    # The canary is right that a random ZoeDepth sees nothing.
    model, processor = load_policy_model(result, canary=False)
    if name != "qlora":  # which answers on the base without quantisation
        batch = run.collate([run.datasets[0][0]])
        exact = extract_model_from_parallel(run.spatialvla, keep_fp32_wrapper=False).eval()
        assert model.config.action_head == exact.config.action_head
        if exact.action_head is None:
            with torch.no_grad():
                said = [one(**batch).logits for one in (model, exact)]
        else:
            prompt = {n: t for n, t in batch.items() if n not in ("actions", "valid")}
            said = [one.predict_actions(prompt) for one in (model, exact)]
        assert torch.allclose(*said, rtol=0, atol=1e-5)
    assert processor.grid.edges.keys() == run.processor.grid.edges.keys()


@pytest.mark.parametrize("name", ["debug", "quickstart_base"])
def test_a_small_model_trains_everything(world, name):
    path = "data.datasets.0.path=runs/debug_data/robot_b_touch/1.0.0"
    small = ["train.steps=2", "train.batch_size=2", "train.warmup=0", "train.trackers=[jsonl]"]
    small += ["data.workers=0", "train.point_loss=null"]  # this data was not recorded with points
    run = build(load_recipe(FOLDER / f"{name}.yaml", [path, *small]))
    assert {group.name for group in parameter_groups(run.model) if not group.trained} == (
        set() if name == "debug" else {"text embeddings", "head"}
    )
    model, _ = load_policy_model(train(run), canary=False)
    assert model.config.vision_zoe_config is None


def test_what_the_ablations_change(world):
    def built(name):
        return build(load_recipe(FOLDER / "toy" / f"{name}.yaml"))

    plain, bins, kept, blind = map(
        built, ("adapt_lora", "linear_bins", "no_embedding_adaptation", "no_ego3d")
    )
    theta = torch.tensor(bins.processor.grid.edges["theta"])
    assert torch.allclose(theta.diff(), theta.diff()[0].expand(len(theta) - 1))
    assert plain.processor.grid != bins.processor.grid
    assert kept.processor.grid == plain.processor.grid
    base, _ = load_policy_model(world / "runs/debug/final", canary=False)
    table = base.spatial_embed_tokens.weight
    assert torch.equal(kept.spatialvla.spatial_embed_tokens.weight, table)
    assert not torch.equal(plain.spatialvla.spatial_embed_tokens.weight, table)
    assert not hasattr(blind.spatialvla, "position_embedding_3d")


HEADER = re.compile(r"^# (Command|Hardware|Memory|Time|Expect): +\S", re.MULTILINE)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.name)
def test_headers_are_complete(file):
    found = HEADER.findall(file.read_text())
    assert found == ["Command", "Hardware", "Memory", "Time", "Expect"]


PLANNED = re.compile(r"^# Memory: +([\d.]+) GiB .*?spatialvla-ft (plan-memory .*?)\)", re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.name)
def test_headers_have_the_planned_memory(file):
    found = PLANNED.search(file.read_text())
    if found is None:
        pytest.skip("the header gives measured memory, or none")
    arguments = found[2].replace("\n#", " ").split()
    assert arguments[1] == file.stem
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["peak_bytes"] / 2**30 == pytest.approx(float(found[1]), rel=0.05)
