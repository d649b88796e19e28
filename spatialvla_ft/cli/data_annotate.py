"""`spatialvla-ft data annotate`: points of what was reached for, found in hindsight."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatialvla_ft.cli.options import AsJson

if TYPE_CHECKING:
    from spatialvla_ft.converters.annotate import Account, Settings
    from spatialvla_ft.data.cards.card import Card
    from spatialvla_ft.data.cards.terms import Term
    from spatialvla_ft.data.lerobot.store import LeRobotStore
    from spatialvla_ft.data.rlds.episodes import RldsStore

LISTED = 8
"""Episodes without a point that are listed by number."""


class By(StrEnum):
    """Which events give points."""

    auto = "auto"
    gripper = "gripper"
    contact = "contact"


def annotate(
    dataset: Annotated[
        str, typer.Argument(help="RLDS version directory, LeRobot folder, or an address.")
    ],
    out: Annotated[Path, typer.Option(help="New folder; of RLDS the one to hold NAME/VERSION.")],
    card: Annotated[
        Path | None, typer.Option(help="Card file; DATASET/card.yaml if not given.")
    ] = None,
    by: Annotated[
        By,
        typer.Option(
            help="gripper: where it closes, then where it opens. contact: where the episode ends. "
            "auto: contact where the gripper never changes, else gripper."
        ),
    ] = By.auto,
    column: Annotated[str, typer.Option(help="Name of the new column.")] = "target_point",
    tool_position: Annotated[
        str | None,
        typer.Option(
            help="Term of the tool's x, y, z (and roll, pitch, yaw, or a quaternion x, y, z, w) in "
            "the base frame, metres; default the card's proprioception."
        ),
    ] = None,
    offset: Annotated[
        str,
        typer.Option(help="x,y,z from the tool's position to the fingertips, tool frame, metres."),
    ] = "0,0,0",
    closed_below: Annotated[
        float, typer.Option(help="Commanded opening below which the gripper is closed.")
    ] = 0.3,
    open_above: Annotated[float, typer.Option(help="Opening above which it is open.")] = 0.7,
    steady: Annotated[int, typer.Option(help="Steps that a change must last.")] = 3,
    name: Annotated[
        str | None, typer.Option(help="Of RLDS: name of the new dataset; default the old one's.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a PNG of some episodes with their points.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the points that demonstrations went to, and write the dataset anew with them.

    The tool's place where the gripper first closes is the target of all steps up to there, that
    where it opens again of the steps between; without a gripper's motion it is the end of the
    episode. Everything else in the dataset stays bit for bit. train.point_loss uses the points.

    Example: spatialvla-ft data annotate datasets/my_robot/1.0.0 --out annotated --plot points.png
    """
    from spatialvla_ft.cli.console import fail_with, telling

    with fail_with(), telling() as advance:
        report = _annotate(
            dataset, out, card, by, column, tool_position, offset, closed_below, open_above, steady,
            name, plot, advance,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(report))
        return
    for line in _told(report):
        typer.echo(line)


def _annotate(
    dataset: str,
    out: Path,
    card_file: Path | None,
    by: By,
    column: str,
    tool_position: str | None,
    offset: str,
    closed_below: float,
    open_above: float,
    steady: int,
    name: str | None,
    plot: Path | None,
    advance: Callable[[str, int, int], None],
) -> dict[str, Any]:
    from spatialvla_ft.converters.annotate import Settings, find_points
    from spatialvla_ft.converters.annotated import (
        check_column,
        place_of,
        seen_by_cameras,
        write_annotated,
    )
    from spatialvla_ft.converters.hindsight import Gripping
    from spatialvla_ft.data.lerobot.store import LeRobotStore

    settings = Settings(
        by=by.value,
        gripping=Gripping(closed_below, open_above, steady),
        offset=_three(offset),
        tool=None if tool_position is None else _term(tool_position),
    )
    if name is not None and not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"--name: got {name!r}, allowed are lower-case letters, digits and _, a letter first"
        )
    if plot is not None and plot.suffix.lower() != ".png":
        raise ValueError(f"--plot: got {plot}, allowed are files that end with .png")
    store, card, raw = _opened(dataset, card_file)
    if name is not None and isinstance(store, LeRobotStore):
        raise ValueError("--name is for RLDS; a LeRobot dataset is called as its folder")
    called = store.name if isinstance(store, LeRobotStore) else store.index.name
    if plot is not None:
        from spatialvla_ft.viz.inspection import camera_of_plot

        camera_of_plot(card)
    target = place_of(store, out, name)
    check_column(store, column)
    count = len(store.episode_lengths)
    points, account = find_points(
        store, card, settings, lambda done: advance("looking", done, count)
    )
    if not account.found:
        reasons = "; ".join(f"{why} ({len(e)})" for why, e in account.nothing.items())
        raise ValueError(
            f"nothing was found in any of {count} episodes: {reasons}. Nothing was written; see "
            "--by, --closed-below and --open-above, and data inspect for the gripper's numbers"
        )
    write_annotated(
        store,
        raw,
        points,
        target,
        name=target.name if isinstance(store, LeRobotStore) else name or called,
        column=column,
        note=_note(column, settings),
        progress=lambda done: advance("writing", done, count),
    )
    seen, warnings = seen_by_cameras(store, card, points)
    report = {
        "path": str(target),
        "column": column,
        "by": by.value,
        "before": card.target_point,
        **account.to_dict(),
        "seen": seen,
        "warnings": [*warnings, *_doubts(account)],
        "plot": None,
    }
    if plot is not None:
        from spatialvla_ft.viz.inspection import plot_points

        report["plot"] = str(plot_points(target, plot, points))
    return report


