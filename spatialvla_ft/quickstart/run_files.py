"""What a run of the quickstart left behind, read and checked; what is missing has a name.

The verdict on a quickstart: did adaptation work, by a rule fixed beforehand?
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatialvla_ft.evaluation.outcome import ClosedLoop
from spatialvla_ft.viz.html import count, percent, rated

POLICIES = {
    "adapted": "Adapted (LoRA)",
    "exported": "Adapted, exported",
    "unadapted": "Base, not adapted",
    "scratch": "From scratch on B",
    "mean_action": "Mean action",
    "no_motion": "No motion",
    "no_ego3d": "Without Ego3D",
    "base_on_a": "Base, on its own robot A",
}
"""Closed-loop results, by the name of their file in eval/, and how the report calls them."""
OPTIONAL = ("no_ego3d",)
"""Not missed where they are not there."""
BASELINES = ("no_motion", "mean_action", "unadapted", "scratch")
"""What the adapted policy must beat."""
TRAININGS = {
    "base": "base, on robot A",
    "adapt": "adapted to B (LoRA)",
    "scratch": "from scratch on B",
    "no_ego3d": "without Ego3D",
}
TRAINED_BY = {
    "base_on_a": ("base",),
    "unadapted": ("base",),
    "scratch": ("scratch",),
    "adapted": ("base", "adapt"),
    "exported": ("base", "adapt"),
    "no_ego3d": ("no_ego3d",),
}
"""Trainings behind a policy; none behind the others."""
OPEN_LOOPS = ("adapted", "unadapted", "scratch")
GRIDS = {"robot_a": "robot A", "robot_b": "robot B"}
CONFIG = "export/config.json"
WALL = "wall_seconds"
"""Of environment.json: from the first stage to the report; only where one go ran them all."""


@dataclass(frozen=True)
class RunFiles:
    """Everything the report is made of.

    Attributes:
        folder: of the run.
        outcomes: closed loop, {name of POLICIES: one result per task}.
        open_loop, metrics: by name; metrics are the lines of metrics.jsonl.
        seeds: of the trainings whose result says it.
        grids: {name: picture}.
        config, export_check, environment, timings: content of the files, or None.
        missing: {file: what it would have held}.
    """

    folder: Path
    outcomes: dict[str, list[ClosedLoop]]
    open_loop: dict[str, dict[str, Any]]
    metrics: dict[str, list[dict[str, Any]]]
    seeds: dict[str, int]
    grids: dict[str, Path]
    config: dict[str, Any] | None
    export_check: dict[str, Any] | None
    environment: dict[str, Any] | None
    timings: list[dict[str, Any]] | None
    missing: dict[str, str]

    def seed(self, policy: str) -> str:
        """Of the trainings behind a policy, in words; empty where there are none."""
        trainings = TRAINED_BY.get(policy, ())
        if not trainings:
            return ""
        seeds = [str(self.seeds.get(name, "not recorded")) for name in trainings]
        if len(set(seeds)) == 1:
            return f"training seed {seeds[0]}"
        each = (f"{s} ({name})" for s, name in zip(seeds, trainings, strict=True))
        return f"training seeds {', '.join(each)}"


def read_run(folder: Path) -> RunFiles:
    """Read a run's folder.

    Raises:
        ValueError: no such folder, nothing of a run in it, or a file that is damaged or
            contradicts itself; files that are not there are named in `missing` instead.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder; pass the output folder of the quickstart, runs/quickstart "
            "unless you chose another"
        )
    missing: dict[str, str] = {}

    def found(name: str, meaning: str) -> Path | None:
        if (folder / name).is_file():
            return folder / name
        missing[name] = meaning
        return None

    def all_found(names: dict[str, tuple[str, str]]) -> dict[str, Path]:
        paths = {key: found(name, meaning) for key, (name, meaning) in names.items()}
        return {key: path for key, path in paths.items() if path is not None}

    evaluations = all_found(
        {k: (f"eval/{k}.json", f"closed loop: {label}") for k, label in POLICIES.items()}
    )
    open_loop = all_found(
        {k: (f"open_loop/{k}.json", f"open loop: {POLICIES[k]}") for k in OPEN_LOOPS}
    )
    metrics = all_found(
        {k: (f"{k}/metrics.jsonl", f"training of: {label}") for k, label in TRAININGS.items()}
    )
    grids = all_found(
        {k: (f"grids/{k}.png", f"picture of the action grid of {r}") for k, r in GRIDS.items()}
    )
    for name in OPTIONAL:
        missing.pop(f"eval/{name}.json", None)
        missing.pop(f"{name}/metrics.jsonl", None)
    config = found(CONFIG, "configuration of the exported checkpoint")
    check = found("export_check.json", "comparison of the export with the trained model")
    environment = found("environment.json", "versions and hardware")
    timings = found("timings.json", "stages with their commands and times")
    if not (evaluations or open_loop or metrics or timings):
        raise ValueError(
            f"{folder} holds none of {', '.join(missing)}; pass the output folder of the quickstart"
        )
    return RunFiles(
        folder=folder,
        outcomes={key: _outcomes(path) for key, path in evaluations.items()},
        open_loop={key: _object(path) for key, path in open_loop.items()},
        metrics={key: _lines(path) for key, path in metrics.items()},
        seeds={key: seed for key in TRAININGS if (seed := _seed(folder / key)) is not None},
        grids=grids,
        config=None if config is None else _object(config),
        export_check=None if check is None else _object(check),
        environment=None if environment is None else _object(environment),
        timings=None if timings is None else _timings(timings),
        missing=missing,
    )


