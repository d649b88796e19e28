"""A model card says what the files say, and that the rest is unknown."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from tiny_exports import stored
from tiny_world import NAME, picture, tiny_model
from typer.testing import CliRunner

import spatialvla_ft
from spatialvla_ft.cli.main import app
from spatialvla_ft.evaluation.outcome import ClosedLoop
from spatialvla_ft.export import export_checkpoint, verify_export
from spatialvla_ft.export.adapter import export_adapter
from spatialvla_ft.export.card import _dataset_terms, card_for_repository, model_title
from spatialvla_ft.export.card_evaluation import evaluation_section, read_evaluations
from spatialvla_ft.export.lineage import GEMMA_TERMS, Lineage, licence_of, read_lineage
from spatialvla_ft.policy.load import load_policy_model

RECIPE = {
    "output": "/home/ada/secret-project/runs/b",
    "seed": 3,
    "model": {"base": "/home/ada/secret-project/bases/one"},
    "data": {"datasets": [{"path": "hf://datasets/ada/blocks@v1"}], "depth": "sensor"},
    "lora": {"rank": 3},
    "train": {"steps": 1200, "batch_size": 5, "gradient_accumulation": 2, "learning_rate": 3e-4},
}
RESULT = {
    "policy": "final",
    "robot": "robot_b",
    "task": "touch",
    "episodes": 40,
    "successes": 29,
    "wrong_objects": 2,
    "mean_steps": 11.5,
    "settings": {"image_size": 64},
}


def card_of(folder):
    return ModelCard.load(folder / "README.md")


@pytest.fixture(scope="module")
def told(run, tmp_path_factory):
    """An export of a run with a recipe and evaluations."""
    folder = tmp_path_factory.mktemp("told")
    shutil.copytree(run[0] / "final", folder / "run" / "final")
    (folder / "run" / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    baseline = {**RESULT, "policy": "no motion", "successes": 1}
    (folder / "sim.json").write_text(json.dumps([RESULT, baseline]))
    arguments = ["export", str(folder / "run"), "--out", str(folder / "out"), "--samples", "1"]
    done = CliRunner().invoke(app, [*arguments, "--eval", str(folder / "sim.json"), "--json"])
    assert done.exit_code == 0, done.output
    return folder / "out"


def test_what_the_hub_reads(told):
    data = card_of(told).data
    assert {"robotics", "vla", "vision-language-action"} <= set(data.tags)
    assert data.pipeline_tag == "robotics"
    assert data.library_name == "transformers"
    assert data.license == "other"
    assert data.datasets == ["ada/blocks"]
    assert data.get("base_model") is None  # the base is a folder; a made-up name would mislead
    (result,) = data.eval_results
    assert result.metric_value == pytest.approx(29 / 40)
    assert "40 episodes" in result.metric_name


def test_what_people_read(told):
    text = card_of(told).text
    wanted = binomtest(29, 40).proportion_ci(method="wilson")
    assert f"29 / 40 | 72.5% | {wanted.low:.1%} to {wanted.high:.1%}" in text
    assert "| no motion | robot_b | touch | 1 / 40 |" in text
    assert "LoRA of rank 3; 1,200 steps of 10 samples per process, learning rate 0.0003" in text
    assert f"| {NAME} | 60 | 50 | 33 | 21 | 64 x 40 |" in text
    assert "| x, y, z | translation | m | base | change per step |" in text
    assert "| gripper | gripper | 1 = open, 0 = closed | absolute | absolute |" in text
    assert "- rate: unknown" in text
    assert "chunk: 2 actions per prediction, 6 tokens" in text
    assert "an input, in metres; in training: the dataset's sensor" in text
    assert f"transformers {__import__('transformers').__version__}" in text
    assert spatialvla_ft.__version__ in text
    assert "arxiv.org/abs/2501.15830" in text
    assert "/home/ada" not in text  # paths tell of a machine and its people
    assert "…/bases/one" in text


def test_nothing_is_made_up_where_nothing_is_known(exported):
    text = card_of(exported.out).text
    assert "The recipe is unknown" in text
    assert "None was given: how well this model acts is unknown." in text
    assert "Where the weights come from is not recorded" in text
    assert card_of(exported.out).data.eval_results is None
    assert card_of(exported.out).data.get("datasets") is None


def test_the_five_lines_run(told):
    """As they stand, but for the repository's name, and with the package in place of its code."""
    text = card_of(told).text
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) == 5
    metres = np.full((40, 64), 0.7, np.float32)
    names = {"picture": picture(0), "metres": metres}
    exec(code.replace("OWNER/NAME", str(told)), names)
    assert names["actions"].shape == (1, 2, 7)
    assert np.isfinite(names["actions"]).all()


