"""The model card: what people need to find, judge and run a checkpoint, all of it from its files.

What the files do not tell is said to be unknown. Nothing here is measured or made up.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..actions.grid_io import is_one_arm
from ..actions.spaces import ActionSpace
from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..policy.inputs import takes_depth
from .card_evaluation import Evaluations, eval_results, evaluation_section
from .lineage import Lineage, licence_of

CARD_FILE = "README.md"
REPO = "OWNER/NAME"
"""Stands for the repository's name, which is known when the card is pushed."""
ARXIV = "2501.15830"
UNKNOWN = "unknown"
HEAD_WORDS: dict[str, tuple[str, str | None]] = {
    "voxel_heatmap": ("heatmaps over the action space, as ActionMap has them", None),
    "l1": ("regression of the whole chunk in one pass, as OpenVLA-OFT's", "2502.19645"),
    "linear_bins": ("even bins of every number, in one pass", None),
    "flow": ("flow matching with a small action expert, as in pi0", "2410.24164"),
}
"""Heads without tokens in words, and where they come from."""
NAMELESS = (
    "adapter",
    "checkpoint",
    "export",
    "exports",
    "final",
    "model",
    "out",
    "output",
    "train",
)
"""Names of folders that do not tell one model from another."""


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        title: name of the model.
        config, processor: of the checkpoint.
        parameters: number of weights; of the adapter alone for an adapter.
        dtype: of the weights.
        lineage: recipe, base and terms.
        merged: largest change of a logit by merging; None where nothing was merged.
        adapter: whether the folder holds an adapter that needs its base.
        checked_on: what the stored answers are answers to.
        control_hz: rate at which actions are executed, where a dataset told.
        evaluations: closed-loop results, by the name of their file.
    """

    title: str
    config: SpatialVLAConfig
    processor: SpatialVLAProcessor
    parameters: int
    dtype: str
    lineage: Lineage
    merged: float | None
    adapter: bool
    checked_on: str
    control_hz: float | None
    evaluations: Evaluations


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write README.md into a checkpoint folder."""
    (folder / CARD_FILE).write_text(str(make_card(facts)), encoding="utf-8")


def model_title(out: Path, source: Path) -> str:
    """What to call a model: its folder's name, or, where that says nothing, its run's.

    Args:
        out: where it is exported to.
        source: checkpoint or adapter that it is made of.
    """
    run = [source, *source.parents][:3]
    names = [path.name for path in (out.absolute(), *run, out.absolute().parent)]
    return next((name for name in names if name and name.lower() not in NAMELESS), out.name)


def card_for_repository(text: str, repo_id: str) -> str:
    """The card as it lies in a repository: named after it, and with its name in the code.

    A title that somebody changed since the export stays.
    """
    card = ModelCard(text.replace(REPO, repo_id))
    old, new = card.data.get("model_name"), repo_id.split("/")[1]
    if old is None or f"\n# {old}\n" not in card.content:
        return str(card)
    card.data.model_name = new
    card.text = card.text.replace(f"\n# {old}\n", f"\n# {new}\n", 1)
    return str(card)


def make_card(facts: CardFacts) -> ModelCard:
    """Front matter for the Hub, then the page."""
    sections = (
        _summary(facts),
        _run(facts),
        _actions(facts),
        _observations(facts),
        _training(facts),
        evaluation_section(facts.evaluations),
        _licence(facts),
        _versions(facts),
    )
    return ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _metadata(facts: CardFacts) -> ModelCardData:
    licence = licence_of(facts.config, facts.lineage)
    stated = {"license_name": "not-stated"} if licence.name == "other" else {}
    return ModelCardData(
        model_name=facts.title,
        license=licence.name,
        license_link=licence.link,
        library_name="spatialvla-ft" if facts.adapter else "transformers",
        pipeline_tag="robotics",
        tags=[
            "robotics",
            "vla",
            "vision-language-action",
            "spatialvla",
            f"arxiv:{ARXIV}",
            *(["lora", "peft"] if facts.adapter else ["custom_code"]),
        ],
        base_model=facts.lineage.hub_base,
        base_model_relation=(
            ("adapter" if facts.adapter else "finetune") if facts.lineage.hub_base else None
        ),
        datasets=facts.lineage.hub_datasets or None,
        eval_results=eval_results(facts.evaluations) or None,
        **stated,
    )


