"""Every head: exported whole and as an adapter, verified, and run where the package is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_exports import shaken, stored

from spatialvla_ft import SpatialVLAForConditionalGeneration
from spatialvla_ft.export import export_checkpoint, verify_export
from spatialvla_ft.export.adapter import export_adapter
from spatialvla_ft.export.resized import resize_checkpoint
from spatialvla_ft.heads.registry import DEFAULT, HEADS
from spatialvla_ft.models.lora import attach_lora, fingerprint, save_adapter, spatial_rows
from spatialvla_ft.policy.canary import BlindModelError, check_sight
from spatialvla_ft.policy.load import load_policy_model

ROOT = Path(__file__).parents[2]
SETTINGS = {"voxel_heatmap": {"bins": {"translation": [6, 6, 4], "rotation": [4, 4, 4]}}}
KINDS = sorted(kind for kind in HEADS if kind != DEFAULT)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def adapter(kind, base, processor, tmp_path_factory):
    """A finished run: adapters on the base's backbone, the head whole."""
    folder = tmp_path_factory.mktemp(kind)
    space = processor.grid.action_space.to_dict()
    head = {"kind": kind, "space": space, **SETTINGS.get(kind, {})}
    load = SpatialVLAForConditionalGeneration.from_pretrained
    model = load(base, dtype=torch.float32, action_head=head)
    print_of_base, rows = fingerprint(load(base, dtype=torch.float32)), spatial_rows(model)
    adapted = shaken(attach_lora(model, rank=2, train_whole=("action_head",)), scale=0.05)
    named = {
        "base": str(base),
        "base_fingerprint": print_of_base,
        "overrides": {"action_head": head},
    }
    save_adapter(adapted, processor, rows, folder / "final", **named)
    return folder / "final"


@pytest.fixture(scope="module")
def whole(adapter, tmp_path_factory):
    return export_checkpoint(adapter, tmp_path_factory.mktemp("exports") / "new", stored)


def test_it_is_merged_written_and_gives_its_answers(whole, kind):
    report = verify_export(whole.out)
    assert report.same
    assert report.head == kind
    assert report.max_normalised_difference < 1e-4
    assert whole.merge_difference < 1e-3
    card = (whole.out / "README.md").read_text()
    assert f"head: `{kind}`" in card
    assert "processor.to_robot_units(model.predict_actions(inputs)" in card
    assert "predict_action(inputs)" not in card


def test_it_acts_where_the_package_is_not(whole, kind, tmp_path):
    command = [sys.executable, "-I", str(ROOT / "tools/check_export_alone.py"), str(whole.out)]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    for name in ("AutoModel", "AutoModelForImageTextToText", "AutoModel saved again"):
        assert found[name]["head"] == kind
        assert found[name]["actions"] < 1e-4


def test_the_adapter_alone_gives_its_answers_on_its_base(adapter, kind, tmp_path):
    done = export_adapter(adapter, tmp_path / "adapter", stored)
    assert done.verified.same
    assert done.verified.head == kind


def test_other_weights_are_noticed(whole, tmp_path):
    """A head whose weights are not those of the export must not act."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for file in whole.out.iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).symlink_to(file)
    tensors = load_file(whole.out / "model.safetensors")
    torch.manual_seed(0)
    for name, tensor in tensors.items():
        if name.startswith("action_head.") and tensor.ndim > 1:
            tensors[name] = tensor[torch.randperm(len(tensor))]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BlindModelError, match="the answers stored at export do not come back"):
        load_policy_model(folder)


def test_a_blind_one_is_noticed(whole):
    model, processor = load_policy_model(whole.out)
    seen = check_sight(model, processor)
    assert seen.total_variation == {}
    assert {"another picture", "another depth"} <= set(seen.changes)
    with torch.no_grad():
        model.multi_modal_projector.linear.weight.zero_()
    with pytest.raises(
        BlindModelError, match=r"another picture changes no action \(its head's num"
    ):
        check_sight(model, processor)


def test_its_grid_cannot_be_resized(whole, kind, tmp_path):
    with pytest.raises(ValueError, match=f"acts by head '{kind}', which has no tokens"):
        resize_checkpoint(whole.out, tmp_path / "out", bins=(4, 4, 4, 4, 4, 4, 2))
