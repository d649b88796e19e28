"""The report of an adaptation: predicted actions of held-out episodes, beside baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialvla_ft.adapting.job import Job
from spatialvla_ft.adapting.ledger import Outcome

if TYPE_CHECKING:
    from spatialvla_ft.data.samples import SampleDataset
    from spatialvla_ft.evaluation.open_loop import OpenLoop

FRAMES = 256
"""Held-out steps that are predicted at most, evenly spaced."""
ADAPTED, BASE = "adapted", "base, not adapted"


def held_out(job: Job) -> SampleDataset | None:
    """Episodes that nothing was trained on; None where none are held out."""
    return job.opened.heldout[0]


def evaluate(job: Job) -> Outcome:
    """Predict held-out steps with the adapted model, the base as it was, and without a model."""
    held = held_out(job)
    if held is None:
        return Outcome({"l1": None}, warnings=["no episode is held out, so there is no report"])
    adapted = _predict(job, str(job.final), held)
    l1 = {ADAPTED: adapted.l1.pop("model"), **adapted.l1}
    base, why_not = _base(job, held)
    if base is not None:
        l1[BASE] = base.l1["model"]
    content = {
        **adapted.to_dict(),
        "l1": l1,
        "episodes": len(held.episodes),
        "base_not_run": why_not,
        "frames_of": "held-out episodes",
    }
    file = job.out / "open_loop.json"
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [f"{adapted.frames} steps of {len(held.episodes)} held-out episode(s): {file}"]
    lines += [why_not] if why_not else []
    return Outcome(content, files={"report": file}, lines=lines, warnings=_warnings(content))


def _warnings(report: dict[str, Any]) -> list[str]:
    """Where the adapted model is no better than what needs no model."""
    l1 = report["l1"]
    found = list(report["lost"])
    for rival in (name for name in l1 if name != ADAPTED):
        pairs = zip(report["names"], l1[ADAPTED], l1[rival], strict=True)
        worse = [name for name, own, other in pairs if own >= other and other > 0]
        if worse:
            found.append(
                f"open loop, {rival} is at least as close as the adapted policy in "
                f"{', '.join(worse)}: train longer, or look at the data (docs/training.md)"
            )
    return found


def _base(job: Job, held: SampleDataset) -> tuple[OpenLoop | None, str | None]:
    """The base as it was, with this robot's statistics; or why it cannot be run."""
    from spatialvla_ft.models.processing_spatialvla import SpatialVLAProcessor

    own = SpatialVLAProcessor.from_pretrained(job.base_folder)
    new = SpatialVLAProcessor.from_pretrained(job.final)
    if own.grid.slots != new.grid.slots:
        return None, (
            f"the base was not run: its actions are {own.grid.action_space.names}, this robot's "
            f"{new.grid.action_space.names}"
        )
    if own.layout != new.layout or own.action_chunk_size != new.action_chunk_size:
        return None, "the base was not run: it observes or predicts other steps than this model"
    return _predict(job, str(job.base_folder), held, statistics_of=new), None


def _predict(
    job: Job, checkpoint: str, held: SampleDataset, *, statistics_of: Any = None
) -> OpenLoop:
    import torch

    from spatialvla_ft.evaluation.open_loop import predicted_frames, run_open_loop
    from spatialvla_ft.models.lora import is_adapter
    from spatialvla_ft.policy.load import load_policy_model
    from spatialvla_ft.training.build import depth_input, estimated_depth
    from spatialvla_ft.training.depth_plan import Fitted, kept_depth
    from spatialvla_ft.training.output import DEPTH

    recipe = job.final_recipe
    # An adapter's base may lie elsewhere than while it was trained.
    base = str(job.base_folder) if is_adapter(checkpoint) else None
    model, processor = load_policy_model(Path(checkpoint), base=base, canary=statistics_of is None)
    if statistics_of is not None:
        processor.statistics[held.name] = statistics_of.statistics[held.name]
        processor.intrinsic_config[held.name] = statistics_of.intrinsic_config[held.name]
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    depth = estimated_depth(recipe, model, processor.layout.cameras)
    read = None if depth is None else lambda frame: depth(held[frame])
    kept = job.final.parent / DEPTH
    if recipe.data.depth.source == "estimate" and kept.is_dir():
        # Both policies look through the base's ZoeDepth at the same steps.
        depth, shown = kept_depth(recipe, processor, kept), Fitted(held, processor.image_size)
        depth.estimator.to(model.device)
        depth.fill(shown, predicted_frames(held, FRAMES), batch_size=recipe.data.depth.batch_size)
        read = lambda frame: depth(shown[frame])  # noqa: E731
    with job.view.watching() as begin:
        what = ADAPTED if statistics_of is None else "base"
        return run_open_loop(
            model,
            processor,
            held,
            unnorm_key=held.name,
            frames=FRAMES,
            depth=depth_input(recipe.data.depth) if depth is None else "sensor",
            read=read,
            on_frames=begin(f"{' ' * 11} {what}", min(FRAMES, len(held))),
        )
