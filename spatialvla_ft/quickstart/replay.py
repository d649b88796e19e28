"""Play an evaluated episode again, and take pictures.

The simulation is deterministic, so the executed actions are enough. It runs in a process without
torch, because software rendering and torch do not share one.

Replayed episodes beside each other, in step, as the frames of one animation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image, ImageDraw, ImageFont

from spatialvla_ft.evaluation.outcome import ClosedLoop, other_word
from spatialvla_ft.processes import Channel, Worker
from spatialvla_ft.viz.embed import Film

FINER = 2
"""Pictures for people are rendered so much larger and averaged: the renderer's edges are hard."""


@dataclass(frozen=True)
class Episode:
    """Which episode to play.

    Attributes:
        outcome: the evaluation that it belongs to.
        seed: of the episode; its trace was kept.
        swapped: the one with the other word.
    """

    outcome: ClosedLoop
    seed: int
    swapped: bool = False

    @property
    def part(self):
        """Results and traces that it belongs to."""
        return self.outcome.swap if self.swapped else self.outcome


@dataclass(frozen=True)
class Replay:
    """One episode, seen by the front camera.

    Attributes:
        seed, instruction: which episode.
        success, wrong_object, collided: how the replay ended.
        as_recorded: the replay took as many steps and ended as the evaluation says.
        frames: pictures for people: before the first action and after each.
        image: what the policy saw first.
        depth: of `image`, metres along the optical axis, 0 = unknown.
        intrinsics: K of `image`.
        control_hz: actions per second.
    """

    seed: int
    instruction: str
    success: bool
    wrong_object: bool
    as_recorded: bool
    frames: UInt8[np.ndarray, "T H W 3"]
    image: UInt8[np.ndarray, "h w 3"]
    depth: Float32[np.ndarray, "h w"]
    intrinsics: Float64[np.ndarray, "3 3"]
    control_hz: float
    collided: bool = False

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (len(self.frames) - 1) / self.control_hz

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.success:
            return f"solved after {self.seconds:.1f} s"
        if self.collided:
            return f"hit the post after {self.seconds:.1f} s"
        if self.wrong_object:
            return f"wrong block after {self.seconds:.1f} s"
        return f"not solved in {self.seconds:.0f} s"


def replay_episodes(wanted: Sequence[Episode], *, size: int = 400) -> list[Replay]:
    """Replay episodes; their results must hold the traces.

    Args:
        wanted: which episodes.
        size: side of the pictures for people, pixels.

    Raises:
        ValueError: the robot, the task or a setting is unknown.
        WorkerError: the process failed, for instance for lack of an OpenGL library.
    """
    if not wanted:
        return []
    role = "the process that draws the replays"
    with Worker(f"{__name__}:play", list(wanted), size, role=role, draws=True) as worker:
        return [worker.recv() for _ in wanted]


def play(channel: Channel, wanted: Sequence[Episode], size: int) -> None:
    """The rendering process: sends one Replay per wanted episode."""
    from spatialvla_ft.sim.rendering import Renderer

    renderer = Renderer()
    for episode in wanted:
        channel.send(_play_one(episode, size, renderer))


def _play_one(episode: Episode, size: int, renderer: object) -> Replay:
    from spatialvla_ft.sim.env import TabletopEnv

    outcome, seed = episode.outcome, episode.seed
    distractors = outcome.settings["distractors"]
    camera = "front"
    env = TabletopEnv(
        outcome.robot,
        outcome.task,
        image_size=outcome.settings["image_size"],
        cameras=(camera,),
        camera_mode=outcome.settings["camera_mode"],
        **(other_word(distractors) if episode.swapped else {"distractors": distractors}),
    )
    env.use(renderer)  # type: ignore[arg-type]
    env.reset(seed)
    first = env.observe()

    def seen() -> UInt8[np.ndarray, "H W 3"]:
        fine = env.state_rgb(FINER * size, FINER * size, camera)
        return np.asarray(Image.fromarray(fine).reduce(FINER))

    frames = [seen()]
    success = wrong_object = collided = False
    for action in episode.part.traces[seed]:
        done = env.step(np.array(action))
        success, wrong_object, collided = done.success, done.wrong_object, done.collided
        frames.append(seen())
    recorded = next(result for result in episode.part.results if result.seed == seed)
    ended = (success, wrong_object, env.steps)
    return Replay(
        seed=seed,
        instruction=first.instruction,
        success=success,
        wrong_object=wrong_object,
        as_recorded=ended == (recorded.success, recorded.wrong_object, recorded.steps),
        frames=np.stack(frames),
        image=first.images[camera],
        depth=first.depth[camera],
        intrinsics=first.intrinsics[camera],
        control_hz=env.robot.control_hz,
        collided=collided,
    )


HOLD_MILLISECONDS = 2500
"""How long the last frame stays."""
GAP = 8
DARK, LIGHT = (20, 24, 30), (255, 255, 255)
SOLVED, UNSOLVED = (0, 114, 178), (213, 94, 0)


@dataclass(frozen=True)
class Panel:
    """One episode under its title."""

    title: str
    replay: Replay


def side_by_side(panels: Sequence[Panel]) -> Film:
    """All panels from left to right, at the robot's own speed.

    An episode that has ended stays, framed in the colour of its outcome, until all have.

    Args:
        panels: one or more, of one control rate and one size of picture.
    """
    (hz,) = {panel.replay.control_hz for panel in panels}
    length = max(len(panel.replay.frames) for panel in panels)
    frames = [_beside([_drawn(panel, step) for panel in panels]) for step in range(length)]
    pace = round(1000 / hz)
    return Film(np.stack(frames), (pace,) * (length - 1) + (HOLD_MILLISECONDS,))


def _beside(pictures: Sequence[Image.Image]) -> UInt8[np.ndarray, "H W 3"]:
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, pictures[0].height), LIGHT)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return np.asarray(sheet)


def _drawn(panel: Panel, step: int) -> Image.Image:
    """The episode after so many actions, or as it ended."""
    replay = panel.replay
    last = len(replay.frames) - 1
    scene = Image.fromarray(replay.frames[min(step, last)])
    font = ImageFont.load_default(size=max(11, scene.height // 15))
    head = round(1.7 * font.size)
    picture = Image.new("RGB", (scene.width, head + scene.height), LIGHT)
    picture.paste(scene, (0, head))
    draw = ImageDraw.Draw(picture)
    draw.text((2, head // 2), panel.title, fill=DARK, font=font, anchor="lm")
    colour = DARK
    text = f"{step / replay.control_hz:.1f} s"
    if step >= last:
        colour, text = SOLVED if replay.success else UNSOLVED, replay.ending
        frame = (0, head, picture.width - 1, picture.height - 1)
        draw.rectangle(frame, outline=colour, width=max(3, scene.height // 64))
    _label(draw, picture.height, text, font, colour)
    return picture


def _label(
    draw: ImageDraw.ImageDraw,
    bottom: int,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: tuple[int, int, int],
) -> None:
    at = (14, bottom - 14)
    left, top, right, low = draw.textbbox(at, text, font=font, anchor="ls")
    draw.rectangle((left - 7, top - 6, right + 7, low + 6), fill=colour)
    draw.text(at, text, fill=LIGHT, font=font, anchor="ls")
