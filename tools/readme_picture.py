"""The README's picture: before and after adaptation, moving, out of a run of the quickstart.

python tools/readme_picture.py runs/quickstart docs/images/before_after.webp

The kind follows from the name: .webp or .gif. It is made smaller until it fits into 1 MB.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from PIL import Image

from spatialvla_ft.quickstart.replay import Film, Panel, Replay, replay_episodes, side_by_side
from spatialvla_ft.quickstart.run_files import read_run
from spatialvla_ft.quickstart.scenes import choose
from spatialvla_ft.viz.embed import film_bytes

MOST_BYTES = 1_000_000
SIDES = (384, 336, 288, 240, 192)
"""Pixels a side of one picture; the first that fits is taken."""
KINDS = {".webp": {"quality": 70, "method": 6}, ".gif": {"optimize": True, "disposal": 1}}
GIF_COLOURS = 255
GIF_HZ = 8.0
"""A GIF shows no more frames per second than this: each costs a lot."""


def thinned(film: Film, hz: float) -> Film:
    """Every n-th frame and the last, so that at most `hz` are left per second."""
    every = max(1, round(1000 / hz / film.milliseconds[0]))
    kept = sorted({*range(0, len(film.frames) - 1, every), len(film.frames) - 1})
    pace = [sum(film.milliseconds[i:j]) for i, j in zip(kept, [*kept[1:], None], strict=True)]
    return Film(film.frames[kept], tuple(pace))


def few_colours(film: Film) -> Film:
    """The same in colours that all frames share: else a GIF flickers, and nothing stays still."""
    some = film.frames[[0, len(film.frames) // 3, 2 * len(film.frames) // 3, -1]]
    sheet = Image.fromarray(some.reshape(-1, *some.shape[2:]))
    palette = sheet.quantize(GIF_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    frames = film.frames.copy()
    for frame in frames:
        few = Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        frame[:] = few.convert("RGB")
    return replace(film, frames=frames)


def encoded(replays: list[Replay], kind: str) -> bytes:
    """Before and after adaptation beside each other."""
    titles = ("before adaptation", "after adaptation")
    film = side_by_side([Panel(t, r) for t, r in zip(titles, replays, strict=True)])
    if kind == ".gif":
        film = few_colours(thinned(film, GIF_HZ))
    return film_bytes(film, kind[1:], **KINDS[kind])


def main() -> None:
    """Write the picture and say what it shows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    kind = given.out.suffix.lower()
    if kind not in KINDS:
        parser.error(f"{given.out}: name it .webp or .gif")
    choice = choose(read_run(given.runs))
    if choice.adapted is None or choice.unadapted is None:
        parser.error(f"{given.runs} kept no scene of both eval/adapted.json and unadapted.json")
    for side in SIDES:
        replays = replay_episodes([choice.unadapted, choice.adapted], size=side)
        content = encoded(replays, kind)
        if len(content) <= MOST_BYTES:
            break
    else:
        parser.error(f"{len(content)} bytes even at {SIDES[-1]} pixels; try the other kind")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_bytes(content)
    print(f"{given.out}: {len(content) / 1e3:.0f} kB, {side} pixels, scene {replays[0].seed}")
    print(f"“{replays[0].instruction}”: {replays[0].ending}; adapted: {replays[1].ending}")
    print(choice.words["pair"])
    if not all(replay.as_recorded for replay in replays):
        print("NOT as recorded: the simulation has changed since the evaluation")


if __name__ == "__main__":
    main()
