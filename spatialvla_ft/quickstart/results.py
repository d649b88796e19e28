"""The report's sections of success: the lead, the verdict, wrong objects and the swap test."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from spatialvla_ft.evaluation.outcome import ClosedLoop, Share
from spatialvla_ft.quickstart.run_files import (
    BASELINES,
    OPTIONAL,
    POLICIES,
    RunFiles,
    Verdict,
    judge,
)
from spatialvla_ft.quickstart.scenes import Scenes, failing, swapped
from spatialvla_ft.sim.tasks import TOUCH_DISTANCE, get_task
from spatialvla_ft.viz.html import (
    NBSP,
    Bar,
    absent,
    bars,
    count,
    escape,
    interval,
    paragraph,
    percent,
    section,
    table,
)


def lead(run: RunFiles) -> str:
    """What was done and what came of it, in two or three sentences."""
    adapted = next(iter(run.outcomes.get("adapted", ())), None)
    if adapted is None:
        return paragraph("The adapted policy was not evaluated in this run.", kind="lead")
    counts = adapted.settings["distractors"]
    few, many = 1 + min(counts), 1 + max(counts)
    among = "" if many == 1 else f" among {few} to {many}" if few < many else f" among {many}"
    moving = adapted.settings.get("camera_mode") == "random"
    text = (
        "A small vision-language-action model that sees in space learnt from demonstrations of one "
        "simulated robot (A), and was then adapted with LoRA to another (B). Told to "
        f"“{escape(get_task(adapted.task).instruction('…', '…'))}”{among}, seen by one calibrated "
        f"camera{' that stands somewhere else every time' * moving}, it solves <strong>"
        f"{count(adapted.solved)} scenes</strong> on robot B"
    )
    for base in run.outcomes.get("unadapted", ())[:1]:
        text += f"; without adaptation it solves {count(base.solved)}{_difference(base, adapted)}"
    return paragraph(f"{text}.", kind="lead")


def missing(run: RunFiles) -> str:
    """Files that the run lacks; empty if it is whole."""
    if not run.missing:
        return ""
    listed = "".join(
        f"<li><code>{escape(name)}</code> ({escape(meaning)})</li>"
        for name, meaning in run.missing.items()
    )
    return f'<div class="missing">Missing from this run: <ul>{listed}</ul></div>'


def success(run: RunFiles, scenes: Scenes) -> str:
    """Verdict, chart and table of closed-loop success, and an episode that failed."""
    rows = _each(run)
    gone = absent(f"eval/{n}.json" for n in POLICIES if f"eval/{n}.json" in run.missing)
    verdict = _verdict(judge(run.outcomes))
    if not rows:
        return section("Success in closed loop", gone, verdict)
    head = ["policy", "robot", "task", "training seed", "solved", "rate", "Wilson 95 % interval"]
    head += ["actions per episode"]
    cells = [
        [
            _named(name),
            escape(o.robot),
            escape(o.task),
            escape(run.seed(name).removeprefix("training seed ")) or "–",
            f"{o.successes}/{o.episodes}",
            percent(o.rate),
            interval(o.solved),
            f"{o.mean_steps:.1f}",
        ]
        for name, o in rows
    ]
    return section(
        "Success in closed loop",
        gone,
        paragraph(f"The policy acts and the physics answers. {_solved_when(rows[0][1].task)}"),
        _chart(run, lambda outcome: outcome.solved),
        paragraph("Bars: share of scenes solved. Whiskers: Wilson 95 % interval.", kind="soft"),
        verdict,
        table(head, cells, text_columns=4),
        paragraph(
            "Actions per episode is the mean over all episodes, solved or not. An interval holds "
            "the chance of the drawn episodes alone, not that of training again: another training "
            "seed may land outside it.",
            kind="soft",
        ),
        paragraph(_settings(run.outcomes), kind="soft"),
        failing(scenes),
    )


def words(run: RunFiles, scenes: Scenes) -> str:
    """Wrong objects, and the same scenes with the other word."""
    title = "Does it follow the words?"
    rows = _each(run)
    if not any(max(o.settings["distractors"]) for _, o in rows):
        return section(
            title,
            paragraph("Only one block stood on the table, so the words carried no choice."),
        )
    parts = [
        "<h3>Wrong block</h3>",
        paragraph(
            "An episode ends when a block is touched that was not named. Scenes with one block "
            "count too, and cannot end so."
        ),
        _chart(run, lambda outcome: outcome.wrong),
    ]
    tried = [(name, outcome, outcome.swap) for name, outcome in rows if outcome.swap is not None]
    if tried:
        chances = {swap.chance for _, _, swap in tried}
        head = ["policy", "scenes", "solved with the other word", "wrong block", "followed both"]
        cells = [
            [
                _named(name),
                str(swap.episodes),
                f"{percent(swap.solved.rate)} ({interval(swap.solved)})",
                f"{percent(swap.wrong.rate)} ({interval(swap.wrong)})",
                f"{percent(swap.follows.rate)} ({interval(swap.follows)})",
            ]
            for name, _, swap in tried
        ]
        followed = [Bar(POLICIES[n], run.seed(n), swap.follows, _kind(n)) for n, _, swap in tried]
        parts += [
            "<h3>The same scene, the other word</h3>",
            paragraph(
                "Every scene with a second block was run once more, and the instruction named that "
                "one. Shown: scenes in which <em>each</em> of the two words led to the block that "
                "it names. A policy that does not read ends at the same block both times, and "
                "follows in none."
            ),
            swapped(scenes),
            bars(
                followed,
                mark=min(chances),
                marked=f"by chance {percent(min(chances))}: one of the blocks, picked anew each "
                "time",
            ),
            table(head, cells),
        ]
    else:
        parts.append(paragraph("The same scenes with the other word were not tried.", kind="soft"))
    return section(title, *parts)


def _each(run: RunFiles) -> list[tuple[str, ClosedLoop]]:
    return [(name, o) for name in POLICIES for o in run.outcomes.get(name, ())]


def _chart(run: RunFiles, share: Callable[[ClosedLoop], Share]) -> str:
    rows = _each(run)
    tasks = {outcome.task for _, outcome in rows}
    return bars(
        [
            Bar(
                POLICIES[name] + (f", {outcome.task}" if len(tasks) > 1 else ""),
                run.seed(name),
                share(outcome),
                _kind(name),
            )
            for name, outcome in rows
        ]
    )


def _kind(name: str) -> str:
    if name in BASELINES:
        return "baseline"
    return "other" if name in ("base_on_a", *OPTIONAL) else "own"


def _named(name: str) -> str:
    role = " (baseline)" if name in BASELINES else " (ablation)" if name in OPTIONAL else ""
    return escape(POLICIES[name]) + role


def _verdict(verdict: Verdict) -> str:
    headline, *conditions = verdict.sentences
    listed = "".join(
        f'<li class="{"" if condition.holds else "failed"}">{escape(text)}</li>'
        for condition, text in zip(verdict.conditions, conditions, strict=True)
    )
    kind = "verdict good" if verdict.passed else "verdict"
    return f'<div class="{kind}"><strong>{escape(headline)}</strong><ul>{listed}</ul></div>'


def _solved_when(task: str) -> str:
    if task != "touch":
        return ""
    return (
        f"A scene is solved if within {get_task('touch').seconds:g}{NBSP}s the fingertips touch "
        f"the named block or come within {100 * TOUCH_DISTANCE:g}{NBSP}cm of it, and no other "
        "block before it."
    )


def _difference(outcome: ClosedLoop, adapted: ClosedLoop) -> str:
    same = ("robot", "task", "settings")
    if all(getattr(outcome, key) == getattr(adapted, key) for key in same):
        return ""
    return ", under other conditions"


def _settings(outcomes: Mapping[str, list[ClosedLoop]]) -> str:
    """Conditions of every evaluation, said once where they agree."""
    groups: dict[str, list[str]] = {}
    for name, results in outcomes.items():
        for o in results:
            text = ", ".join(
                f"{key.replace('_', ' ')} {_setting(value)}" for key, value in o.settings.items()
            )
            groups.setdefault(text, []).append(POLICIES[name])
    parts = [
        (f"{', '.join(dict.fromkeys(names))}: " if len(groups) > 1 else "") + text
        for text, names in groups.items()
    ]
    return "Conditions: " + escape("; ".join(parts)) + "."


def _setting(value: object) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)
