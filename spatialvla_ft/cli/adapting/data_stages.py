"""Stages that look at the data: index, inspection, statistics, action grid."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from spatialvla_ft.cli.adapting import fingerprints
from spatialvla_ft.cli.adapting.checks import check_fit
from spatialvla_ft.cli.adapting.job import Job
from spatialvla_ft.cli.adapting.stages import Done, NeedsPersonError, Outcome, Stage

if TYPE_CHECKING:
    from spatialvla_ft.actions.grid import ActionGrid
    from spatialvla_ft.cli.grids_input import GridActions
    from spatialvla_ft.data.fits import MixtureActions
    from spatialvla_ft.data.inspection.draft import Draft

EPISODES = 100
"""Episodes that are inspected at most."""
WHY = {
    "gaussian": "bins of equal probability under a Gaussian per axis, as in the paper",
    "quantile": "bins that hold equally many of these actions",
    "uniform": "bins of equal width",
}


def _index_inputs(job: Job, done: Done) -> dict[str, Any]:
    return {"dataset": job.dataset, "the data": job.content}


def _index(job: Job, done: Done) -> Outcome:
    source = job.source
    steps = int(sum(source.episode_lengths))
    splits = {name: len(episodes) for name, episodes in source.splits.items()}
    told = ", ".join(f"{count} of {name}" for name, count in splits.items())
    return Outcome(
        {"name": source.name, "format": source.format, "steps": steps, "splits": splits},
        lines=[f"{source.format} dataset {source.name}: {steps:,} steps; episodes: {told}"],
    )


def _inspect_inputs(job: Job, done: Done) -> dict[str, Any]:
    card = job.card
    return {
        "the data": job.content,
        "the card": None if card is None else fingerprints.of_card(card),
        "split": job.recipe.data.datasets[0].split,
        "accept errors": job.accept_errors,
    }


def _inspect(job: Job, done: Done) -> Outcome:
    from spatialvla_ft.data.inspection import draft_for, inspect_dataset
    from spatialvla_ft.viz.inspection import write_inspection

    split, draft, lines = job.recipe.data.datasets[0].split, None, []
    if job.card is None:
        draft = draft_for(job.source, split=split, episodes=EPISODES)
        job.out.mkdir(parents=True, exist_ok=True)
        if not job.draft_file.exists():
            job.draft_file.write_text(draft.to_yaml(), encoding="utf-8")
            lines.append(f"drafted a card: {job.draft_file}")
        if job.accept_draft:
            del job.card  # it can be read now
    if job.card is not None:
        check_fit(job, job.card)
    card = job.draft_file if job.card is None else job.card
    seen = inspect_dataset(job.dataset, card=card, split=split, episodes=EPISODES)
    page = job.out / "inspection.html"
    write_inspection(seen, page)
    told = [(f.severity, f"{f.rule}, {f.where}: {f.evidence}; {f.cure}") for f in seen.findings]
    errors = [text for severity, text in told if severity == "error"]
    warnings = [text for severity, text in told if severity == "warning"]
    if job.card is None:
        raise NeedsPersonError(_ask_about_draft(job, draft, errors + warnings))
    if errors and not job.accept_errors:
        listed = "\n".join(f"- {text}" for text in errors)
        raise ValueError(
            f"the inspection found {len(errors)} error(s), with which training would learn "
            f"nonsense:\n{listed}\nMend the data or the card ({page} shows pictures), or go on "
            "regardless with --accept-errors"
        )
    count = {"errors": len(errors), "warnings": len(warnings)}
    lines.append(f"looked at {len(seen.episodes)} episodes: {len(errors)} errors, "
                 f"{len(warnings)} warnings; pictures: {page}")  # fmt: skip
    return Outcome(
        {"findings": [f.to_dict() for f in seen.findings], **count},
        files={"inspection": page},
        lines=lines,
        warnings=[*errors, *warnings],
    )


def _ask_about_draft(job: Job, draft: Draft | None, findings: list[str]) -> str:
    assert draft is not None
    doubts = [
        f"{key}: {text.replace('CHECK ', '')}"
        for key, text in draft.remarks.items()
        if "CHECK" in text
    ]
    listed = "\n".join(f"- {text}" for text in [*doubts, *findings]) or "- everything in it"
    return (
        f"{job.dataset} brings no card, so nobody has said what its columns mean. One was drafted: "
        f"{job.draft_file}\nRead it beside {job.out / 'inspection.html'}, and check:\n{listed}\n"
        f"Then run the same command with --card {job.draft_file} (or with --accept-draft, to trust "
        "it as it is)"
    )


def _statistics_inputs(job: Job, done: Done) -> dict[str, Any]:
    assert job.card is not None
    recipe = job.recipe
    part = recipe.data.datasets[0].model_dump(mode="json", exclude={"path", "card", "weight"})
    return {
        "the data": job.content,
        "the card": fingerprints.of_card(job.card),
        **{f"data.datasets.0.{name}": value for name, value in part.items()},
        "data.holdout": recipe.data.holdout,
        "seed": recipe.seed,
    }


def _statistics(job: Job, done: Done) -> Outcome:
    from spatialvla_ft.data.fit_report import checkpoint_layout
    from spatialvla_ft.data.scan import scan_dataset

    assert job.card is not None
    warnings = check_fit(job, job.card)
    dataset, held = job.opened.datasets[0], job.opened.heldout[0]
    scan = scan_dataset(dataset)
    file = job.out / "statistics.json"
    file.write_text(json.dumps(checkpoint_layout({dataset.name: scan}), indent=1) + "\n")
    found, names = scan.statistics, dataset.action_space.names
    episodes = {
        "train": len(dataset.episodes),
        "held out": 0 if held is None else len(held.episodes),
    }
    return Outcome(
        {"statistics": found.to_dict(), "episodes": episodes, "frames": len(dataset)},
        files={"statistics": file},
        lines=[
            f"{episodes['train']} episodes to train on ({len(dataset):,} frames), "
            f"{episodes['held out']} held out; actions {', '.join(names)}"
        ],
        warnings=warnings,
    )


def _grid_inputs(job: Job, done: Done) -> dict[str, Any]:
    asked = job.recipe.grid
    file = asked.file
    return {
        "the statistics": done["statistics"].digest,
        "the base": job.base_fingerprint,
        "grid.fit": asked.fit,
        "grid.min_sigma": asked.min_sigma,
        "grid.zero_bin": asked.zero_bin,
        "grid.file": None if file is None or not file.is_file() else fingerprints.of_file(file),
    }


def _grid(job: Job, done: Done) -> Outcome:
    from spatialvla_ft.actions.fit import KINDS
    from spatialvla_ft.actions.grid_io import grid_to_dict, save_grid
    from spatialvla_ft.cli.grids_fit import grid_report
    from spatialvla_ft.cli.grids_input import of_actions
    from spatialvla_ft.data.fits import MixtureActions
    from spatialvla_ft.data.statistics import dataset_statistics
    from spatialvla_ft.models.processing_spatialvla import SpatialVLAProcessor
    from spatialvla_ft.training.build import grid_of, known_grid
    from spatialvla_ft.viz.grids import save_grid_plot

    opened, asked = job.opened, job.recipe.grid
    dataset = opened.datasets[0]
    statistics = {dataset.name: dataset_statistics(dataset)}
    actions = MixtureActions([dataset], statistics, [1.0])
    known = known_grid(job.recipe)
    if asked.zero_bin if known is None else known.zero_bin:  # as training does
        actions = actions.symmetric()
    found = grid_of(job.recipe, opened.datasets, dict(actions.statistics), opened.weights)
    base = SpatialVLAProcessor.from_pretrained(job.base_folder).grid
    grid = base if found is None else found
    given = of_actions(dataset.name, actions, actions.statistics[dataset.name])
    losses = {kind: _loss(actions, given, kind, grid, asked) for kind in KINDS}
    report = grid_report(grid, given)
    own = float(_rms(grid, given))
    picture, file = job.out / "grid.png", job.out / "grid.json"
    save_grid_plot(picture, grid, given.sample, title=f"Action grid of {dataset.name}")
    save_grid(grid, file)
    others = ", ".join(f"{kind} {loss:.3f}" for kind, loss in losses.items() if kind != grid.kind)
    lines = [
        _choice(job, grid),
        f"it loses {own:.3f} of the range of an action (RMSE, normalised); the same number of bins "
        f"otherwise: {others}. Picture: {picture}",
    ]
    for name, error in report["reconstruction"].items():
        unit = error["unit"] if len(error["unit"]) < 5 else ""
        lines.append(f"  {name}: RMSE {error['rmse_robot']:.3g}, "
                     f"worst {error['max_robot']:.3g} {unit}".rstrip())  # fmt: skip
    return Outcome(
        {"grid": grid_to_dict(grid), "report": report, "rmse": own, "others": losses},
        files={"grid": file, "picture": picture},
        lines=lines,
    )


def _loss(
    actions: MixtureActions, given: GridActions, kind: Any, like: ActionGrid, asked: Any
) -> float:
    sigma = asked.min_sigma if kind == "gaussian" else 0.0
    grid = actions.grid(kind, bins=like.bins, min_sigma=sigma, zero_bin=like.zero_bin)
    return float(_rms(grid, given))


def _rms(grid: ActionGrid, given: GridActions) -> float:
    """RMSE of the arm's dimensions, normalised; of the gripper too where there is nothing else."""
    import numpy as np

    from spatialvla_ft.actions.reconstruction import reconstruct
    from spatialvla_ft.data.statistics import normalised_dimensions

    error = reconstruct(grid, given.sample).rmse
    arm = normalised_dimensions(given.space)
    return float(np.sqrt(np.mean(error[arm if arm.any() else slice(None)] ** 2)))


def _choice(job: Job, grid: ActionGrid) -> str:
    """Which grid, and why."""
    asked = job.recipe.grid
    if asked.file is not None:
        why = f"the one in {asked.file}, as grid.file says"
    elif asked.fit is None:
        why = "the base's own, as grid.fit is not set"
    else:
        origin = job.origins.get(("grid", "fit"))
        says = "as asked for" if origin == "given" else f"as {job.recipe_file.name} says"
        why = (
            f"{WHY[asked.fit]}, {says} (grid.fit={asked.fit}; others: gaussian, quantile, uniform)"
        )
    return f"{grid.kind} grid of {grid.total:,} tokens: {why}"


STAGES = (
    Stage("index", "index the dataset", _index_inputs, _index),
    Stage("inspect", "look at the dataset", _inspect_inputs, _inspect),
    Stage("statistics", "statistics of the actions", _statistics_inputs, _statistics),
    Stage("grid", "fit the action grid", _grid_inputs, _grid),
)
