"""Small pieces of HTML, and the page they go into."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template

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
    template = Template((files(__package__) / "report.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), head=head, body=body)
