"""`spatialvla-ft push`: an export as a repository on the Hub, private unless asked otherwise.

What commands that push to the Hub share: the token, and how files are listed.

`spatialvla-ft data push`: a LeRobot dataset as a repository on the Hub, private by default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from spatialvla_ft.cli.options import AsJson, Base


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


def push(
    folder: Annotated[Path, typer.Argument(help="What `spatialvla-ft export` wrote.")],
    repo: Annotated[str, typer.Option(help="OWNER/NAME on the Hub; made if it does not exist.")],
    public: Annotated[bool, typer.Option("--public", help="Seen by everybody.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would go; nothing is sent.")
    ] = False,
    revision: Annotated[str, typer.Option(help="Branch to write to.")] = "main",
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload from spatialvla-ft",
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with an access token; default HF_TOKEN or `hf auth login`."),
    ] = None,
    base: Base = None,
    skip_verify: Annotated[
        bool, typer.Option("--skip-verify", help="Do not load it to compare its stored answers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check an export, list what goes, and publish it in one commit.

    A failure leaves all of it or nothing in the repository, and says which; call again to go on.

    Example: spatialvla-ft push exports/b --repo me/spatialvla-b --dry-run
    """
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # pushing through Xet is not tested
    from spatialvla_ft.cli.console import fail_with

    with fail_with():
        from spatialvla_ft.export.push_plan import plan_push

        plan = plan_push(folder, repo, verify=not skip_verify, base=base)
        report: dict[str, Any] = {**plan.to_dict(), "dry_run": dry_run, "public": public}
        if not as_json:
            _show(plan, public, revision)
        if not dry_run:
            from spatialvla_ft.hub.push import push as send

            done = send(
                plan,
                token=hub_token(token_file),
                private=not public,
                revision=revision,
                message=message,
            )
            report["pushed"] = done.to_dict()
    if as_json:
        typer.echo(json.dumps(report))
    elif dry_run:
        typer.echo("dry run: nothing was sent")
    else:
        seen = "private" if done.private else "public"
        what = f"{done.changed} files in one commit" if done.changed else "was there already"
        removed = f"; removed {', '.join(done.removed)}" if done.removed else ""
        typer.echo(f"{done.url} ({seen}), {done.revision} at {done.commit[:12]}: {what}{removed}")


def _show(plan: Any, public: bool, revision: str) -> None:

    list_files(
        ((file.size, f"{file.sha256[:16]}  {file.path}") for file in plan.files),
        plan.size,
        plan.repo_id,
        public=public,
        revision=revision,
        left_out=plan.left_out,
    )
    if plan.verified is None:
        typer.echo("its stored answers were not compared (--skip-verify)")
    else:
        typer.echo(f"it gives its {plan.verified.inputs} stored answers")


def push_data(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="LeRobot folder, e.g. what data convert wrote.")
    ],
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="On the Hub; made if it does not exist.")
    ],
    public: Annotated[bool, typer.Option("--public", help="Seen by everybody.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would go; nothing is sent.")
    ] = False,
    revision: Annotated[
        str, typer.Option(help="Branch to write to; only main gets LeRobot's version tag.")
    ] = "main",
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload from spatialvla-ft",
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with an access token; default HF_TOKEN or `hf auth login`."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a dataset, list what goes, and publish it in one commit.

    A failure leaves all of it or nothing in the repository; call again to go on.

    Example: spatialvla-ft data push lerobot/touch me/touch --dry-run
    """
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # pushing through Xet is not tested
    from spatialvla_ft.cli.console import fail_with

    with fail_with():
        from spatialvla_ft.data.lerobot.hub import HUB
        from spatialvla_ft.hub.plan import plan_dataset
        from spatialvla_ft.hub.push import is_private, push_dataset

        plan = plan_dataset(folder, repo)
        report: dict[str, Any] = {**plan.to_dict(), "dry_run": dry_run, "public": public}
        if not as_json:
            list_files(
                ((file.size, file.path) for file in plan.files),
                plan.size,
                repo,
                public=public,
                revision=revision,
                left_out=plan.left_out,
            )
            typer.echo(f"{plan.episodes} episodes, {plan.steps:,} steps, LeRobot {plan.version}")
        if not dry_run:
            token = hub_token(token_file)
            commit = push_dataset(
                folder,
                repo,
                private=not public,
                revision=None if revision == "main" else revision,
                message=message,
                token=token,
            )
            address = f"{HUB}{repo}" + ("" if revision == "main" else f"@{revision}")
            private = is_private(repo, token=token)
            report["pushed"] = {
                "commit": commit,
                "revision": revision,
                "private": private,
                "address": address,
            }
    if as_json:
        typer.echo(json.dumps(report))
    elif dry_run:
        typer.echo("dry run: nothing was sent")
    else:
        seen = "private" if private else "public"
        typer.echo(f"pushed ({seen}), {revision} at {commit[:12]}; read it as {address}")
