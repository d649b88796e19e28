"""A merged, written and reloaded checkpoint acts as the adapter did; a broken one is found out."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from released_keys import check_released
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_exports import stored
from tiny_world import BINS, NAME, MadeUp, tiny_model
from typer.testing import CliRunner

from spatialvla_ft import SpatialVLAForConditionalGeneration, SpatialVLAProcessor
from spatialvla_ft.cli.main import app
from spatialvla_ft.export import checkpoint as checkpoint_module
from spatialvla_ft.export import export_checkpoint, verify_export
from spatialvla_ft.export.flatten import flat_files
from spatialvla_ft.export.inputs import random_inputs
from spatialvla_ft.export.stored import STORED_FILE


def test_a_run_becomes_a_checkpoint_that_acts_as_the_adapter(run, exported):
    assert exported.kind == "adapter"
    assert 0 < exported.merge_difference < 1e-3
    model = SpatialVLAForConditionalGeneration.from_pretrained(exported.out, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**run[1]).logits, run[2], rtol=0, atol=1e-3)
    assert exported.to_dict()["inputs"] == f"3 steps of {NAME}"
    json.dumps(exported.to_dict())


def test_layout(exported):
    assert {file.name for file in exported.out.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "golden_outputs.safetensors",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        *flat_files(),
    }
    assert len({file.stat().st_mode for file in exported.out.iterdir()}) == 1
    saved = json.loads((exported.out / "processor_config.json").read_text())
    assert saved["statistics"][NAME]["action"]["q99"][2] == 0.05
    assert saved["intrinsic_config"][NAME]["width"] == 64
    assert saved["action_chunk_size"] == 2
    assert set(saved["bin_policy"]) >= {"translation", "rotation"}
    check_released(exported.out)


def test_released_checkpoint_keeps_its_keys_in_bfloat16(golden_checkpoint, golden_dir, tmp_path):
    done = export_checkpoint(
        golden_checkpoint,
        tmp_path / "out",
        lambda processor, config: random_inputs(processor, config, count=1),
        dtype="bfloat16",
    )
    wanted = json.loads((golden_dir / "checkpoint_keys.json").read_text())
    with safe_open(str(done.out / "model.safetensors"), "pt") as file:
        got = {
            name: [list(file.get_slice(name).get_shape()), file.get_slice(name).get_dtype()]
            for name in file.keys()  # noqa: SIM118
        }
    assert got == wanted
    assert done.kind == "checkpoint"
    # The golden weights are bfloat16 numbers already.
    assert done.rounding_difference == 0
    assert done.rounded_ids == 0
    before = load_file(golden_checkpoint / "model.safetensors")
    after = load_file(done.out / "model.safetensors")
    head = "language_model.lm_head.weight"
    assert torch.equal(before[head], after[head])
    for file in done.out.glob("*.json"):
        for named in json.loads(file.read_text()).get("auto_map", {}).values():
            assert (done.out / f"{named.split('.')[0]}.py").is_file(), file.name
    assert json.loads((done.out / "config.json").read_text())["dtype"] == "bfloat16"


def test_bfloat16_says_what_rounding_did(run, tmp_path):
    done = export_checkpoint(run[0], tmp_path / "out", stored, dtype="bfloat16")
    weights = load_file(done.out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert 1e-4 < done.rounding_difference < 2
    report = verify_export(done.out)
    assert report.same
    assert report.max_logit_difference == 0


def test_a_tied_head_is_kept_or_written_out(processor, tmp_path):
    tied = tmp_path / "tied"
    tiny_model(processor, tie_action_head=True).save_pretrained(tied)
    processor.save_pretrained(tied)
    kept = export_checkpoint(tied, tmp_path / "kept", stored)
    loose = export_checkpoint(tied, tmp_path / "loose", stored, untie=True)
    config = {n: json.loads((tmp_path / n / "config.json").read_text()) for n in ("kept", "loose")}
    assert config["kept"]["tie_action_head"] is True
    assert config["loose"]["tie_action_head"] is False
    weights = load_file(loose.out / "model.safetensors")
    begin = config["loose"]["action_token_begin_idx"]
    rows = weights["language_model.lm_head.weight"][begin:]
    assert torch.equal(rows, weights["spatial_embed_tokens.weight"])
    one, other = (load_file(done.out / STORED_FILE) for done in (kept, loose))
    for name in ("ids", "actions", "action_logits"):
        assert torch.equal(one[f"expected.{name}"], other[f"expected.{name}"]), name
    with pytest.raises(ValueError, match="leave --untie out"):
        export_checkpoint(loose.out, tmp_path / "again", stored, untie=True)


def test_stored_answers_against_the_processor(run, exported):
    """The stored tensors are those of the samples, decoded with the data's own statistics."""
    saved = load_file(exported.out / STORED_FILE)
    processor = SpatialVLAProcessor.from_pretrained(exported.out)
    first = MadeUp()[0]
    again = processor(
        images=first.images["primary"],
        text=first.instruction,
        intrinsic=first.intrinsics["primary"],
        depth=first.depth["primary"],
    )
    for name in ("pixel_values", "intrinsics", "depth"):
        assert torch.equal(saved[f"inputs.{name}"][0], again[name][0]), name
    decoded = processor.decode_actions(saved["expected.ids"], unnorm_key=NAME)["actions"]
    np.testing.assert_array_equal(saved["expected.actions"], decoded)
    counts = (BINS[0] * BINS[1] * BINS[2], BINS[3] * BINS[4] * BINS[5])
    relative = saved["expected.ids"] - processor.action_tokenizer.begin_id
    best = saved["expected.action_logits"][..., : counts[0]].argmax(-1)
    assert torch.equal(best[:, 0::3], relative[:, 0::3])


