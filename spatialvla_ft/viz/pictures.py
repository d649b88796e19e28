"""The report's sections of pictures: episodes, what the policy sees, point clouds, grids."""

from __future__ import annotations

import numpy as np

from spatialvla_ft.data import open_dataset
from spatialvla_ft.evaluation.outcome import ClosedLoop
from spatialvla_ft.sim.worker import WorkerError
from spatialvla_ft.viz.embed import animation_uri, figure_uri, jpeg_uri, png_uri
from spatialvla_ft.viz.html import absent, escape, paragraph, picture, row, section
from spatialvla_ft.viz.point_cloud import plot_point_clouds, two_views
from spatialvla_ft.viz.replay import Replay, replay_episodes
from spatialvla_ft.viz.run_files import GRIDS, POLICIES, RunFiles, patch_layout
from spatialvla_ft.viz.sensor_view import plot_view

FILM_FRAMES = 8
DATASETS = ("data/robot_a_touch/1.0.0", "data/robot_b_touch/1.0.0")


def choose_episodes(run: RunFiles) -> list[tuple[str, ClosedLoop, int]]:
    """(policy, result, seed) to show: a success, the base on the same scene, a failure.

    The exported policy if it has traces, else the adapted one.
    """
    chosen: list[tuple[str, ClosedLoop, int]] = []
    for name in ("exported", "adapted"):
        for outcome in run.outcomes.get(name, ()):
            good, bad = outcome.traced(success=True), outcome.traced(success=False)
            chosen += [(name, outcome, seed) for seed in good[:1]]
            for base in run.outcomes.get("unadapted", ()):
                same = (base.robot, base.task, base.settings)
                if same == (outcome.robot, outcome.task, outcome.settings):
                    shared = [s for s in good[:1] if base.traces.get(s)]
                    chosen += [("unadapted", base, seed) for seed in shared]
            chosen += [(name, outcome, seed) for seed in bad[:1]]
            if chosen:
                return chosen
    return chosen


def episodes(run: RunFiles) -> str:
    """Replayed episodes: animations, film strips, and what the policy itself saw."""
    title = "Episodes on robot B"
    chosen = choose_episodes(run)
    if not chosen:
        return section(
            title,
            absent(n for n in ("eval/exported.json", "eval/adapted.json") if n in run.missing)
            or paragraph("No evaluated episode was kept for replay.", kind="missing"),
        )
    try:
        replays = replay_episodes([(outcome, seed) for _, outcome, seed in chosen])
    except WorkerError as error:
        reason = str(error).strip().splitlines()[-1]
        return section(
            title,
            paragraph(f"The episodes could not be rendered: {escape(reason)}", kind="missing"),
        )
    names = [name for name, _, _ in chosen]
    moving = [_animation(name, replay) for name, replay in zip(names, replays, strict=True)]
    strips = [
        _film(name, replay)
        for name, replay in zip(names, replays, strict=True)
        if name != "unadapted"
    ]
    faithful = sum(replay.as_recorded for replay in replays)
    note = (
        f"Replayed in the simulation from the actions of the evaluation; {faithful} of "
        f"{len(replays)} replays ended as recorded, after the same number of actions. Animations "
        "run at the robot's own speed."
    )
    if not any(name != "unadapted" and o.traced(success=True) for name, o, _ in chosen):
        note += " None of the episodes kept for replay was solved."
    first = replays[0]
    view = picture(
        figure_uri(plot_view(first.image, first.depth, patch_layout(run.config)[1])),
        "Camera picture and depth map that the policy gets",
        f"What the policy itself sees before its first action of episode {first.seed}: this "
        "picture, its depth, the camera's intrinsics and the words "
        f"“{escape(first.instruction)}”. White lines: edges of the image patches. Depth beyond the "
        "colour bar, if any, is the floor behind the table.",
    )
    return section(
        title,
        paragraph(note),
        row(moving, kind="films"),
        *strips,
        "<h3>What the policy sees</h3>",
        view,
    )


def _animation(name: str, replay: Replay) -> str:
    uri = animation_uri(replay.frames, hz=replay.control_hz, success=replay.success)
    outcome = "solved" if replay.success else "not solved"
    text = (
        f"<strong>{escape(POLICIES[name])}: {outcome}.</strong> Episode {replay.seed}, "
        f"“{escape(replay.instruction)}”, {len(replay.frames) - 1} actions at "
        f"{replay.control_hz:g} Hz."
    )
    if not replay.as_recorded:
        text += " This replay did not end as the evaluation did."
    return picture(uri, f"Animation of a replayed episode, {outcome}", text)


def _film(name: str, replay: Replay) -> str:
    last = len(replay.frames) - 1
    steps = np.unique(np.linspace(0, last, min(FILM_FRAMES, last + 1)).round().astype(int))
    frames = [
        picture(
            jpeg_uri(replay.frames[step]),
            f"Scene after action {step}",
            f"after action {step}, {step / replay.control_hz:.1f} s" if step else "start",
        )
        for step in steps
    ]
    outcome = "solved" if replay.success else "not solved"
    heading = f"<h3>{escape(POLICIES[name])}, episode {replay.seed}: {outcome}</h3>"
    return heading + row(frames, kind="film")


def point_clouds(run: RunFiles) -> str:
    """Two recorded frames as the points that Ego3D encodes."""
    title = "The points that Ego3D sees"
    folders = [run.folder / name for name in DATASETS if (run.folder / name).is_dir()]
    if not folders:
        return section(title, absent(DATASETS))
    size, patch, reso = patch_layout(run.config)
    dataset = open_dataset(folders[0], card=None)
    frames = two_views(dataset)
    uri = figure_uri(plot_point_clouds(frames, size, patch, reso))
    return section(
        title,
        paragraph(
            "Each pixel with a depth is one point in the camera's own frame: x right, y down, z "
            f"forward, metres, camera at the origin. The model cuts the picture into {patch} × "
            f"{patch} pixel patches with {reso} × {reso} points each, at the mean depth of their "
            "cells; their encoded coordinates are added to the features of the patch. So the same "
            "block has coordinates that fit the camera it is seen with, and the pose of the camera "
            "may change from episode to episode. A point whose cell straddles an edge lies between "
            "both surfaces."
        ),
        picture(
            uri,
            "Point clouds of two cameras with patch points on top",
            f"First frames of two demonstrations in {escape(dataset.name)}: those two of the first "
            "24 episodes whose cameras look in the most different directions. Orange: the patch "
            "with the strongest colour, and its points.",
        ),
    )


def grids(run: RunFiles) -> str:
    """Pictures of the action grids."""
    pictures = [
        picture(
            png_uri(path),
            f"Action grid of {GRIDS[name]}",
            f"Action grid of {GRIDS[name]}: distribution of the demonstrated actions per axis, the "
            "fitted density and the edges of the bins.",
        )
        for name, path in run.grids.items()
    ]
    return section(
        "Action grids",
        absent(f"grids/{name}.png" for name in GRIDS if name not in run.grids),
        paragraph(
            "An action is spoken as three tokens: a cell of the translation grid, a cell of the "
            "rotation grid, and the gripper. The grid is fitted to each robot's demonstrations, so "
            "that tokens are spent where its actions are; adaptation moves the learnt embeddings "
            "of A's cells to the places of B's."
        ),
        *pictures,
    )
