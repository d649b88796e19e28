"""The report's sections behind the results: training, open loop, export, environment, stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spatialvla_ft.quickstart.plots import plot_losses, series
from spatialvla_ft.quickstart.run_files import POLICIES, TRAININGS, WALL, RunFiles
from spatialvla_ft.viz.embed import figure_uri
from spatialvla_ft.viz.html import (
    absent,
    escape,
    paragraph,
    percent,
    picture,
    row,
    seconds,
    section,
    table,
)

FLAT = 0.03
"""A held-out loss that falls by a smaller share between two validations stays flat."""
RISEN = 0.02
"""... and one that ends so much above its lowest value has risen again."""


def training(run: RunFiles) -> str:
    """Loss curves, their last values, and what is odd about them."""
    gone = absent(n for n in run.missing if n.endswith("/metrics.jsonl"))
    if not run.metrics:
        return section("Training", gone)
    rows = []
    for name, lines in run.metrics.items():
        steps = max((line["step"] for line in lines), default=0)
        speed = series(lines, "samples_per_second")[1]
        last = {key: series(lines, f"validation/{key}")[1] for key in _VALIDATED}
        rows.append(
            [escape(TRAININGS[name]), str(run.seeds.get(name, "–")), f"{steps:,}"]
            + [f"{speed.mean():.0f}" if len(speed) else "–"]
            + [style(v[-1]) if len(v) else "–" for (_, style), v in zip(
                _VALIDATED.values(), last.values(), strict=True)]
        )  # fmt: skip
    head = ["training", "seed", "steps", "samples/s, mean", *(n for n, _ in _VALIDATED.values())]
    plots = [
        picture(figure_uri(figure), f"Loss curves: {title}", kind="pan")
        for title, figure in plot_losses(run.metrics).items()
    ]
    odd = [text for name, lines in run.metrics.items() if (text := held_out(name, lines))]
    return section(
        "Training",
        gone,
        row(plots, kind="plots"),
        paragraph(
            "Loss against optimiser steps, logarithmic axis. Strong lines: training loss, moving "
            "average of the logged batches (faint). Dashed: the same loss on held-out episodes, "
            "which were never trained on. The two plots have different action grids, so their "
            "losses do not compare.",
            kind="soft",
        ),
        *(paragraph(text) for text in odd),
        table(head, rows),
        paragraph("Held out: values after the last step.", kind="soft"),
    )


_VALIDATED = {
    "loss": ("held-out loss (nats/token)", "{:.2f}".format),
    "accuracy/translation": ("translation tokens right", percent),
    "accuracy/rotation": ("rotation tokens right", percent),
    "accuracy/gripper": ("gripper tokens right", percent),
}


def held_out(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """What is odd about a held-out loss; empty if it falls, or was measured once."""
    steps, losses = series(lines, "validation/loss")
    if len(losses) < 2:
        return ""
    best = int(losses.argmin())
    subject = f"The held-out loss of the training “{escape(TRAININGS[name])}”"
    if losses[-1] > (1 + RISEN) * losses[best]:
        return (
            f"{subject} was lowest at step {steps[best]:,.0f}, {losses[best]:.2f}, and ends at "
            f"{losses[-1]:.2f} while the training loss goes on falling: it has begun to learn its "
            "episodes by heart. The weights of the last step are used; success in closed loop "
            "above is what they are worth."
        )
    since = int((losses > (1 + FLAT) * losses[-1]).sum())  # validations before it was flat
    if since < len(losses) - 1:
        return (
            f"{subject} stays within {percent(FLAT)} of {losses[-1]:.2f} from step "
            f"{steps[since]:,.0f} on. It counts exact tokens, to which a neighbour, often as good, "
            "is as wrong as any other: success in closed loop may still have risen."
        )
    return ""


def open_loop(run: RunFiles) -> str:
    """Errors on recorded steps, per dimension, and where a policy is worse than the mean."""
    title = "Open loop: error on recorded steps"
    gone = absent(n for n in run.missing if n.startswith("open_loop/"))
    about = paragraph(
        "Mean absolute difference between predicted and recorded actions, over the predicted "
        "steps, in the robot's units per action; tokens right is the share of predicted tokens "
        "that equal the recorded action's. Open loop proves little alone: a policy can be "
        "close on average and still miss every object. Read it beside the success above."
    )
    if not run.open_loop:
        return section(title, gone, about)
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
    odd = [text for name, result in run.open_loop.items() if (text := against_mean(name, result))]
    return section(
        title,
        gone,
        about,
        table(head, rows),
        *(paragraph(text) for text in odd),
        table(["policy", "steps predicted", "recorded in", *types], shares),
    )


def against_mean(name: str, result: Mapping[str, Any]) -> str:
    """Where a policy is further off than always doing the mean action; empty if nowhere."""
    worse = [
        escape(dimension)
        for dimension, own, mean in zip(
            result["names"], result["l1"]["model"], result["l1"]["mean action"], strict=True
        )
        if own > mean
    ]
    if not worse:
        return ""
    if name == "unadapted":
        why = "Its actions are those of another robot."
    else:
        why = (
            "It says the most likely token, and where an action hardly depends on what is seen, "
            "the mean is closer on average than any such guess."
        )
    return (
        f"“{escape(POLICIES[name])}” is further off than the mean action in {_list(worse)}. {why}"
    )


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


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
    rows = [[escape(k), _value(value)] for k, value in run.environment.items() if k != WALL]
    return section("Environment", table(["what", "value"], rows, text_columns=2))


def stages(run: RunFiles) -> str:
    """What was run, with times."""
    title = "Every stage with its command"
    if run.timings is None:
        return section(title, absent(["timings.json"]))
    rows = [
        [
            escape(str(entry["stage"])),
            f"<code>{escape(str(entry.get('command', '')))}</code>",
            seconds(entry["seconds"]),
        ]
        for entry in run.timings
    ]
    total = sum(entry["seconds"] for entry in run.timings)
    wall = (run.environment or {}).get(WALL)
    ends = [("sum of all stages", total)] + ([] if wall is None else [("the whole run", wall)])
    rows += [[f"<strong>{n}</strong>", "", f"<strong>{seconds(v)}</strong>"] for n, v in ends]
    took = "" if wall is None else f": {seconds(wall)} instead of {seconds(total)}"
    return section(
        title,
        paragraph(
            "Each can be run by itself; times are wall clock. Two stages run at a time, so the "
            f"whole took less than their sum{took}."
        ),
        table(["stage", "command", "time"], rows, text_columns=2),
    )


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return escape(str(value))