def copied(exported, tmp_path):
    import shutil

    return shutil.copytree(exported.out, tmp_path / "copy")


def test_a_changed_weight_is_found(exported, tmp_path):
    folder = copied(exported, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["spatial_embed_tokens.weight"] = weights["spatial_embed_tokens.weight"].flip(0)
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    report = verify_export(folder)
    assert not report.same
    assert report.max_logit_difference > 1e-3


def test_changed_statistics_are_found(exported, tmp_path):
    folder = copied(exported, tmp_path)
    file = folder / "processor_config.json"
    saved = json.loads(file.read_text())
    saved["statistics"][NAME]["action"]["q99"][0] += 0.01
    file.write_text(json.dumps(saved))
    report = verify_export(folder)
    assert report.ids_equal
    assert report.max_action_difference > 1e-4
    assert not report.same
    done = CliRunner().invoke(app, ["export", "--verify", str(folder), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["max_action_difference"] == report.max_action_difference


def test_verify_in_a_process_of_its_own(exported, tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "spatialvla_ft_cli", "export", "--verify", str(exported.out)]
    done = subprocess.run(
        [*command, "--report", str(report)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "3 stored inputs; predicted tokens equal" in done.stdout
    found = json.loads(report.read_text())
    assert found["inputs"] == 3
    assert found["ids_equal"] is True
    assert found["max_action_difference"] <= 1e-6
    assert found["max_logit_difference"] <= 1e-4


def test_random_pictures_when_there_is_no_dataset(run, tmp_path):
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["export", str(run[0] / "final"), "--out", str(out), "--samples", "2"]
    )
    assert done.exit_code == 0, done.output
    assert "2 random pictures (no dataset was given)" in done.stdout
    assert "merged the adapter" in done.stdout
    assert load_file(out / STORED_FILE)["inputs.depth"].shape == (2, 32, 32)


def test_recorded_steps_by_the_command(run, tmp_path, monkeypatch):
    from spatialvla_ft.evaluation import open_loop

    asked = {}

    def opened(place, **options):
        asked.update(options, place=str(place))
        return MadeUp()

    monkeypatch.setattr(open_loop, "open_dataset", opened)
    arguments = ["export", str(run[0]), "--out", str(tmp_path / "out"), "--samples", "3", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--dataset", "some/1.0.0", "--split", "val"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["inputs"] == f"3 steps of {NAME}"
    assert report["verified"]["ids_equal"] is True
    assert asked == {
        "place": "some/1.0.0",
        "card": None,
        "horizon": 2,
        "split": "val",
        "window": 1,
        "cameras": ("primary",),
    }
    done = CliRunner().invoke(
        app, [*arguments[:3], str(tmp_path / "2"), "--dataset", "x", "--unnorm-key", "nobody"]
    )
    assert done.exit_code == 1
    assert "unnorm_key 'nobody' is unknown" in " ".join(done.stderr.split())


def test_a_whole_checkpoint_is_rewritten_and_says_so(base, tmp_path):
    arguments = ["export", str(base), "--out", str(tmp_path / "out"), "--samples", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "nothing to merge, rewritten as it is" in done.stdout


def test_a_base_that_is_another_model_is_refused(run, exported, tmp_path):
    with pytest.raises(ValueError, match="another model, or already merged"):
        export_checkpoint(run[0], tmp_path / "out", stored, base=str(exported.out))
    assert not list(tmp_path.iterdir())


def test_merging_must_not_change_logits(run, tmp_path, monkeypatch):
    from spatialvla_ft.export import source

    monkeypatch.setattr(source, "MERGE_TOLERANCE", 1e-9)
    with pytest.raises(ValueError, match="merging the adapter moved a logit by"):
        export_checkpoint(run[0], tmp_path / "out", stored)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "holds neither an adapter .* nor a checkpoint"),
        (lambda folder: (folder / "checkpoints").mkdir(), "it has not finished"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "without base.json and"),
        (
            lambda folder: [
                (folder / name).write_text("{}")
                for name in ("adapter_config.json", "config.json", "model.safetensors")
            ],
            "merged already",
        ),
    ],
)
def test_sources_that_cannot_be_exported(tmp_path, make, message):
    source = tmp_path / "source"
    source.mkdir()
    make(source)
    with pytest.raises(ValueError, match=message):
        export_checkpoint(source, tmp_path / "out", stored)


def test_out_in_use_is_refused_and_an_empty_one_taken(base, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"used is not empty \(1 entries\): name a new folder"):
        export_checkpoint(base, tmp_path / "used", stored)
    (tmp_path / "empty").mkdir()
    assert export_checkpoint(base, tmp_path / "empty", stored).verified.same


@pytest.mark.parametrize("stage", ["write_stored", "verify_export"])
def test_a_failure_leaves_nothing_behind(base, tmp_path, monkeypatch, stage):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint_module, stage, fail)
    with pytest.raises(OSError, match="disk full"):
        export_checkpoint(base, tmp_path / "out", stored)
    assert not list(tmp_path.iterdir())


def test_wrong_options(base, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="'float16' is unknown; use one of"):
        export_checkpoint(base, out, stored, dtype="float16")
    with pytest.raises(ValueError, match="needs no base"):
        export_checkpoint(base, out, stored, base="elsewhere")
    for arguments, message in (
        ([], "name what to export"),
        ([str(base), "--out", str(out), "--samples", "0"], "--samples is 0"),
        ([str(base), "--verify", str(base)], "leave out the source"),
        (["--verify", str(base)], "has no golden_outputs.safetensors"),
    ):
        done = CliRunner().invoke(app, ["export", *arguments])
        assert done.exit_code == 1
        assert message in " ".join(done.stderr.split())