def patch_layout(config: dict[str, Any] | None) -> tuple[int, int, int]:
    """(image size, patch size, Ego3D points per patch side); those of the quickstart if unknown."""
    config = config or {}
    vision = config.get("vision_config", {})
    return (
        int(vision.get("image_size", 64)),
        int(vision.get("patch_size", 16)),
        int(config.get("ego3d_patch_reso", 2)),
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON ({error}); write it again") from None


def _object(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object, got a {type(content).__name__}")
    return content


def _outcomes(path: Path) -> list[ClosedLoop]:
    content = _json(path)
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path} must hold a list of closed-loop results, one per task")
    return [_outcome(path, entry) for entry in content]


def _outcome(path: Path, entry: dict[str, Any]) -> ClosedLoop:
    try:
        return ClosedLoop.from_dict(entry)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number} is no valid JSON ({error})") from None
    return lines


def _seed(training: Path) -> int | None:
    """Seed of a training, if its result says it."""
    path = training / "final" / "trained.json"
    return _object(path).get("recipe", {}).get("seed") if path.is_file() else None


def _timings(path: Path) -> list[dict[str, Any]]:
    content = _json(path)
    if not isinstance(content, list) or not all({"stage", "seconds"} <= set(e) for e in content):
        raise ValueError(f"{path} must hold a list of {{stage, seconds, command}}")
    return content


LEAST_SOLVED = 0.85
"""Share of its episodes that the adapted policy must solve."""
LEAST_LEAD = 0.25
"""By so much its interval must begin above the end of every baseline's."""
MOST_UNADAPTED = 0.20
"""Share that the base may solve without adaptation: more, and there is little to adapt."""
MOST_WRONG = 0.05
"""Share of episodes that the adapted policy may end at a block that was not named."""


@dataclass(frozen=True)
class Condition:
    """One part of the rule.

    Attributes:
        rule: what is asked for.
        found: the numbers.
        holds: they are as asked for.
    """

    rule: str
    found: str
    holds: bool

    @property
    def sentence(self) -> str:
        """For a terminal or a page."""
        return f"{'Holds' if self.holds else 'DOES NOT HOLD'}: {self.rule}; {self.found}."


