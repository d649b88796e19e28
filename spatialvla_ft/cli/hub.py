"""What commands that push to the Hub share: the token, and how files are listed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer


def hub_token(file: Path | None) -> str:
    """The access token of a file, or the stored login; ValueError with the cure if there is none.

    It must not be printed or logged.
    """
    if file is not None:
        token = file.read_text(encoding="utf-8").strip()
        if not token or any(c.isspace() for c in token):
            raise ValueError(f"--token-file {file} must hold one access token and nothing else")
        return token
    from huggingface_hub import get_token

    stored = get_token()
    if stored is None:
        raise ValueError(
            "not logged in to the Hub: run `hf auth login`, set HF_TOKEN, or pass --token-file "
            "with a token that may write"
        )
    return stored


def list_files(
    lines: Iterable[tuple[int, str]],
    total: int,
    repo: str,
    *,
    public: bool,
    revision: str,
    left_out: Iterable[str],
) -> None:
    """Every file that goes with its size, where all of it goes, and what stays."""
    count = 0
    for size, text in lines:
        typer.echo(f"{size:>15,}  {text}")
        count += 1
    who = "public" if public else "private"
    typer.echo(f"{count} files, {total:,} bytes, to {repo} ({who}, {revision})")
    if left := ", ".join(left_out):
        typer.echo(f"stays here: {left}")