# ---------------------------------------------------------------------- the page


def _summary(facts: CardFacts) -> str:
    lineage, config = facts.lineage, facts.config
    what = "LoRA adapter for a spatial" if facts.adapter else "Spatial"
    lines = [
        f"# {facts.title}",
        f"{what} vision-language-action model: pictures, an instruction and the camera's matrix "
        "go in, robot actions come out. The method is SpatialVLA "
        f"([arXiv:{ARXIV}](https://arxiv.org/abs/{ARXIV})); the toolkit is spatialvla-ft.",
        f"- {facts.parameters:,} parameters{' in the adapter' if facts.adapter else ''}, "
        f"stored as {facts.dtype}",
        f"- base: {_base(lineage)}",
    ]
    if lineage.fresh:
        lines.append("- a small model whose chain of training began from random weights")
    if facts.merged is not None:
        lines.append(
            f"- the LoRA adapter is merged in float32: logits moved by at most {facts.merged:.2g} "
            f"on {facts.checked_on}"
        )
    lines.append(
        "- language model: Gemma 2, "
        f"{config.text_config.num_hidden_layers} layers of {config.text_config.hidden_size}; "
        f"vision: SigLIP, {config.vision_config.num_hidden_layers} layers, pictures of "
        f"{config.vision_config.image_size} pixels; prefix mask {config.prefix_mask}; released "
        f"numbers {'restored' if config.compatibility == 'released' else 'corrected'}"
    )
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])


def _base(lineage: Lineage) -> str:
    if lineage.base is None:
        return "none, random weights" if lineage.fresh else UNKNOWN
    name = lineage.hub_base or f"{_shortened(lineage.base)} (a folder of its author)"
    mark = f", fingerprint {lineage.fingerprint}" if lineage.fingerprint else ""
    return name + mark


def _run(facts: CardFacts) -> str:
    keys = sorted(facts.processor.statistics)
    key = f'"{keys[0]}"' if keys else "None"
    extra = ", depth=metres" if takes_depth(facts.config) else ""
    if facts.processor.layout.proprio_dim is not None:
        extra += ", proprio=state"
    if keys:
        extra += f", unnorm_key={key}"
    if not _knows_camera(facts.processor, keys):
        extra += ", intrinsic=K"
    words = "; ".join(_input_words(facts))
    if facts.adapter:
        load = [
            "from spatialvla_ft.models.lora import load_policy_model",
            f'model, processor = load_policy_model("{REPO.split("/")[1]}")  # a local folder',
        ]
        needs = (
            "Needs spatialvla-ft and the base: an adapter is no whole model. Where the base lies "
            "elsewhere, add `base=FOLDER`, or `--base FOLDER` to commands; its fingerprint is "
            "checked."
        )
    else:
        load = [
            "from transformers import AutoModel, AutoProcessor",
            f'processor = AutoProcessor.from_pretrained("{REPO}", trust_remote_code=True)',
            f'model = AutoModel.from_pretrained("{REPO}", trust_remote_code=True).eval()',
        ]
        needs = (
            "Needs torch, transformers >= 5.17 and < 5.24, scipy, pillow. `trust_remote_code=True` "
            "runs the Python files of this repository; with spatialvla-ft installed, "
            "`import spatialvla_ft` and leave it out."
        )
    code = [
        *load,
        f'inputs = processor(images=picture, text="pick up the red block"{extra})',
        (
            f"actions = processor.decode_actions(model.predict_action(inputs), unnorm_key={key})"
            '["actions"]'
            if facts.config.action_head is None
            else f"actions = processor.to_robot_units(model.predict_actions(inputs), {key})"
        ),
    ]
    listing = "\n".join(code)
    return (
        f"## Run it\n\n```python\n{listing}\n```\n\n{words}. `actions` is (1, "
        f"{facts.processor.action_chunk_size}, {facts.processor.grid.dim}).\n\n{needs}\n\n"
        f"`golden_outputs.safetensors` holds inputs and the answers to them ({facts.checked_on}): "
        "`spatialvla-ft export --verify FOLDER` tells whether another machine gives the same."
    )


