"""`spatialvla-ft push`: an export as a repository on the Hub, private unless asked otherwise."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer


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
    base: Annotated[
        str | None, typer.Option(help="An adapter's base, if it is not where it was.")
    ] = None,
    skip_verify: Annotated[
        bool, typer.Option("--skip-verify", help="Do not load it to compare its stored answers.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Check an export, list what goes, and publish it in one commit.

    A failure leaves all of it or nothing in the repository, and says which; call again to go on.

    Example: spatialvla-ft push exports/b --repo me/spatialvla-b --dry-run
    """
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # pushing through Xet is not tested
    from spatialvla_ft.cli.console import fail_with
    from spatialvla_ft.cli.hub import hub_token

    with fail_with():
        from spatialvla_ft.export.push_plan import plan_push

        plan = plan_push(folder, repo, verify=not skip_verify, base=base)
        report: dict[str, Any] = {**plan.to_dict(), "dry_run": dry_run, "public": public}
        if not as_json:
            _show(plan, public, revision)
        if not dry_run:
            from spatialvla_ft.export.push import push as send

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
    from spatialvla_ft.cli.hub import list_files

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
