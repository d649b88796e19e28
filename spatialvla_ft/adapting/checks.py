"""Whether a dataset, a base and a recipe can work together, before anything long begins.

Whether bf16, which recipes ask for on behalf of GPUs, is worth it where a processor trains.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from spatialvla_ft.adapting.job import Job

if TYPE_CHECKING:
    from spatialvla_ft.data.cards.card import Card

FEW = 3
"""Fewer held-out episodes say little."""


def check_fit(job: Job, card: Card) -> list[str]:
    """Warnings; what cannot work raises.

    Raises:
        ValueError: cameras without intrinsics, depth that nobody gives, or too few episodes.
    """
    _check_cameras(job, card)
    _check_depth(job, card)
    return _check_episodes(job)


def _cameras(job: Job) -> tuple[str, ...]:
    """What the model looks through: what the recipe says, or else the base."""
    if job.recipe.data.cameras is not None:
        return tuple(job.recipe.data.cameras)
    file = job.base_folder / "processor_config.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return tuple((known.get("observation") or {}).get("cameras") or ("primary",))


def _check_cameras(job: Job, card: Card) -> None:
    cameras = card.cameras or {}
    for slot in _cameras(job):
        if slot not in cameras:
            raise ValueError(
                f"the model looks through camera {slot!r}, but card {card.name!r} has "
                f"{sorted(cameras) or 'no cameras'}: name one of them {slot} in the card, or set "
                f"data.cameras=[{', '.join(sorted(cameras)) or '...'}]"
            )
        if slot in card.intrinsics or job.recipe.data.assume_intrinsics is not None:
            continue
        term = cameras[slot]
        width, height = _size(job, str(term.path))
        raise ValueError(
            f"the intrinsics K of camera {slot!r} (column {term.path}) of {job.dataset} are not "
            "known, and without them no pixel has a place in space. Write what a calibration says, "
            "its principal point cx, cy too (it is near the middle of the picture, hardly ever "
            f"in it), into the card ({_card_place(job)}), in pixels of the recorded pictures:\n"
            "    intrinsics:\n"
            f"      {slot}: {{fx: ..., fy: ..., cx: ..., cy: ..., width: {width}, "
            f"height: {height}}}\n"
            "or, as a guess, let a camera of data_mixtures/oxe_intrinsics.yaml stand in: "
            "data.assume_intrinsics=default"
        )


def _size(job: Job, key: str) -> tuple[int, int]:
    """(width, height) of the first picture of a camera, pixels."""
    source = job.source
    episode = next(iter(source.splits[job.recipe.data.datasets[0].split]))
    picture = source.rgb(key, episode, 0)
    return (0, 0) if picture is None else (picture.shape[1], picture.shape[0])


def _card_place(job: Job) -> str:
    file = job.recipe.data.datasets[0].card
    if file is not None:
        return str(file)
    own = Path(job.dataset) / "card.yaml"
    return str(own) if own.is_file() else "a file of your own, given with --card"


def _check_depth(job: Job, card: Card) -> None:
    content = json.loads((job.base_folder / "config.json").read_text(encoding="utf-8"))
    content |= job.recipe.model.overrides
    if not content.get("use_vision_zoe", True):
        return
    source = job.recipe.data.depth.source
    recorded = [slot for slot in _cameras(job) if slot in card.depth]
    own = (
        "the card names depth of " + ", ".join(recorded)
        if recorded
        else f"card {card.name!r} names no depth"
    )
    by_estimator = "data.depth={source: estimator, checkpoint: ZOEDEPTH_FOLDER, cache: DIR}"
    estimates = content.get("depth_source", "zoe") != "sensor"
    if source == "estimate" and not estimates:
        cure = "data.depth=sensor" if recorded else f"'{by_estimator}'"
        raise ValueError(
            f"data.depth is 'estimate', but the base {job.base} has no ZoeDepth, and {own}: set "
            f"{cure}, or start from a base with ZoeDepth (docs/depth.md)"
        )
    if source == "sensor" and len(recorded) < len(_cameras(job)):
        raise ValueError(
            f"data.depth is 'sensor', but {own}, of the cameras {list(_cameras(job))}: name it in "
            "the card (depth: and depth_scale:), or set "
            + ("data.depth=estimate" if estimates else f"'{by_estimator}'")
        )
    if source == "sensor" and card.depth_scale is None:
        raise ValueError(
            f"card {card.name!r} has depth but no depth_scale: say how many metres one unit of the "
            "stored depth is, e.g. depth_scale: 0.001 for millimetres"
        )


def _check_episodes(job: Job) -> list[str]:
    data = job.recipe.data
    part = data.datasets[0]
    count = len(job.source.splits[part.split])
    if part.validation is not None:
        return []
    if data.holdout == 0:
        return ["data.holdout is 0: nothing will tell overfitting, and no report is made"]
    held = max(1, round(data.holdout * count))
    if held >= count:
        raise ValueError(
            f"{job.dataset} has {count} episode(s) in split {part.split!r}, too few to hold "
            f"{held} out (data.holdout={data.holdout:g}): record more, or set data.holdout=0 and "
            "go without a report"
        )
    if held >= FEW:
        return []
    cure = "record more" if data.holdout >= 0.2 else "more with data.holdout=0.2"
    return [f"only {held} of {count} episodes are held out, so figures on them say little: {cure}"]


def choose_precision(job: Job) -> tuple[str, list[str]]:
    """(precision, lines for people) of a training.

    What the command line gives stays. A recipe's bf16 is measured on the processor that trains, and
    gives way to float32 where it is slower; the choice is kept with the job, so that a busy moment
    does not turn an adaptation into another one.
    """
    from spatialvla_ft.models.configuration_spatialvla import SpatialVLAConfig
    from spatialvla_ft.training.distributed import trains_on_cpu
    from spatialvla_ft.training.step_cost import NO_SLOWER, bf16_beside_float32

    asked = job.recipe.train.precision
    given = job.origins.get(("train", "precision")) == "given"
    if asked != "bf16" or given or not trains_on_cpu():
        return asked, []
    processor = f"{platform.machine()} {platform.processor()}".strip()
    file = job.records / "bf16.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if kept.get("processor") != processor:
        width = SpatialVLAConfig.from_pretrained(job.base_folder).text_config.hidden_size
        kept = {"processor": processor, "bf16_beside_float32": bf16_beside_float32(width)}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    ratio = kept["bf16_beside_float32"]
    if ratio <= NO_SLOWER:
        return asked, [f"precision: bf16, {ratio:.2g} times as long as float32 on this processor"]
    return "float32", [
        f"precision: float32, because bf16 products, which the recipe asks for, take {ratio:.1f} "
        "times as long on this processor; train.precision=bf16 on the command line takes it anyway"
    ]
