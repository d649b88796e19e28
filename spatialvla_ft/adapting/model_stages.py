"""Stages that plan, train, evaluate and export the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialvla_ft.adapting import ledger
from spatialvla_ft.adapting.checks import check_fit, choose_precision
from spatialvla_ft.adapting.evaluating import evaluate, held_out
from spatialvla_ft.adapting.job import Job, of_card
from spatialvla_ft.adapting.ledger import Done, Outcome, Stage
from spatialvla_ft.checked_yaml import annotated
from spatialvla_ft.memory.machine import in_words, plan_beside_machine

if TYPE_CHECKING:
    from spatialvla_ft.training.preflight.report import Preflight

STILL = {
    "constant dimension",
    "gripper never moves",
    "gripper never crosses its threshold",
    "gripper never crosses 0.5",
}
"""Findings of the inspection that say of a dimension what the pre-flight says: it never changes."""
HEADER = """\
# What `spatialvla-ft adapt` trains, with every default written out. Behind each value stands where
# it comes from: recipe ({recipe}), given (on the command line), adapt (found or
# set by it), default. `spatialvla-ft train` runs this file too, on several GPUs if it is launched
# so; `spatialvla-ft adapt` goes on from there.
"""
EXPORT_SAMPLES = 4


def _plan_inputs(job: Job, done: Done) -> dict[str, Any]:
    from spatialvla_ft.training.identity import flat

    assert job.card is not None
    return {
        "the data": job.content,
        "the card": of_card(job.card),
        "the base": job.base_fingerprint,
        "the statistics": done["statistics"].digest,
        "the grid": done["grid"].digest,
        **flat(job.recipe.model_dump(mode="json")),
    }


def _plan(job: Job, done: Done) -> Outcome:
    from spatialvla_ft.training.identity import recipe_identity
    from spatialvla_ft.training.recipe import load_recipe

    assert job.card is not None
    check_fit(job, job.card)
    content = job.recipe.model_dump(mode="json")
    origins = dict(job.origins)
    if job.recipe.grid.fit is not None:
        settled = {"fit": None, "bins": None, "zero_bin": False}
        content["grid"] |= {**settled, "file": done["grid"].files["grid"]}
        origins |= dict.fromkeys([("grid", name) for name in (*settled, "file")], "adapt")
    precision, words = choose_precision(job)
    if precision != content["train"]["precision"]:
        content["train"]["precision"] = precision
        origins |= {("train", "precision"): "adapt"}
    if job.recipe.train.global_batch is not None:
        content["train"].pop("gradient_accumulation")  # it follows, for any number of processes
    file = job.out / "recipe.yaml"
    text = HEADER.format(recipe=job.recipe_file) + annotated(content, origins)
    scratch = file.with_name(".recipe.yaml")
    scratch.write_text(text, encoding="utf-8")
    recipe = load_recipe(scratch)
    given = _plan_inputs(job, done)
    train = recipe.train
    identity = {
        **{name: value for name, value in given.items() if name.startswith("the ")},
        **recipe_identity(recipe),
        "samples of a step": train.global_batch or train.batch_size * train.gradient_accumulation,
    }
    key = ledger.digest_of(identity)
    lines = [*words, *_make_room(job, recipe, key)]
    scratch.replace(file)
    memory = plan_beside_machine(recipe, job.base_folder)
    line, warnings = in_words(memory)
    own = sum(origin == "given" for origin in origins.values())
    lines += [f"every default: {file} ({own} value(s) given on the command line)", line]
    report = job.preflight()
    report.refuse()
    return Outcome(
        {"training": key, "memory": memory, "plan": report.plan, "precision": precision},
        files={"recipe": file},
        lines=lines,
        warnings=[*warnings, *_not_told(report, done["inspect"].result["findings"])],
    )


def _not_told(report: Preflight, findings: list[dict[str, Any]]) -> list[str]:
    """Warnings of the pre-flight but those of dimensions of which the inspection told the same."""
    told = {
        found["where"].removeprefix("action ")
        for found in findings
        if found["rule"] in STILL and found["severity"] != "note"
    }
    again = {
        text
        for facts in report.datasets
        for dimension, text in facts.still.items()
        if dimension in told
    }
    return [text for text in report.warnings if text not in again]


def _make_room(job: Job, recipe: Any, key: str) -> list[str]:
    """An earlier training by another plan is moved aside."""
    from spatialvla_ft.training import output

    before = ledger.read_record(job.records, "plan.before")
    if before is None or before.result.get("training") == key or not job.final.parent.exists():
        return []
    with output.held(job.final.parent):
        aside = output.move_aside(recipe)
    return [] if aside is None else [f"the earlier training is another one now; it lies in {aside}"]


def _train_inputs(job: Job, done: Done) -> dict[str, Any]:
    return {"the plan": done["plan"].result["training"]}


def _train(job: Job, done: Done) -> Outcome:
    from spatialvla_ft.training import output
    from spatialvla_ft.training.loop import train

    recipe = job.final_recipe
    result, resumed = output.finished(recipe), (job.final.parent / "checkpoints").is_dir()
    found = result is not None
    if result is None:
        run, report = job.run(), job.preflight()
        with job.view.training(run) as (on_log, on_depth):
            result = train(run, on_log=on_log, on_depth=on_depth, report=report)
    last = output.last_metrics(Path(recipe.output))
    standing, warnings = int(last.get("validation/warnings", 0)), []
    if standing and found:  # else training itself has told them
        warnings = [
            f"{standing} sign(s) of a collapsed policy stood at the last validation (see "
            "distinct_tokens/, variance_ratio/ and image/ in metrics.jsonl, docs/watching.md)"
        ]
    told = ", ".join(f"{k} {last[k]:.4g}" for k in ("loss", "validation/loss") if k in last)
    how = "continued and finished" if resumed else "trained"
    return Outcome(
        {"steps": recipe.train.steps, "metrics": last, "plan": done["plan"].result["training"]},
        files={"adapter": result, "metrics": job.final.parent / "metrics.jsonl"},
        lines=[f"{how} {recipe.train.steps:,} steps: {told}; {result}"],
        warnings=warnings,
    )


def _evaluate_inputs(job: Job, done: Done) -> dict[str, Any]:
    return {"the training": done["train"].digest, "the base": job.base_fingerprint}


def _evaluate(job: Job, done: Done) -> Outcome:
    job.forget_run()
    return evaluate(job)


def _export_inputs(job: Job, done: Done) -> dict[str, Any]:
    return {"the training": done["train"].digest}


def _export(job: Job, done: Done) -> Outcome:
    from spatialvla_ft.export.checkpoint import export_checkpoint
    from spatialvla_ft.export.inputs import random_inputs, recorded_inputs
    from spatialvla_ft.models.lora import is_adapter

    job.forget_run()
    out, lines = job.out / "export", []
    if out.exists():
        number = 1
        while (aside := out.with_name(f"export.old-{number}")).exists():
            number += 1
        out.rename(aside)
        lines.append(f"the earlier export is of another training; it is now {aside}")
    held = held_out(job)

    def make_inputs(processor: Any, config: Any) -> Any:
        if held is None:
            return random_inputs(processor, config, count=EXPORT_SAMPLES)
        return recorded_inputs(held, processor, config, count=EXPORT_SAMPLES)

    made = export_checkpoint(
        job.final, out, make_inputs, base=job.base if is_adapter(job.final) else None
    )
    return Outcome(
        json.loads(json.dumps(made.to_dict(), default=str)),
        files={"export": out},
        lines=[
            *lines,
            f"{out}: {made.parameters:,} parameters, merged in float32 (logits moved by at most "
            f"{made.merge_difference:.2g}); loaded again, it gives the stored answers",
        ],
    )


STAGES = (
    Stage("plan", "plan the training", _plan_inputs, _plan),
    Stage("train", "train", _train_inputs, _train),
    Stage("evaluate", "evaluate, open loop", _evaluate_inputs, _evaluate),
    Stage("export", "export", _export_inputs, _export),
)
