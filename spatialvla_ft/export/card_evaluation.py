"""Closed-loop results on a model card: N, the rate and its interval, as they were recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult

from ..evaluation.outcome import ClosedLoop, Share

BASELINES = ("no motion", "mean action")
"""Policies that are shown beside a model, and are not it."""

Evaluations = Mapping[str, Sequence[ClosedLoop]]
"""Results by the name of their file."""


def read_evaluations(files: Sequence[Path]) -> dict[str, list[ClosedLoop]]:
    """Results of `spatialvla-ft eval sim --out FILE`, by the name of the file.

    Raises:
        ValueError: a file is not such a result, or contradicts itself.
    """
    found = {}
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(content, list) or not content:
                raise ValueError("no list of closed-loop results")
            found[file.name] = [ClosedLoop.from_dict(entry) for entry in content]
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{file}: {error}; pass what `spatialvla-ft eval sim --out FILE` wrote"
            ) from None
    return found


def eval_results(evaluations: Evaluations) -> list[EvalResult]:
    """Success rates as the Hub shows them, of the model alone."""
    return [
        EvalResult(
            task_type="robotics",
            task_name=f"{result.robot}: {result.task}",
            dataset_type="simulation",
            dataset_name=f"spatialvla-ft tabletop simulation, {result.robot}, {result.task}",
            metric_type="success_rate",
            metric_name=(
                f"success rate of {result.episodes} episodes, Wilson 95 % "
                f"{result.interval[0]:.3f} to {result.interval[1]:.3f}"
            ),
            metric_value=result.rate,
        )
        for results in evaluations.values()
        for result in results
        if result.policy not in BASELINES
    ]


def evaluation_section(evaluations: Evaluations) -> str:
    """A table of all results, or that there are none."""
    if not evaluations:
        return "## Evaluation\n\nNone was given: how well this model acts is unknown."
    lines = [
        "## Evaluation",
        "",
        "Closed loop in the toolkit's tabletop simulation; N episodes per task, Wilson 95 % "
        "intervals. *Wrong object*: episodes that ended at a block that was not named. Simulation "
        "says little about a real robot.",
        "",
        "| policy | robot | task | successes / N | rate | 95 % interval | wrong object / N | "
        "rate | 95 % interval | settings | file |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    found = [(file, result) for file, results in evaluations.items() for result in results]
    for file, result in found:
        settings = ", ".join(f"{k} {v}" for k, v in sorted(result.settings.items()))
        lines.append(
            f"{_who(result)} | {_cells(result.solved)} | {_cells(result.wrong)} | {settings} | "
            f"{file} |"
        )
    swapped = [(file, result, result.swap) for file, result in found if result.swap is not None]
    if swapped:
        lines += [
            "",
            "The swap test: the same scenes once more with the other word. *Followed*: each of "
            "both words led to the block that it names; a policy that does not read follows in "
            "none.",
            "",
            "| policy | robot | task | followed / N | rate | 95 % interval | by chance | solved "
            "with the other word | wrong object with it | file |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
    for file, result, swap in swapped:
        others = " | ".join(
            f"{share.count} / {share.trials}" for share in (swap.solved, swap.wrong)
        )
        lines.append(
            f"{_who(result)} | {_cells(swap.follows)} | {swap.chance:.1%} | {others} | {file} |"
        )
    return "\n".join(lines)


def _who(result: ClosedLoop) -> str:
    return f"| {result.policy} | {result.robot} | {result.task}"


def _cells(share: Share) -> str:
    low, high = share.interval
    return f"{share.count} / {share.trials} | {share.rate:.1%} | {low:.1%} to {high:.1%}"