def _opened(
    dataset: str, card_file: Path | None
) -> tuple[RldsStore | LeRobotStore, Card, dict[str, Any]]:
    """The dataset, its card, and the card as YAML holds it."""
    from spatialvla_ft.data.cards.files import raw_card
    from spatialvla_ft.data.lerobot.draft import draft, draft_card
    from spatialvla_ft.data.lerobot.store import LeRobotSource
    from spatialvla_ft.data.opening import CARD_FILE, open_index, open_source, own_card, pick_card
    from spatialvla_ft.data.rlds.episodes import RldsStore

    source = open_source(dataset)
    if isinstance(source, LeRobotSource):
        store = source.store
        place = card_file or store.folder / CARD_FILE
        if card_file is None and not place.exists():
            return store, draft_card(store), draft(store.info, store.folder)[0]
        return store, pick_card(place, store.name), raw_card(place, store.name)
    index = open_index(dataset)
    place = card_file or own_card(index)
    return RldsStore(index), pick_card(place, index.name), raw_card(place, index.name)


def _three(text: str) -> tuple[float, float, float]:
    """Three numbers of a text such as 0,0,-0.03."""
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--offset: got {text!r}, allowed are three numbers in metres, e.g. 0,0,-0.03"
        ) from None
    return x, y, z


def _term(text: str) -> Term:
    """A term as a card writes it."""
    import yaml

    from spatialvla_ft.data.cards.terms import parse_term

    try:
        return parse_term(yaml.safe_load(text) if text.lstrip().startswith("{") else text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"--tool-position: {error}") from None


def _note(column: str, settings: Settings) -> str:
    """How the points were found, for the card."""
    more = f", tool position {settings.tool}" if settings.tool is not None else ""
    if any(settings.offset):
        more += f", offset {', '.join(f'{value:g}' for value in settings.offset)} m"
    return (
        f"{column} was found in hindsight by `spatialvla-ft data annotate` (by {settings.by}{more})"
    )


def _doubts(account: Account) -> list[str]:
    """What makes points at the end of episodes less certain."""
    followed = account.followed
    if not account.ends or account.end_moved or followed is None:
        return []
    return [
        "the last action of an episode was not added to its last recorded place: the tool hardly "
        f"follows the actions (correlation {followed.correlation:.2f}), so they are not changes "
        "in the base frame; points at the end of an episode lie a step short"
    ]


def _told(report: dict[str, Any]) -> Iterator[str]:
    """The report in sentences."""
    yield (
        f"wrote {report['episodes']} episodes ({report['steps']} steps) to {report['path']}; "
        f"{report['with_point']} steps have a point in {report['column']!r}"
    )
    yield (
        f"found in {report['found']} of {report['episodes']} episodes: {report['closings']} "
        f"closings of the gripper, {report['releases']} releases, {report['ends']} ends of an "
        "episode"
    )
    for why, episodes in report["nothing"].items():
        some = ", ".join(map(str, episodes[:LISTED])) + (" ..." if len(episodes) > LISTED else "")
        yield f"nothing found in {len(episodes)} episodes: {why} ({some})"
    if report["end_moved"] and report["ends"]:
        yield (
            "ends include the last action: the tool moves "
            f"{report['followed']['gain']:.2f} m per unit of it (correlation "
            f"{report['followed']['correlation']:.2f})"
        )
    for slot, share in report["seen"].items():
        yield f"camera {slot} shows {100 * share:.0f} % of the points"
    if report["before"] is not None:
        yield f"the card's target_point was {report['before']!r}, it is {report['column']!r} now"
    for warning in report["warnings"]:
        yield f"warning: {warning}"
    if report["plot"]:
        yield f"plot: {report['plot']}"