def test_the_rate_is_the_datasets(base, tmp_path):
    def inputs(processor, config):
        return replace(stored(processor, config), control_hz=5.0)

    out = export_checkpoint(base, tmp_path / "out", inputs).out
    assert "- rate: 5 Hz" in card_of(out).text


def test_licences(processor, tmp_path):
    config = tiny_model(processor).config
    assert licence_of(config, Lineage(fresh=True)).name == "other"
    assert "random weights" in licence_of(config, Lineage(fresh=True)).why
    assert licence_of(config, Lineage()).why.startswith("Where the weights come from is not")
    assert licence_of(config, Lineage(base_licence="gemma")).link == GEMMA_TERMS
    real = type(config)(
        text_config={**config.text_config.to_dict(), "vocab_size": 257153 + 8194},
        vision_config=config.vision_config,
        depth_source="sensor",
    )
    assert licence_of(real, Lineage()).name == "gemma"


def test_the_terms_of_the_datasets_flow_down(tmp_path):
    """Those of the base's run too; where none is stated the reader is asked to check."""
    base, mine = tmp_path / "base" / "final", tmp_path / "mine" / "final"
    for folder, licences in ((base, {"first/1.0.0": "MIT"}), (mine, {"second/1.0.0": None})):
        folder.mkdir(parents=True)
        (folder / "trained.json").write_text(json.dumps({"licences": licences}))
    (mine.parent / "recipe.yaml").write_text(yaml.safe_dump({"model": {"base": str(base)}}))
    stated = read_lineage(mine).dataset_licences
    assert stated == {"first/1.0.0": "MIT", "second/1.0.0": None}
    known, unknown = _dataset_terms(stated, sorted(stated))
    assert "`first/1.0.0` (MIT)" in known
    assert "check them: `second/1.0.0`." in unknown


def test_lineage_follows_folders_to_the_first_run(tmp_path):
    first, second = tmp_path / "first" / "final", tmp_path / "second" / "final"
    for folder in (first, second):
        folder.mkdir(parents=True)
    new = {"model": {"base": None, "new": {"image_size": 32}}}
    (first.parent / "recipe.yaml").write_text(yaml.safe_dump(new))
    (second.parent / "recipe.yaml").write_text(yaml.safe_dump({"model": {"base": str(first)}}))
    found = read_lineage(second)
    assert found.fresh is True
    assert found.base == str(first)
    assert found.hub_base is None
    (first / "README.md").write_text("---\nlicense: gemma\n---\n")
    (first.parent / "recipe.yaml").write_text(yaml.safe_dump({"model": {"base": "owner/name"}}))
    found = read_lineage(second)
    assert (found.fresh, found.base_licence) == (None, "gemma")
    assert found.hub_base is None  # owner/name may as well be a folder that is gone
    assert read_lineage(second, hub_base="owner/name").hub_base == "owner/name"
    # A folder whose base is itself does not go on for ever.
    (first.parent / "recipe.yaml").write_text(yaml.safe_dump({"model": {"base": str(first)}}))
    assert read_lineage(first).fresh is None


