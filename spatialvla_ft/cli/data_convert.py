"""`spatialvla-ft data convert`: between RLDS and LeRobot."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from spatialvla_ft.cli.options import AsJson


class Format(StrEnum):
    """What a dataset can be converted to."""

    lerobot = "lerobot"
    rlds = "rlds"


def convert(
    src: Annotated[
        str, typer.Argument(help="RLDS version directory, LeRobot folder, or an address.")
    ],
    dst: Annotated[Path, typer.Argument(help="New folder; of RLDS the one to hold NAME/VERSION.")],
    to: Annotated[Format, typer.Option(help="lerobot (v3.0) or rlds.")],
    card: Annotated[
        Path | None, typer.Option(help="Card of an RLDS dataset; default SRC/card.yaml.")
    ] = None,
    images: Annotated[
        str,
        typer.Option(
            help="For lerobot: keep (pictures as they are encoded, exact; of LeRobot videos the "
            "codec), av1 or h264."
        ),
    ] = "keep",
    gop: Annotated[
        int | None,
        typer.Option(
            help="For lerobot: frames from one key frame of a video to the next, default 2. Of a "
            "LeRobot folder, videos whose key frames are further apart are encoded anew."
        ),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Steps per second; default the card's control_hz.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="For rlds: dataset name; default that of SRC.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a dataset between RLDS and LeRobot v3.0, and say what was not exact.

    A LeRobot folder converted to lerobot is copied, and its videos are encoded anew so that random
    frames come fast.

    Columns, language, depth, intrinsics and extrinsics are bit-exact; pictures are unless --images
    names a video codec.

    Example: spatialvla-ft data convert datasets/robot_a_touch/1.0.0 lerobot/touch --to lerobot

    Example: spatialvla-ft data convert so100_pick so100_fast --to lerobot --gop 2
    """
    from spatialvla_ft.cli.console import fail_with, telling

    with fail_with(), telling() as tell:
        advance = partial(tell, "converted")
        from spatialvla_ft.data.lerobot.info import is_lerobot

        place, label = _fetched(src)
        if to is Format.rlds:
            kept = None if images == "keep" else images
            given = {"--card": card, "--fps": fps, "--images": kept, "--gop": gop}
            _refuse(given, "belong to --to lerobot; leave them out")
            path, report = _to_rlds(Path(place), dst, name, label, advance)
        elif is_lerobot(Path(place)):
            given = {"--card": card, "--fps": fps, "--name": name}
            _refuse(given, f"do not apply: {src} is a LeRobot folder already")
            path, report = dst, _again(Path(place), dst, 2 if gop is None else gop, images, advance)
        else:
            _refuse({"--name": name}, "belongs to --to rlds; leave it out")
            _refuse(
                {"--gop": gop if images == "keep" else None},
                "is for videos: give --images av1 or h264 too",
            )
            path, report = (
                dst,
                _to_lerobot(place, dst, card, images, 2 if gop is None else gop, fps, advance),
            )
    summary = {"path": str(path), "format": to.value, **report}
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(f"wrote {report['episodes']} episodes ({report['steps']} steps) to {path}")
    if report["exact"]:
        typer.echo("everything is exact")
    for key, how in report["inexact"].items():
        typer.echo(f"not exact: {key}: {how}")
    for key, why in report["left_out"].items():
        typer.echo(f"left out: {key}: {why}")


def _fetched(src: str) -> tuple[str, str | None]:
    """The source, and its name if the place does not tell; of one on the Hub, where it lies now."""
    from spatialvla_ft.data.lerobot.hub import HUB, fetch_dataset, parse_address

    if not src.startswith(HUB):
        return src, None
    name, revision = parse_address(src)
    return str(fetch_dataset(name, revision=revision)), name.split("/")[1]


def _refuse(given: dict[str, Any], why: str) -> None:
    """ValueError if any of these options was given."""
    extra = [option for option, value in given.items() if value is not None]
    if extra:
        raise ValueError(f"{', '.join(extra)} {why}")


def _again(
    src: Path, dst: Path, gop: int, images: str, advance: Callable[[int, int], None]
) -> dict[str, Any]:
    from spatialvla_ft.converters.video_writer import reencode

    return reencode(src, dst, gop=gop, images=images, progress=advance).to_dict()


def _to_lerobot(
    src: str,
    dst: Path,
    card: Path | None,
    images: str,
    gop: int,
    fps: float | None,
    advance: Callable[[int, int], None],
) -> dict[str, Any]:
    from spatialvla_ft.converters.rlds_to_lerobot import to_lerobot
    from spatialvla_ft.data.opening import own_card, read_card
    from spatialvla_ft.data.rlds.index import build_index

    index = build_index(src, on_bad_column="skip")
    place = card or own_card(index)
    found = read_card(place, index)
    report = to_lerobot(
        index,
        found,
        place,
        dst,
        images=images,
        gop=gop,
        fps=fps,
        progress=lambda done: advance(done, index.num_episodes),
    )
    return report.to_dict()


def _to_rlds(
    src: Path,
    dst: Path,
    name: str | None,
    label: str | None,
    advance: Callable[[int, int], None],
) -> tuple[Path, dict[str, Any]]:
    from spatialvla_ft.converters.mapping import read_mapping
    from spatialvla_ft.data.errors import refuse_within
    from spatialvla_ft.data.lerobot.store import LeRobotStore
    from spatialvla_ft.processes import Worker

    store = LeRobotStore(src, name=label)
    kept = read_mapping(src)
    name = name or (kept.name if kept else re.sub(r"\W", "_", store.name).lower())
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"--name: got {name!r}, allowed are lower-case letters, digits and _, a letter first"
        )
    target = dst / name
    refuse_within(target, src)
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} exists and is not empty; remove it, or give another --name")
    target, role = "spatialvla_ft.converters.lerobot_to_rlds:run", "the process that writes RLDS"
    with Worker(target, src, dst, name, role=role) as writer:
        while isinstance(message := writer.recv(), int):
            advance(message, len(store.episodes))
    path, report = message
    return Path(path), report
