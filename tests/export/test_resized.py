"""A checkpoint on another grid, beside SciPy's interpolation of its rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from released_keys import check_released
from safetensors.torch import load_file
from scipy.interpolate import RegularGridInterpolator
from tiny_world import BINS, tiny_inputs, tiny_model, tiny_processor
from typer.testing import CliRunner

from spatialvla_ft import SpatialVLAConfig, SpatialVLAForConditionalGeneration, SpatialVLAProcessor
from spatialvla_ft.actions import ActionGrid
from spatialvla_ft.actions.grid_io import save_grid
from spatialvla_ft.actions.spaces import translation_delta
from spatialvla_ft.cli.main import app
from spatialvla_ft.export import resized
from spatialvla_ft.export.resized import resize_checkpoint
from spatialvla_ft.policy.load import load_policy_model

FITS = {
    "theta": {"mu": 1.2, "sigma": 0.5},
    "phi": {"mu": -0.8, "sigma": 2.0},
    "r": {"mu": 0.4, "sigma": 0.3},
    "roll": {"mu": 0.1, "sigma": 0.4},
    "pitch": {"mu": 0.2, "sigma": 0.6},
    "yaw": {"mu": -0.3, "sigma": 0.2},
}
TABLE, HEAD = "spatial_embed_tokens.weight", "language_model.lm_head.weight"
TEXT = "language_model.model.embed_tokens.weight"


def scipy_rows(rows, old, new):
    """Linear interpolation at the new midpoints, phi going round, the gripper's rows as they are.

    The clamp of the other axes is that of `np.clip`.
    """
    rows, parts, first = rows.double().numpy(), [], 0
    for axes in (("theta", "phi", "r"), ("roll", "pitch", "yaw")):
        points = [old.midpoints[axis] for axis in axes]
        size = [len(p) for p in points]
        field = rows[first : first + np.prod(size)].reshape(*size, -1)
        first += np.prod(size)
        wanted = [np.clip(new.midpoints[a], p[0], p[-1]) for a, p in zip(axes, points, strict=True)]
        if "phi" in axes:
            phi = points[1]
            points[1] = np.concatenate([[phi[-1] - 2 * np.pi], phi, [phi[0] + 2 * np.pi]])
            field = np.concatenate([field[:, -1:], field, field[:, :1]], axis=1)
            wanted[1] = new.midpoints["phi"]
        query = np.stack(np.meshgrid(*wanted, indexing="ij"), axis=-1).reshape(-1, 3)
        parts.append(RegularGridInterpolator(points, field)(query))
    return np.concatenate([*parts, rows[first:]])


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def other_grid():
    """More bins of theta and yaw, fewer of phi and roll, elsewhere on all axes."""
    return ActionGrid.from_gaussians(FITS, bins=(18, 20, 8, 9, 16, 19, 2))


@pytest.fixture(scope="module")
def golden_resized(golden_checkpoint, other_grid, tmp_path_factory):
    out = tmp_path_factory.mktemp("golden") / "new"
    return out, resize_checkpoint(golden_checkpoint, out, grid=other_grid, samples=1)


def test_golden_rows_are_scipys_and_all_else_is_as_it_was(
    golden_checkpoint, golden_resized, other_grid
):
    out, report = golden_resized
    old = SpatialVLAProcessor.from_pretrained(golden_checkpoint).grid
    before, after = weights(golden_checkpoint), weights(out)
    begin, had, has = 1736, old.total, other_grid.total
    assert (report.tokens, report.head_rows, report.dtype) == ((had, has), True, "bfloat16")
    assert has == 18 * 20 * 8 + 9 * 16 * 19 + 2
    head = before[HEAD][begin : begin + had]
    assert not torch.equal(head, before[TABLE])
    for name, rows, found in (
        ("table", before[TABLE], after[TABLE]),
        ("head", head, after[HEAD][begin:]),
    ):
        assert len(found) == has, name
        expected = scipy_rows(rows, old, other_grid)
        np.testing.assert_allclose(found.double(), expected, rtol=2**-8, atol=1e-6)
        assert not np.allclose(found[:100].double(), rows[:100].double(), rtol=0.1), name
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        if name in (HEAD, TEXT):
            assert torch.equal(after[name][:begin], tensor[:begin]), name
        elif name != TABLE:
            assert torch.equal(after[name], tensor), name


def test_golden_config_tokenizer_and_processor_follow(
    golden_checkpoint, golden_resized, other_grid
):
    out, _ = golden_resized
    config = SpatialVLAConfig.from_pretrained(out)
    assert config.spatial_token_num == other_grid.total
    assert config.text_config.vocab_size == 1736 + other_grid.total
    processor = SpatialVLAProcessor.from_pretrained(out)
    original = SpatialVLAProcessor.from_pretrained(golden_checkpoint)
    assert processor.grid == other_grid
    assert processor.statistics == original.statistics
    assert processor.intrinsic_config == original.intrinsic_config
    last = f"<ACTION{other_grid.total - 1:05d}>"
    vocabulary = processor.tokenizer.get_vocab()
    assert vocabulary[last] == 1736 + other_grid.total - 1
    assert f"<ACTION{other_grid.total:05d}>" not in vocabulary
    assert processor.prompt_ids("pick up the cup") == original.prompt_ids("pick up the cup")


def test_the_same_grid_gives_the_same_bits(golden_checkpoint, tmp_path):
    same = SpatialVLAProcessor.from_pretrained(golden_checkpoint).grid
    report = resize_checkpoint(golden_checkpoint, tmp_path / "new", grid=same, samples=1)
    assert report.same_edges
    assert report.max_change == 0
    before, after = weights(golden_checkpoint), weights(tmp_path / "new")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bins", [(9, 8, 7, 6, 5, 4, 2), (3, 2, 1, 2, 3, 1, 2)])
def test_small_models_grow_and_shrink(tmp_path, tied, bins):
    processor = tiny_processor()
    tiny_model(processor, tie_action_head=tied).save_pretrained(tmp_path / "old")
    processor.save_pretrained(tmp_path / "old")
    report = resize_checkpoint(tmp_path / "old", tmp_path / "new", bins=bins, samples=2)
    assert report.bins == (BINS, bins)
    assert report.head_rows == (not tied)
    assert report.dtype == "float32"
    check_released(tmp_path / "new")
    before, after = weights(tmp_path / "old"), weights(tmp_path / "new")
    new = ActionGrid.uniform(bins=bins)
    if 1 not in bins:  # SciPy has no interpolation along a single point
        expected = scipy_rows(before[TABLE], processor.grid, new)
        np.testing.assert_allclose(after[TABLE], expected, rtol=1e-5, atol=1e-6)
    model, resized_processor = load_policy_model(tmp_path / "new")
    ids = model.predict_action(tiny_inputs(resized_processor))
    relative = ids.numpy().reshape(-1, 3) - model.config.action_token_begin_idx
    resized_processor.grid.check_ids(relative)
    assert resized_processor.decode_actions(ids)["actions"].shape == (2, 2, 7)
    # rows that the head reads: its own where it is untied
    own = model.grid_tokens.rows(slice(0, new.total)).detach()
    assert torch.equal(own, model.spatial_embed_tokens.weight.detach()) == tied


def test_teacher_forcing_on_the_new_grid(base, tmp_path):
    """A forward pass with labels of the new grid, not only greedy decoding."""
    resize_checkpoint(base, tmp_path / "new", bins=(5, 5, 5, 5, 5, 5, 2), samples=1)
    model, processor = load_policy_model(tmp_path / "new")
    with torch.no_grad():
        outputs = model(**tiny_inputs(processor, with_actions=True))
    assert torch.isfinite(outputs.loss)
    assert outputs.logits.shape[-1] == model.config.text_config.vocab_size


def test_refusals(base, run, tmp_path):
    out = tmp_path / "new"
    with pytest.raises(ValueError, match=r"is an adapter.*spatialvla-ft export"):
        resize_checkpoint(run[0], out, bins=(5, 5, 5, 5, 5, 5, 2))
    arm = ActionGrid.uniform(space=translation_delta(), bins=(4, 6, 3, 2))
    with pytest.raises(ValueError, match=r"the grid is for actions .*another action space"):
        resize_checkpoint(base, out, grid=arm)
    zero = ActionGrid.uniform(bins=(4, 6, 3, 5, 5, 3, 2), zero_bin=True)
    with pytest.raises(ValueError, match="only the grid has zero bins"):
        resize_checkpoint(base, out, grid=zero)
    with pytest.raises(ValueError, match="exactly one"):
        resize_checkpoint(base, out)
    with pytest.raises(ValueError, match="samples is 0"):
        resize_checkpoint(base, out, bins=BINS, samples=0)
    with pytest.raises(ValueError, match="neither an adapter"):
        resize_checkpoint(tmp_path, out, bins=BINS)
    assert not out.exists()
    out.mkdir()
    (out / "file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        resize_checkpoint(base, out, bins=BINS)


@pytest.mark.parametrize("what", ["weights", "weights, a little", "grid"])
def test_a_folder_that_answers_otherwise_does_not_appear(base, tmp_path, monkeypatch, what):
    write = resized.write_layout

    def spoilt(model, processor, folder):
        if what != "grid":
            with torch.no_grad():
                model.spatial_embed_tokens.weight.mul_(1.2 if what == "weights" else 1 + 1e-5)
        else:
            processor.set_grid(ActionGrid.uniform(bins=processor.grid.bins, decoding="midpoint"))
        write(model, processor, folder)

    monkeypatch.setattr(resized, "write_layout", spoilt)
    with pytest.raises(ValueError, match="loaded again, is another one"):
        resize_checkpoint(base, tmp_path / "new", bins=(5, 6, 3, 5, 4, 3, 2), samples=2)
    assert not list(tmp_path.iterdir())


def test_the_stored_dtype_is_kept(base, tmp_path):
    model = SpatialVLAForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    SpatialVLAProcessor.from_pretrained(base).save_pretrained(tmp_path / "half")
    report = resize_checkpoint(tmp_path / "half", tmp_path / "new", bins=BINS, samples=1)
    assert report.dtype == "bfloat16"
    before, after = weights(tmp_path / "half"), weights(tmp_path / "new")
    assert all(
        torch.equal(before[n], after[n]) and after[n].dtype == before[n].dtype for n in after
    )


def test_command(base, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(app, ["grids", "resize", *map(str, arguments)])

    save_grid(ActionGrid.uniform(bins=(5, 6, 3, 5, 4, 3, 2)), tmp_path / "grid.json")
    out = tmp_path / "one"
    found = call(base, "--grid", tmp_path / "grid.json", "--out", out, "--samples", 1, "--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout.splitlines()[-1])
    assert report["bins"] == [list(BINS), [5, 6, 3, 5, 4, 3, 2]]
    assert report["tokens"] == [72 + 60 + 2, 90 + 60 + 2]
    found = call(base, "--bins", "4,6,3,5,4,3,2", "--out", tmp_path / "two", "--samples", 1)
    assert found.exit_code == 0, found.output
    assert "every weight is as it was" in found.output
    for wrong, message in (
        ((base, "--out", tmp_path / "three"), "exactly one of --grid"),
        ((base, "--bins", "4,six", "--out", tmp_path / "three"), "whole numbers"),
        ((base, "--bins", "4,6,3,5,4,3,2", "--out", out), "not empty"),
    ):
        found = call(*wrong)
        assert found.exit_code == 1
        assert message in found.output
    assert not (tmp_path / "three").exists()