def _input_words(facts: CardFacts) -> list[str]:
    layout = facts.processor.layout
    views = "one RGB picture"
    if layout.num_views > 1:
        views = (
            f"[[...]]: {layout.num_views} RGB pictures, {layout.window} step(s) of "
            f"{', '.join(layout.cameras)}"
        )
    words = [f"`picture` is {views}"]
    if takes_depth(facts.config):
        words.append("`metres` is its depth along the optical axis, float32 (H, W), NaN if unknown")
    if layout.proprio_dim is not None:
        words.append(f"`state` is proprioception ({layout.window}, {layout.proprio_dim})")
    if not _knows_camera(facts.processor, sorted(facts.processor.statistics)):
        words.append("`K` is the camera's 3 x 3 matrix in pixels of the picture")
    return words


def _knows_camera(processor: SpatialVLAProcessor, keys: Sequence[str]) -> bool:
    known = processor.intrinsic_config
    return "default" in known or (bool(keys) and keys[0] in known)


def _actions(facts: CardFacts) -> str:
    grid, processor = facts.processor.grid, facts.processor
    space: ActionSpace = grid.action_space
    hz = space.control_hz or facts.control_hz
    rows = [
        f"| {', '.join(group.names)} | {group.role} | {group.unit} | {group.frame} | "
        f"{'change per step' if group.delta else 'absolute'} |"
        for group in space.groups
    ]
    rate = f"{hz:g} Hz" if hz else UNKNOWN
    chunk = processor.action_chunk_size
    return "\n".join(
        [
            "## Actions",
            "",
            "| dimensions | role | unit | frame | meaning |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Rotations are roll, pitch and yaw as scipy's 'xyz'. "
            + (
                "The released layout records neither units nor frame of a single arm: these are "
                "the toolkit's convention, so compare them with your robot before the first run."
                if is_one_arm(grid)
                else "Compare frames and units with your robot before the first run."
            ),
            "",
            f"- rate: {rate}",
            *_head_lines(facts, chunk),
            "- statistics (`unnorm_key`): "
            + ("; ".join(_statistics(processor)) if processor.statistics else "none"),
        ]
    )


def _head_lines(facts: CardFacts, chunk: int) -> list[str]:
    """How actions come about: tokens of a grid, or another head beside it."""
    grid, head = facts.processor.grid, facts.config.action_head
    per = f"- chunk: {chunk} action{'s' if chunk > 1 else ''} per prediction"
    cells = (
        f"grid: {grid.kind}, bins {', '.join(map(str, grid.bins))}, {grid.total} action tokens, "
        f"decoded to the {grid.decoding} of a bin"
    )
    if head is None:
        return [f"{per}, {chunk * grid.tokens} tokens", f"- {cells}"]
    settings = {k: v for k, v in head.items() if k not in ("kind", "space", "cells")}
    said = ", ".join(f"{name} {value}" for name, value in settings.items()) or "its defaults"
    what, paper = HEAD_WORDS.get(head["kind"], ("a head of its author's own", None))
    link = f" ([arXiv:{paper}](https://arxiv.org/abs/{paper}))" if paper else ""
    return [
        f"{per}, in one pass",
        f"- head: `{head['kind']}`, {what}{link}; settings: {said}",
        f"- not used by this head, kept from the base: {cells}",
    ]


def _statistics(processor: SpatialVLAProcessor) -> list[str]:
    lines = []
    for name, entry in sorted(processor.statistics.items()):
        steps = int(entry.get("num_transitions") or 0)
        episodes = int(entry.get("num_trajectories") or 0)
        size = f"{steps:,} steps" if steps else f"steps {UNKNOWN}"
        size += f", {episodes:,} episodes" if episodes else f", episodes {UNKNOWN}"
        lines.append(f"`{name}` ({size})")
    return lines


