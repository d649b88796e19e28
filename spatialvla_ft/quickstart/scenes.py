"""Which evaluated episodes the report shows moving, and the sections that show them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spatialvla_ft.evaluation.outcome import ClosedLoop
from spatialvla_ft.processes import WorkerError
from spatialvla_ft.quickstart.plots import plot_view
from spatialvla_ft.quickstart.replay import Episode, Panel, Replay, replay_episodes, side_by_side
from spatialvla_ft.quickstart.run_files import RunFiles, patch_layout
from spatialvla_ft.viz.embed import figure_uri, film_uri, jpeg_uri
from spatialvla_ft.viz.html import absent, escape, moving, paragraph, picture, row

STRIP = 6
"""Stills of an episode."""


@dataclass(frozen=True)
class Choice:
    """Episodes to show, by what they are for, and how they were chosen.

    Attributes:
        adapted, unadapted: the same scene.
        told, retold: the adapted policy with the scene's own word and with the other.
        failure: the adapted policy, not solving.
        words: {"pair", "swap"}: how these were chosen, in a sentence.
    """

    adapted: Episode | None
    unadapted: Episode | None
    told: Episode | None
    retold: Episode | None
    failure: Episode | None
    words: dict[str, str]

    @property
    def episodes(self) -> dict[str, Episode]:
        """Those that there are, by name."""
        names = ("adapted", "unadapted", "told", "retold", "failure")
        return {name: e for name in names if (e := getattr(self, name)) is not None}


def choose(run: RunFiles) -> Choice:
    """The first scenes that tell the story; where none does, the first ones that there are."""
    adapted = next(iter(run.outcomes.get("adapted", ())), None)
    if adapted is None:
        return Choice(None, None, None, None, None, {})
    words: dict[str, str] = {}
    base = _same_scenes(run, adapted)
    pair = None if base is None else _pair(adapted, base, words)
    swap = _swap(adapted, words)
    if pair is None:
        shown = adapted.traced(success=True) or adapted.traced(success=False)
        pair = shown[0] if shown else None
    failed = [seed for seed in adapted.traced(success=False) if seed != pair]
    return Choice(
        adapted=None if pair is None else Episode(adapted, pair),
        unadapted=None if pair is None or base is None else Episode(base, pair),
        told=None if swap is None else Episode(adapted, swap),
        retold=None if swap is None else Episode(adapted, swap, swapped=True),
        failure=Episode(adapted, failed[0]) if failed else None,
        words=words,
    )


def blocks(outcome: ClosedLoop, seed: int) -> int:
    """Blocks on the table in this episode, of a task that names one."""
    counts = outcome.settings["distractors"]
    return 1 + counts[seed % len(counts)]


def _same_scenes(run: RunFiles, adapted: ClosedLoop) -> ClosedLoop | None:
    """The base without adaptation, evaluated under the same conditions, with a shared trace."""
    for base in run.outcomes.get("unadapted", ()):
        same = (base.robot, base.task, base.settings)
        shared = [s for s, trace in adapted.traces.items() if trace and base.traces.get(s)]
        if same == (adapted.robot, adapted.task, adapted.settings) and shared:
            return base
    return None


def _pair(adapted: ClosedLoop, base: ClosedLoop, words: dict[str, str]) -> int:
    solved, before = ({r.seed: r.success for r in outcome.results} for outcome in (adapted, base))
    shared = [seed for seed, trace in adapted.traces.items() if trace and base.traces.get(seed)]
    telling = [seed for seed in shared if solved[seed] and not before[seed]]
    crowded = [seed for seed in telling if blocks(adapted, seed) > 1]
    kept = f"the {len(shared)} scenes whose motions were kept"
    if telling:
        what = "with more than one block " * bool(crowded)
        words["pair"] = (
            f"Of {kept}, the adapted policy solved {sum(solved[s] for s in shared)} and the base "
            f"{sum(before[s] for s in shared)}. This is the first {what}that only the adapted "
            "policy solved."
        )
        return (crowded or telling)[0]
    words["pair"] = f"None of {kept} was solved by the adapted policy alone; this is the first."
    return shared[0]


def _swap(adapted: ClosedLoop, words: dict[str, str]) -> int | None:
    swap = adapted.swap
    if swap is None:
        return None
    first, other = (
        {r.seed: r.success for r in results} for results in (adapted.results, swap.results)
    )
    kept = [seed for seed, trace in swap.traces.items() if trace and adapted.traces.get(seed)]
    if not kept:
        return None
    both = [seed for seed in kept if first[seed] and other[seed]]
    words["swap"] = (
        f"Of the {len(kept)} such scenes whose motions were kept, both words were followed in "
        f"{len(both)}; this is the first of {'those' if both else 'all'}."
    )
    return (both or kept)[0]


@dataclass(frozen=True)
class Scenes:
    """The chosen episodes, replayed.

    Attributes:
        choice: what was chosen.
        replays: by the names of `Choice.episodes`.
        trouble: why there are none, as HTML.
    """

    choice: Choice
    replays: dict[str, Replay]
    trouble: str

    def has(self, *names: str) -> bool:
        """All of these can be shown."""
        return all(name in self.replays for name in names)


def replayed(run: RunFiles) -> Scenes:
    """Choose and replay, all in one process."""
    choice = choose(run)
    episodes = choice.episodes
    if not episodes:
        trouble = absent(n for n in ("eval/adapted.json",) if n in run.missing)
        nothing = paragraph("No evaluated episode was kept for replay.", kind="missing")
        return Scenes(choice, {}, trouble or nothing)
    try:
        replays = replay_episodes(list(episodes.values()))
    except WorkerError as error:
        reason = escape(str(error).strip().splitlines()[-1])
        text = f"The episodes could not be rendered: {reason}"
        return Scenes(choice, {}, paragraph(text, kind="missing"))
    return Scenes(choice, dict(zip(episodes, replays, strict=True)), "")


def opening(scenes: Scenes) -> str:
    """The adapted policy and the base on the same scene."""
    if not scenes.has("adapted"):
        return scenes.trouble
    names = [name for name in ("unadapted", "adapted") if scenes.has(name)]
    titles = {"adapted": "after adaptation", "unadapted": "before adaptation"}
    replays = [scenes.replays[name] for name in names]
    first = scenes.replays["adapted"]
    caption = (
        f"<strong>“{escape(first.instruction)}”</strong>: robot B, "
        + ("the same scene and the same words, at the robot’s own speed. " * (len(names) > 1))
        + f"{scenes.choice.words.get('pair', '')} {_faithful(replays)}"
    )
    return _film([Panel(titles[n], scenes.replays[n]) for n in names], caption)


def swapped(scenes: Scenes) -> str:
    """The adapted policy on one scene with two words; empty where that was not tried."""
    if not scenes.has("told", "retold"):
        return ""
    replays = [scenes.replays[name] for name in ("told", "retold")]
    caption = (
        "The adapted policy, twice on the same scene; only the word differs. "
        f"{scenes.choice.words['swap']} {_faithful(replays)}"
    )
    return _film([Panel(f"“{one.instruction}”", one) for one in replays], caption)


def failing(scenes: Scenes) -> str:
    """An episode that the adapted policy did not solve, if one was kept."""
    if not scenes.has("failure"):
        return ""
    replay = scenes.replays["failure"]
    caption = f"The first kept episode that the adapted policy did not solve. {_faithful([replay])}"
    return "<h3>Where it fails</h3>" + _film(
        [Panel(f"“{replay.instruction}”", replay)], caption, stills=False, kind="small"
    )


def first_view(run: RunFiles, scenes: Scenes) -> str:
    """What the policy gets to see, under a heading."""
    if not scenes.has("adapted"):
        return ""
    first = scenes.replays["adapted"]
    view = plot_view(first.image, first.depth, patch_layout(run.config)[1])
    return "<h3>What the policy sees</h3>" + picture(
        figure_uri(view),
        "Camera picture and depth map that the policy gets",
        f"Before its first action of episode {first.seed}: this picture, its depth, the camera's "
        f"intrinsics and the words “{escape(first.instruction)}”. White lines: edges of the image "
        "patches. Depth beyond the colour bar, if any, is the floor behind the table.",
        kind="pan",
    )


def _faithful(replays: list[Replay]) -> str:
    if all(replay.as_recorded for replay in replays):
        return "Replayed from the actions of the evaluation, and ended as it did."
    return "<strong>This replay did not end as the evaluation did.</strong>"


def _film(panels: list[Panel], caption: str, *, stills: bool = True, kind: str = "") -> str:
    film = side_by_side(panels)
    endings = "; ".join(f"{panel.title}: {panel.replay.ending}" for panel in panels)
    shown = moving(film_uri(film), jpeg_uri(film.frames[-1]), endings, caption, kind=kind)
    return shown + ("".join(_stills(panel) for panel in panels) if stills else "")


def _stills(panel: Panel) -> str:
    replay = panel.replay
    last = len(replay.frames) - 1
    steps = np.unique(np.linspace(0, last, min(STRIP, last + 1)).round().astype(int))
    frames = [
        picture(
            jpeg_uri(np.ascontiguousarray(replay.frames[step][::2, ::2])),
            f"{panel.title}, after action {step}",
            f"{step / replay.control_hz:.1f} s",
        )
        for step in steps
    ]
    label = f"{escape(panel.title)}: {replay.ending}"
    return paragraph(label, kind="strip") + row(frames, kind="film")
