"""Small pieces of HTML, and the page they go into."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import StrictUndefined, Template

from spatialvla_ft.evaluation.outcome import Share

escape = html.escape


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph of HTML, with a CSS class."""
    return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """A table of HTML cells; all but the first `text_columns` are numbers, aligned right."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ["" if i < text_columns else ' class="n"' for i in range(len(cells))]
        return "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>\n" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{line(head, "th")}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def picture(uri: str, alt: str, caption: str = "", *, kind: str = "") -> str:
    """A figure with a caption in HTML."""
    caption = f"<figcaption>{caption}</figcaption>" if caption else ""
    return (
        f'<figure class="{kind}"><img src="{uri}" alt="{escape(alt)}" loading="lazy">'
        f"{caption}</figure>"
    )


def moving(uri: str, still: str, alt: str, caption: str = "", *, kind: str = "") -> str:
    """An animation with a caption in HTML; the still is for readers who want no motion."""
    return (
        f'<figure class="moving {kind}"><picture>'
        f'<source media="(prefers-reduced-motion: reduce)" srcset="{still}">'
        f'<img src="{uri}" alt="{escape(alt)}"></picture>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def row(parts: Iterable[str], *, kind: str) -> str:
    """Parts side by side, as far as the screen is wide enough."""
    return f'<div class="{kind}">{"".join(parts)}</div>'


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it."""
    name = "".join(c if c.isalnum() else "-" for c in title.lower())
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n' + "\n".join(parts) + "\n</section>\n"


def absent(names: Iterable[str]) -> str:
    """Say which files a section would have needed; empty if there are none."""
    listed = ", ".join(f"<code>{escape(name)}</code>" for name in names)
    return paragraph(f"Missing from this run: {listed}.", kind="missing") if listed else ""


def page(title: str, head: str, body: str) -> str:
    """The whole document."""
    template = Template(
        (files(__package__) / "report.html").read_text(encoding="utf-8"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return template.render(title=escape(title), head=head, body=body)


NBSP = "\u00a0"
"""A space at which no line breaks."""


def percent(share: float) -> str:
    """0.755 is 76 %; tenths where rounding would hide that it is not 0 or 1."""
    digits = 1 if share != 0 and share != 1 and not 0.01 <= share < 0.995 else 0
    return f"{100 * share:.{digits}f}{NBSP}%"


def interval(share: Share) -> str:
    """Wilson 95 % interval in percent."""
    low, high = share.interval
    return f"{percent(low)} to{NBSP}{percent(high)}"


def count(share: Share) -> str:
    """So many of so many."""
    return f"{share.count} of {share.trials}"


def rated(share: Share) -> str:
    """Count, share and interval."""
    return f"{count(share)} ({percent(share.rate)}, 95{NBSP}% interval {interval(share)})"


def seconds(value: float) -> str:
    """12.3 s, or 2 min 05 s from a minute and a half on."""
    if value < 90:
        return f"{value:.1f}{NBSP}s"
    return f"{int(value + 0.5) // 60} min {int(value + 0.5) % 60:02d} s"


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