def _observations(facts: CardFacts) -> str:
    processor, config = facts.processor, facts.config
    layout = processor.layout
    lines = [
        "## Observations",
        "",
        f"- cameras: {', '.join(layout.cameras)}; steps seen: {layout.window}; proprioception: "
        + (f"{layout.proprio_dim} numbers" if layout.proprio_dim else "not read"),
        f"- depth: {_depth(config, facts.lineage)}",
        "",
        "Camera matrices that the processor knows, in pixels of the given size:",
        "",
        "| statistics | fx | fy | cx | cy | picture |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in sorted(processor.intrinsic_config.items()):
        k = entry["intrinsic"]
        numbers = (k[0][0], k[1][1], k[0][2], k[1][2])
        size = f"{entry['width']} x {entry['height']}"
        lines.append(f"| {name} | {' | '.join(f'{float(v):g}' for v in numbers)} | {size} |")
    if not processor.intrinsic_config:
        lines += ["", "None: pass `intrinsic` with every call."]
    return "\n".join(lines)


def _depth(config: SpatialVLAConfig, lineage: Lineage) -> str:
    if not config.use_vision_zoe:
        return "not used"
    trained = ((lineage.recipe or {}).get("data") or {}).get("depth")
    if isinstance(trained, dict):
        trained = f"{trained.get('source')} {_shortened(str(trained.get('checkpoint')))}"
    words = {"sensor": "the dataset's sensor", "estimate": "the model's ZoeDepth"}
    source = words.get(str(trained), trained) if trained else UNKNOWN
    inside = (
        "an input, in metres"
        if takes_depth(config)
        else "estimated by the ZoeDepth inside, if not given"
    )
    return f"{inside}; in training: {source}"


def _training(facts: CardFacts) -> str:
    recipe = facts.lineage.recipe
    if recipe is None:
        return f"## Training\n\nThe recipe is {UNKNOWN}: no recipe.yaml lay beside the weights."
    train, lora = recipe.get("train") or {}, recipe.get("lora")
    batch = int(train["batch_size"]) * int(train.get("gradient_accumulation", 1))
    how = f"LoRA of rank {lora['rank']}" if lora else "all weights that are not frozen"
    shown = yaml.safe_dump(_shorten_all(recipe), sort_keys=False, allow_unicode=True)
    return (
        f"## Training\n\n{how}; {train['steps']:,} steps of {batch} samples per process, learning "
        f"rate {train['learning_rate']:g} ({train.get('schedule', 'cosine')}), "
        f"{train.get('precision', 'float32')}, seed {recipe.get('seed', 0)}. The recipe, paths "
        f"shortened:\n\n```yaml\n{shown}```"
    )


def _licence(facts: CardFacts) -> str:
    licence = licence_of(facts.config, facts.lineage)
    names = sorted({*facts.processor.statistics, *facts.lineage.dataset_licences})
    lines = ["## Licence", "", licence.why + (f" [Terms]({licence.link})." if licence.link else "")]
    if facts.config.vision_zoe_config is not None:
        lines.append("The ZoeDepth inside is published under the MIT licence.")
    lines += _dataset_terms(facts.lineage.dataset_licences, names)
    if not facts.adapter:
        lines.append("The Python files are part of spatialvla-ft, under the MIT licence.")
    return "\n".join(lines[:3]) + "\n\n" + "\n\n".join(lines[3:])


def _dataset_terms(stated: Mapping[str, str | None], names: Sequence[str]) -> list[str]:
    """One line on the datasets whose terms are known, one on those to be checked."""
    known = [f"`{name}` ({stated[name]})" for name in names if stated.get(name)]
    unknown = [f"`{name}`" for name in names if not stated.get(name)]
    lines = []
    if known:
        lines.append(
            "The terms of the datasets flow down as well; as their makers state them: "
            + ", ".join(known)
            + "."
        )
    if unknown or not names:
        lines.append(
            "The terms of these datasets flow down too and are not recorded, so check them: "
            + (", ".join(unknown) or "the training data")
            + "."
        )
    return lines


def _versions(facts: CardFacts) -> str:
    names = ("spatialvla-ft", "torch", "transformers", "peft", "safetensors")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    return f"## Versions\n\nExported with Python {platform.python_version()}, {found}."


def _shorten_all(value: Any) -> Any:
    """A recipe whose absolute paths, which tell of a machine and its people, are shortened."""
    if isinstance(value, Mapping):
        return {key: _shorten_all(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_shorten_all(entry) for entry in value]
    return _shortened(value) if isinstance(value, str) else value


def _shortened(path: str) -> str:
    """The last two parts of an absolute path; anything else as it is."""
    parts = Path(path).parts
    if path.startswith(("/", "~")) and len(parts) > 2:
        return "…/" + "/".join(parts[-2:])
    return path
