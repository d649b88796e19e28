"""`spatialvla-ft data push`: a LeRobot dataset as a repository on the Hub, private by default."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer


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
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Check a dataset, list what goes, and publish it in one commit.

    A failure leaves all of it or nothing in the repository; call again to go on.

    Example: spatialvla-ft data push lerobot/touch me/touch --dry-run
    """
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # pushing through Xet is not tested
    from spatialvla_ft.cli.console import fail_with
    from spatialvla_ft.cli.hub import hub_token, list_files

    with fail_with():
        from spatialvla_ft.data.lerobot.hub import HUB, is_private, push_dataset
        from spatialvla_ft.data.lerobot.push_plan import plan_dataset

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
