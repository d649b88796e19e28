"""Stages that look at the data: index, inspection, statistics, action grid."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from spatialvla_ft.adapting import ledger
from spatialvla_ft.adapting.checks import check_fit
from spatialvla_ft.adapting.job import Job, of_card, of_file
from spatialvla_ft.adapting.ledger import Done, NeedsPersonError, Outcome, Stage

if TYPE_CHECKING:
    from spatialvla_ft.actions.grid import ActionGrid
    from spatialvla_ft.data.stats.fits import MixtureActions
    from spatialvla_ft.data.stats.grid_actions import GridActions
    from spatialvla_ft.inspection.draft import Draft

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
        "the card": None if card is None else of_card(card),
        "split": job.recipe.data.datasets[0].split,
        "accept errors": job.accept_errors,
    }


def _inspect(job: Job, done: Done) -> Outcome:
    from spatialvla_ft.inspection import draft_for, inspect_dataset
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
    from spatialvla_ft.data.stats.statistics import RANGES

    recipe = job.recipe
    part = recipe.data.datasets[0].model_dump(mode="json", exclude={"path", "card", "weight"})
    ranges = {} if _began_without_ranges(job) else {"the ranges": RANGES}
    if recipe.data.action_range is not None:
        ranges["data.action_range"] = recipe.data.action_range
    return {
        "the data": job.content,
        "the card": of_card(job.card),
        **{f"data.datasets.0.{name}": value for name, value in part.items()},
        "data.holdout": recipe.data.holdout,
        "seed": recipe.seed,
        **ranges,
    }


def _began_without_ranges(job: Job) -> bool:
    """Whether a training is there that began before ranges were widened; it goes on as it was."""
    before = ledger.read_record(job.records, "statistics")
    return before is not None and "the ranges" not in before.inputs and job.final.parent.exists()


def _statistics(job: Job, done: Done) -> Outcome:
    from spatialvla_ft.actions.ranges import lost_words, widened_words
    from spatialvla_ft.data.stats.statistics import dataset_statistics
    from spatialvla_ft.training.action_ranges import action_statistics

    assert job.card is not None
    warnings = check_fit(job, job.card)
    dataset, held = job.opened.datasets[0], job.opened.heldout[0]
    found, space = action_statistics(job.recipe, dataset), dataset.action_space
    file = job.out / "statistics.json"
    file.write_text(json.dumps({dataset.name: found.to_dict()}, indent=1) + "\n")
    lost = dataset_statistics(dataset).widened & ~found.widened
    warnings += lost_words(found, lost, space.names, space.units)
    episodes = {
        "train": len(dataset.episodes),
        "held out": 0 if held is None else len(held.episodes),
    }
    return Outcome(
        {"statistics": found.to_dict(), "episodes": episodes, "frames": len(dataset)},
        files={"statistics": file},
        lines=[
            f"{episodes['train']} episodes to train on ({len(dataset):,} frames), "
            f"{episodes['held out']} held out; actions {', '.join(space.names)}",
            *widened_words(found, space.names, space.units),
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
        **({} if asked.bins is None else {"grid.bins": asked.bins}),
        "grid.file": None if file is None or not file.is_file() else of_file(file),
    }


def _grid(job: Job, done: Done) -> Outcome:
    from spatialvla_ft.actions.fit import KINDS
    from spatialvla_ft.actions.grid_io import grid_to_dict, save_grid
    from spatialvla_ft.actions.reconstruction import arm_rmse
    from spatialvla_ft.data.stats.fits import MixtureActions
    from spatialvla_ft.data.stats.grid_actions import grid_report, of_actions
    from spatialvla_ft.models.processing_spatialvla import SpatialVLAProcessor
    from spatialvla_ft.training.action_ranges import action_statistics
    from spatialvla_ft.training.build import grid_of, known_grid
    from spatialvla_ft.viz.grids import save_grid_plot

    opened, asked = job.opened, job.recipe.grid
    dataset = opened.datasets[0]
    statistics = {dataset.name: action_statistics(job.recipe, dataset)}
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
    own = arm_rmse(grid, given.sample)
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
    from spatialvla_ft.actions.reconstruction import arm_rmse

    sigma = asked.min_sigma if kind == "gaussian" else 0.0
    grid = actions.grid(kind, bins=like.bins, min_sigma=sigma, zero_bin=like.zero_bin)
    return arm_rmse(grid, given.sample)


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
