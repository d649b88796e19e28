"""Shares as bars with their intervals, in HTML: as wide as the screen, with words of full size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spatialvla_ft.evaluation.outcome import Share
from spatialvla_ft.quickstart.numbers import count, interval, percent
from spatialvla_ft.viz.html import escape


@dataclass(frozen=True)
class Bar:
    """One row.

    Attributes:
        name, note: what it is, and what else is to be said.
        share: its length and its whisker.
        kind: CSS class: "own", "baseline" or "other".
    """

    name: str
    note: str
    share: Share
    kind: str


def bars(rows: Sequence[Bar], *, mark: float | None = None, marked: str = "") -> str:
    """A chart of shares from 0 to 1.

    Args:
        rows: from top to bottom.
        mark: a share to mark in every row, and what it is called.
        marked: what the mark is.
    """
    line = "" if mark is None else f'<i class="mark" style="left:{100 * mark:.1f}%"></i>'
    body = "".join(_row(row, line) for row in rows)
    legend = "" if mark is None else f'<p class="soft"><i class="key"></i> {escape(marked)}</p>'
    return f'<div class="bars">{body}</div>{legend}'


def _row(row: Bar, line: str) -> str:
    low, high = row.share.interval
    note = f"<small>{escape(row.note)}</small>" if row.note else ""
    return (
        f'<div class="bar {row.kind}"><div class="name">{escape(row.name)}{note}</div>'
        f'<div class="track"><i class="fill" style="width:{100 * row.share.rate:.1f}%"></i>{line}'
        f'<i class="whisker" style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
        f'</div><div class="value"><strong>{percent(row.share.rate)}</strong> '
        f"<span>{count(row.share)}</span> <small>{interval(row.share)}</small></div></div>\n"
    )