@dataclass(frozen=True)
class Verdict:
    """What the rule says, condition by condition."""

    conditions: tuple[Condition, ...]

    @property
    def passed(self) -> bool:
        """Every condition holds."""
        return all(condition.holds for condition in self.conditions)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What keeps it from passing."""
        return tuple(f"{c.rule}; {c.found}" for c in self.conditions if not c.holds)

    @property
    def headline(self) -> str:
        """The whole in one sentence."""
        number, failed = len(self.conditions), len(self.reasons)
        if self.passed:
            return f"Gate passed: all {number} conditions, fixed beforehand, hold."
        return f"Gate NOT passed: {failed} of {number} conditions, fixed beforehand, failed."

    @property
    def sentences(self) -> tuple[str, ...]:
        """The headline, then every condition with its numbers."""
        return (self.headline, *(condition.sentence for condition in self.conditions))


def reported(page: Path, run: RunFiles, verdict: Verdict) -> dict[str, Any]:
    """What `--json` says of a report that was written."""
    return {
        "report": str(page),
        "gate_passed": verdict.passed,
        "gate_reasons": list(verdict.reasons),
        "missing": list(run.missing),
    }


def judge(outcomes: Mapping[str, Sequence[ClosedLoop]]) -> Verdict:
    """Apply the rule to the adapted policy's first task.

    A baseline that is missing, or was evaluated under other conditions, fails: nothing was shown
    about it.

    Args:
        outcomes: results by the names of `run_files.POLICIES`.
    """
    if not outcomes.get("adapted"):
        rule = f"the adapted policy solves at least {percent(LEAST_SOLVED)}"
        return Verdict((Condition(rule, "it was not evaluated (eval/adapted.json)", False),))
    return Verdict(tuple(_conditions(outcomes, outcomes["adapted"][0])))


def _conditions(
    outcomes: Mapping[str, Sequence[ClosedLoop]], adapted: ClosedLoop
) -> Iterator[Condition]:
    yield Condition(
        f"the adapted policy solves at least {percent(LEAST_SOLVED)}",
        f"it solved {rated(adapted.solved)}",
        adapted.rate >= LEAST_SOLVED,
    )
    yield Condition(
        f"it ends at a wrong block in at most {percent(MOST_WRONG)}",
        f"it did in {rated(adapted.wrong)}",
        adapted.wrong.rate <= MOST_WRONG,
    )
    for name in BASELINES:
        baseline, trouble = _baseline(outcomes, adapted, name)
        if name == "unadapted":
            yield Condition(
                f"the base solves at most {percent(MOST_UNADAPTED)} without adaptation",
                trouble if baseline is None else f"it solved {rated(baseline.solved)}",
                baseline is not None and baseline.rate <= MOST_UNADAPTED,
            )
        rule = (
            f"its interval begins at least {100 * LEAST_LEAD:.0f} points above the end of that of "
            f"“{POLICIES[name]}”"
        )
        if baseline is None:
            yield Condition(rule, trouble, False)
            continue
        low, high = adapted.interval[0], baseline.interval[1]
        where = f"{abs(100 * (low - high)):.0f} points {'above' if low >= high else 'BELOW'}"
        found = f"{percent(low)} is {where} {percent(high)} ({count(baseline.solved)})"
        yield Condition(rule, found, low - high >= LEAST_LEAD)


def _baseline(
    outcomes: Mapping[str, Sequence[ClosedLoop]], adapted: ClosedLoop, name: str
) -> tuple[ClosedLoop | None, str]:
    """(the result to compare with, or what is wrong with it)."""
    same = [one for one in outcomes.get(name, ()) if one.task == adapted.task]
    if not same:
        return None, f"that was not evaluated (eval/{name}.json)"
    if (same[0].robot, same[0].settings) != (adapted.robot, adapted.settings):
        return None, f"that was evaluated under other conditions (eval/{name}.json)"
    return same[0], ""