def test_wrong_evaluations(tmp_path):
    file = tmp_path / "sim.json"
    for content in ('{"l1": {}}', "[]", '[{"policy": "x"}]', "no json", "[3]"):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"sim\.json: .*eval sim --out FILE"):
            read_evaluations([file])


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "adapter"
    arguments = ["export", str(run[0]), "--adapter-only", "--out", str(out), "--samples", "2"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "it gives the stored answers" in done.stdout
    return out


def test_an_adapter_alone_acts_on_its_base(run, base, alone):
    assert {file.name for file in alone.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "golden_outputs.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "spatial_rows.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    model, _ = load_policy_model(alone)
    with torch.no_grad():
        torch.testing.assert_close(model(**run[1]).logits, run[2], rtol=0, atol=1e-5)
    assert verify_export(alone).same
    done = CliRunner().invoke(app, ["export", "--verify", str(alone), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ids_equal"] is True
    data = card_of(alone).data
    assert data.library_name == "spatialvla-ft"
    assert "lora" in data.tags
    recorded = json.loads((run[0] / "final" / "base.json").read_text())
    assert f"fingerprint {recorded['fingerprint']}" in card_of(alone).text


def test_an_adapters_base_goes_by_its_name_on_the_hub(run, base, tmp_path):
    done = export_adapter(run[0], tmp_path / "out", stored, hub_base="ada/base")
    assert json.loads((done.out / "base.json").read_text())["base"] == "ada/base"
    peft = json.loads((done.out / "adapter_config.json").read_text())
    assert peft["base_model_name_or_path"] == "ada/base"
    data = card_of(done.out).data
    assert data.base_model == "ada/base"
    assert data.get("base_model_relation") == "adapter"
    assert verify_export(done.out, base=str(base)).same


def test_a_changed_adapter_is_found(run, alone, base, tmp_path):
    folder = shutil.copytree(alone, tmp_path / "copy")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, str(folder / "adapter_model.safetensors"))
    assert verify_export(folder).max_logit_difference > 1e-3


def test_adapter_only_is_for_adapters(exported, base, tmp_path):
    with pytest.raises(ValueError, match="leave --adapter-only out"):
        export_adapter(base, tmp_path / "out", stored)
    with pytest.raises(ValueError, match="another model, or already merged"):
        export_adapter_on(exported, tmp_path, base)
    assert not list(tmp_path.glob("out*"))
    arguments = ["export", str(base), "--out", str(tmp_path / "o"), "--adapter-only", "--untie"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "leave --untie and --dtype out" in " ".join(done.stderr.split())


def export_adapter_on(exported, tmp_path, base):
    return export_adapter(exported.source, tmp_path / "out", stored, base=str(exported.out))


SWAP = {"episodes": 30, "successes": 21, "wrong_objects": 4, "followed": 18, "chance": 0.25}


def test_wrong_objects_and_the_swap_test_stand_beside_the_successes(tmp_path):
    """Wilson intervals by scipy."""
    file = tmp_path / "sim.json"
    file.write_text(json.dumps([{**RESULT, "swap": SWAP}, {**RESULT, "task": "pick"}]))
    text = evaluation_section(read_evaluations([file]))

    def cells(count, trials):
        ci = binomtest(count, trials).proportion_ci(method="wilson")
        return f"{count} / {trials} | {count / trials:.1%} | {ci.low:.1%} to {ci.high:.1%}"

    who, rest = "| final | robot_b | touch", "image_size 64 | sim.json |"
    lines = text.splitlines()
    assert f"{who} | {cells(29, 40)} | {cells(2, 40)} | {rest}" in lines
    assert f"{who} | {cells(18, 30)} | 25.0% | 21 / 30 | 4 / 30 | sim.json |" in lines
    assert sum("followed / N" in line for line in lines) == 1
    assert sum(line.startswith("| final | robot_b | pick") for line in lines) == 1
    for at, line in enumerate(lines):  # every row has as many cells as its head
        if line.startswith("|---"):
            table = [row for row in lines[at - 1 :] if row.startswith("|")][:3]
            assert len({row.count("|") for row in table}) == 1
    alone = evaluation_section({"sim.json": [ClosedLoop.from_dict(RESULT)]})
    assert "swap test" not in alone


@pytest.mark.parametrize(
    ("out", "source", "title"),
    [
        ("exports/my_robot", "runs/b/final", "my_robot"),
        ("runs/adapt_demo/export", "runs/adapt_demo/train/final", "adapt_demo"),
        ("export", "runs/b/final", "b"),
        ("project/export", "final", "project"),
        ("export", "checkpoint", "export"),
    ],
)
def test_a_model_is_called_after_its_run_rather_than_export(out, source, title, monkeypatch):
    monkeypatch.chdir("/")
    assert model_title(Path(out), Path(source)) == title


def test_in_a_repository_the_card_has_its_name(told):
    before = (told / "README.md").read_text()
    text = card_for_repository(before, "ada/blocks-b")
    assert card_of(told).data.model_name == "run"  # its folder is called `out`
    again = ModelCard(text)
    assert again.data.model_name == "blocks-b"
    assert "\n# blocks-b\n" in text
    assert 'AutoModel.from_pretrained("ada/blocks-b"' in text
    wanted = yaml.safe_load(before.split("---")[1])
    wanted["model-index"][0]["name"] = "blocks-b"
    assert yaml.safe_load(text.split("---")[1]) == wanted
    own = card_for_repository(before.replace("\n# run\n", "\n# Blocks for Ada\n"), "ada/blocks-b")
    assert "\n# Blocks for Ada\n" in own
    assert "\n# blocks-b\n" not in own
