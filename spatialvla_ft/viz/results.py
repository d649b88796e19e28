"""The report's sections of numbers: summary, stages, training, success, open loop, export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spatialvla_ft.evaluation.outcome import ClosedLoop
from spatialvla_ft.sim.tasks import TOUCH_DISTANCE, get_task
from spatialvla_ft.viz.curves import plot_losses, series
from spatialvla_ft.viz.embed import figure_uri
from spatialvla_ft.viz.gate import RULE, judge
from spatialvla_ft.viz.html import absent, escape, paragraph, picture, section, table
from spatialvla_ft.viz.numbers import NBSP, count, interval, percent, seconds
from spatialvla_ft.viz.run_files import BASELINES, POLICIES, TRAININGS, RunFiles
from spatialvla_ft.viz.success import plot_success

_CLAUSES = {
    "unadapted": "the same base without adaptation",
    "scratch": "the same network trained from random weights on robot B alone",
    "mean_action": "always doing the mean demonstrated action",
    "no_motion": "not moving",
}


def summary(run: RunFiles) -> str:
    """Three sentences and the verdict of the gate."""
    gate = judge(run.outcomes)
    adapted = next(iter(run.outcomes.get("adapted", ())), None)
    if adapted is None:
        first = "The adapted policy was not evaluated in this run."
    else:
        moving = adapted.settings.get("camera_mode") == "random"
        first = (
            "A small spatial vision-language-action model, pre-trained on demonstrations of one "
            "simulated robot (A) and adapted with LoRA to a second one (B), solved "
            f"<strong>{count(adapted)} episodes ({percent(adapted.rate)}, 95{NBSP}% interval "
            f"{interval(adapted)})</strong> of the task “{escape(adapted.task)}” on robot B, seen "
            "by one calibrated camera"
            + (" that stands somewhere else in every episode." if moving else ".")
        )
    clauses = [
        f"{meaning} {count(o)} ({interval(o)}{_difference(o, adapted)})"
        for name, meaning in _CLAUSES.items()
        for o in run.outcomes.get(name, ())[:1]
    ]
    second = f"For comparison: {'; '.join(clauses)}." if clauses else "No baseline was evaluated."
    third = "Success is counted in closed loop: the policy acts and the physics answers"
    if adapted is None or adapted.task == "touch":
        third += (
            f"; an episode is solved if within {get_task('touch').seconds:g}{NBSP}s the "
            f"fingertips touch the block or come within {100 * TOUCH_DISTANCE:g}{NBSP}cm of it"
        )
    third += "."
    if gate.passed:
        text = f"<strong>Gate passed.</strong> The rule: {RULE}."
    else:
        reasons = "; ".join(escape(reason) for reason in gate.reasons)
        text = f"<strong>Gate NOT passed.</strong> The rule: {RULE}. Here {reasons}."
    missing = ""
    if run.missing:
        listed = "".join(
            f"<li><code>{escape(name)}</code> ({escape(meaning)})</li>"
            for name, meaning in run.missing.items()
        )
        missing = f'<div class="missing">Missing from this run: <ul>{listed}</ul></div>'
    return (
        paragraph(f"{first} {second} {third}", kind="lead")
        + paragraph(text, kind="verdict good" if gate.passed else "verdict")
        + missing
    )


def _difference(outcome: ClosedLoop, adapted: ClosedLoop | None) -> str:
    same = ("robot", "task", "settings")
    if adapted is None or all(getattr(outcome, k) == getattr(adapted, k) for k in same):
        return ""
    return ", under other conditions"


def stages(run: RunFiles) -> str:
    """What was run, with times."""
    if run.timings is None:
        return section("What was done", absent(["timings.json"]))
    rows = [
        [
            escape(str(entry["stage"])),
            f"<code>{escape(str(entry.get('command', '')))}</code>",
            seconds(entry["seconds"]),
        ]
        for entry in run.timings
    ]
    total = sum(entry["seconds"] for entry in run.timings)
    rows.append(
        ["<strong>all stages, one after another</strong>", "", f"<strong>{seconds(total)}</strong>"]
    )
    return section(
        "What was done",
        paragraph(
            "Every stage is a command that can be run by itself; times are wall clock. Two stages "
            "run at a time, so the whole took less than their sum."
        ),
        table(["stage", "command", "time"], rows, text_columns=2),
    )


def success(run: RunFiles) -> str:
    """Closed-loop success: chart and table."""
    rows = [_row(name, o) for name in POLICIES for o in run.outcomes.get(name, ())]
    gone = absent(f"eval/{n}.json" for n in POLICIES if n not in run.outcomes)
    if not rows:
        return section("Success in closed loop", gone)
    head = ["policy", "robot", "task", "solved", "rate", "Wilson 95 % interval"]
    head += ["wrong object", "actions per episode"]
    return section(
        "Success in closed loop",
        gone,
        picture(
            figure_uri(plot_success(run.outcomes)), "Bar chart of the success rates below",
            "Bars: share of episodes solved. Whiskers: Wilson 95 % interval. Labels: solved / "
            "evaluated episodes.",
        ),
        table(head, rows, text_columns=3),
        paragraph(
            "Solved and wrong object count episodes; wrong object means that the episode ended at "
            "a block that was not named, which cannot happen where there is one block. Actions per "
            "episode is the mean over all episodes, solved or not. The interval holds the chance "
            "of the drawn episodes alone, not the chance of training again with another seed.",
            kind="soft",
        ),
        paragraph(_settings(run.outcomes), kind="soft"),
    )  # fmt: skip


def _row(name: str, outcome: ClosedLoop) -> list[str]:
    return [
        escape(POLICIES[name]) + (" (baseline)" if name in BASELINES else ""),
        escape(outcome.robot),
        escape(outcome.task),
        f"{outcome.successes}/{outcome.episodes}",
        percent(outcome.rate),
        interval(outcome),
        f"{outcome.wrong_objects}/{outcome.episodes}",
        f"{outcome.mean_steps:.1f}",
    ]


def _settings(outcomes: Mapping[str, list[ClosedLoop]]) -> str:
    """Conditions of every evaluation, said once where they agree."""
    groups: dict[str, list[str]] = {}
    for name, results in outcomes.items():
        for o in results:
            text = ", ".join(
                f"{key.replace('_', ' ')} {value}" for key, value in o.settings.items()
            )
            groups.setdefault(text, []).append(POLICIES[name])
    parts = [
        (f"{', '.join(dict.fromkeys(names))}: " if len(groups) > 1 else "") + text
        for text, names in groups.items()
    ]
    return "Conditions: " + escape("; ".join(parts)) + "."


def training(run: RunFiles) -> str:
    """Loss curves and their last values."""
    gone = absent(f"{n}/metrics.jsonl" for n in TRAININGS if n not in run.metrics)
    if not run.metrics:
        return section("Training", gone)
    rows = []
    for name, label in TRAININGS.items():
        if name not in run.metrics:
            continue
        lines = run.metrics[name]
        steps = max((line["step"] for line in lines), default=0)
        speed = series(lines, "samples_per_second")[1]
        last = {key: series(lines, f"validation/{key}")[1] for key in _VALIDATED}
        rows.append(
            [escape(label), f"{steps:,}", f"{speed.mean():.0f}" if len(speed) else "–"]
            + [style(v[-1]) if len(v) else "–" for (_, style), v in zip(
                _VALIDATED.values(), last.values(), strict=True)]
        )  # fmt: skip
    return section(
        "Training",
        gone,
        picture(
            figure_uri(plot_losses(run.metrics)), "Loss curves",
            "Loss against optimiser steps, logarithmic axis. Strong lines: training loss, moving "
            "average of the logged batches (faint). Dashed: the same loss on held-out episodes. "
            "The two panels have different action grids, so their losses do not compare.",
        ),
        table(["training", "steps", "samples/s, mean", *(n for n, _ in _VALIDATED.values())], rows),
        paragraph("Held out: episodes never trained on; values after the last step.", kind="soft"),
    )  # fmt: skip


_VALIDATED = {
    "loss": ("held-out loss (nats/token)", "{:.2f}".format),
    "accuracy/translation": ("translation tokens right", percent),
    "accuracy/rotation": ("rotation tokens right", percent),
    "accuracy/gripper": ("gripper tokens right", percent),
}


def open_loop(run: RunFiles) -> str:
    """Errors on recorded steps, per dimension."""
    gone = absent(n for n in run.missing if n.startswith("open_loop/"))
    parts = [gone]
    if run.open_loop:
        first = next(iter(run.open_loop.values()))
        head = ["mean |error| of"]
        head += [
            escape(name) + ("" if unit in ("", "1") else f" ({escape(unit)})")
            for name, unit in zip(first["names"], first["units"], strict=True)
        ]
        rows = [
            [f"{escape(POLICIES[name])}", *(f"{v:.4f}" for v in result["l1"]["model"])]
            for name, result in run.open_loop.items()
        ]
        rows += [
            [escape(policy), *(f"{v:.4f}" for v in values)]
            for policy, values in first["l1"].items()
            if policy != "model"
        ]
        shares = [
            [escape(POLICIES[name]), f"{result['frames']:,}", escape(str(result["dataset"]))]
            + [percent(v) for v in result["token_accuracy"].values()]
            for name, result in run.open_loop.items()
        ]
        types = [f"{escape(kind)} tokens right" for kind in first["token_accuracy"]]
        parts += [
            table(head, rows),
            table(["policy", "steps predicted", "recorded in", *types], shares),
        ]
    parts.append(
        paragraph(
            "Mean absolute difference between predicted and recorded actions, over the predicted "
            "steps, in the robot's units per action; tokens right is the share of predicted tokens "
            "that equal the recorded action's. Open loop proves little alone: a policy can be "
            "close on average and still miss every object, and recorded steps may come from "
            "episodes that were trained on. Read it beside the success above."
        )
    )
    return section("Open loop: error on recorded steps", *parts)


def export(run: RunFiles) -> str:
    """Whether the exported checkpoint is the trained model."""
    if run.export_check is None:
        return section("Export", absent(["export_check.json"]))
    rows = [[escape(key.replace("_", " ")), _value(v)] for key, v in run.export_check.items()]
    parts = [
        paragraph(
            "The adapter is merged, written as a checkpoint folder and loaded again by a fresh "
            "process; both models then answer the same stored inputs."
        ),
        table(["what", "value"], rows),
    ]
    pair = [run.outcomes.get(name, [None])[0] for name in ("adapted", "exported")]
    if all(o is not None and o.results for o in pair):
        ended = [{r.seed: (r.success, r.steps) for r in o.results} for o in pair if o]
        shared = ended[0].keys() & ended[1].keys()
        same = sum(ended[0][seed] == ended[1][seed] for seed in shared)
        parts.append(
            paragraph(
                f"In closed loop, {same} of {len(shared)} episodes with the same seed ended the "
                "same way after the same number of actions with the trained and with the exported "
                "model."
            )
        )
    return section("Export", *parts)


def environment(run: RunFiles) -> str:
    """Versions and hardware."""
    if run.environment is None:
        return section("Environment", absent(["environment.json"]))
    rows = [[escape(key), _value(value)] for key, value in run.environment.items()]
    return section("Environment", table(["what", "value"], rows, text_columns=2))


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return escape(str(value))
