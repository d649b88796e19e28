"""`spatialvla-ft export`: a run as one folder that loads anywhere, with stored answers to check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from spatialvla_ft.cli.options import AsJson, Base, CardFile, Split, UnnormKey


def export(
    source: Annotated[
        Path | None, typer.Argument(help="Training run, adapter folder or checkpoint.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the checkpoint.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32 or bfloat16.")] = "float32",
    base: Base = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="Dataset, RLDS or LeRobot, whose steps are stored; else random pictures."
        ),
    ] = None,
    card: CardFile = None,
    split: Split = "train",
    unnorm_key: UnnormKey = None,
    samples: Annotated[int, typer.Option(help="Stored inputs.")] = 4,
    untie: Annotated[
        bool, typer.Option("--untie", help="Give a tied action head rows of its own.")
    ] = False,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Write the adapter alone, to go on its base.")
    ] = False,
    base_model: Annotated[
        str | None, typer.Option(help="The base's OWNER/NAME on the Hub, for the model card.")
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option("--eval", help="Result of `eval sim --out`, for the model card; repeatable."),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(help="Instead: load this export and compare with its stored answers."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report here as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Merge a LoRA adapter and write the released layout, or check what was written.

    The folder carries its own code and a model card (README.md), ready for `spatialvla-ft push`.
    Exit code 1 when the checkpoint does not answer as stored.

    Example: spatialvla-ft export runs/b --out exports/b --dataset datasets/robot_b_touch/1.0.0
    Then, anywhere: spatialvla-ft export --verify exports/b
    """
    from spatialvla_ft.cli.console import fail_with

    with fail_with():
        if verify is not None:
            if source is not None or out is not None:
                raise ValueError(
                    f"--verify {verify} checks an export and writes none: leave out the source and "
                    "--out"
                )
            _verify(verify, base, report, as_json)
            return
        if source is None or out is None:
            raise ValueError(
                "name what to export and --out DIR, or --verify DIR to check an export"
            )
        if samples < 1:
            raise ValueError(f"--samples is {samples}; at least 1 is needed for the checks")
        if adapter_only and (untie or dtype != "float32"):
            raise ValueError(
                "--adapter-only writes the adapter as it was trained: leave --untie and --dtype out"
            )
        from spatialvla_ft.export.adapter import export_adapter
        from spatialvla_ft.export.card_evaluation import read_evaluations
        from spatialvla_ft.export.checkpoint import export_checkpoint
        from spatialvla_ft.export.inputs import random_inputs, recorded_inputs

        def make_inputs(processor: Any, config: Any) -> Any:
            if dataset is None:
                return random_inputs(processor, config, count=samples)
            from spatialvla_ft.evaluation.open_loop import open_recorded

            data = open_recorded(dataset, processor, card=card, split=split)
            return recorded_inputs(data, processor, config, count=samples, unnorm_key=unnorm_key)

        for_card: dict[str, Any] = {
            "evaluations": read_evaluations(evaluation or []),
            "hub_base": base_model,
        }
        if adapter_only:
            alone = export_adapter(source, out, make_inputs, base=base, **for_card)
            _write(report, alone.to_dict())
            typer.echo(
                json.dumps(alone.to_dict())
                if as_json
                else f"{alone.out}: an adapter of {alone.parameters:,} numbers for {alone.base} "
                f"(fingerprint {alone.fingerprint}); on it, it gives the stored answers to "
                f"{alone.inputs}"
            )
            return
        done = export_checkpoint(
            source, out, make_inputs, dtype=dtype, base=base, untie=untie, **for_card
        )
    _write(report, done.to_dict())
    if as_json:
        typer.echo(json.dumps(done.to_dict()))
        return
    if done.kind == "adapter":
        typer.echo(
            f"merged the adapter {done.source} in float32: logits moved by at most "
            f"{done.merge_difference:.2g} on {done.inputs}"
        )
    else:
        typer.echo(f"{done.source} is a whole checkpoint: nothing to merge, rewritten as it is")
    if done.dtype != "float32":
        typer.echo(
            f"rounding to {done.dtype} moved logits by at most {done.rounding_difference:.2g} and "
            + (
                f"changed {done.rounded_ids} predicted tokens"
                if done.rounded_actions is None
                else f"normalised actions by at most {done.rounded_actions:.2g}"
            )
        )
    typer.echo(
        f"{done.out}: {done.parameters:,} parameters in {done.dtype}; loaded again, it gives the "
        f"stored answers to {done.inputs}"
    )


def _verify(folder: Path, base: str | None, report: Path | None, as_json: bool) -> None:
    from spatialvla_ft.export.stored import verify_export

    found = verify_export(folder, base=base)
    _write(report, found.to_dict())
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        said = f"predicted tokens {'equal' if found.ids_equal else 'DIFFER'}"
        if found.max_normalised_difference is not None:
            verdict = "the same" if found.same else "DIFFERENT"
            said = f"actions of head {found.head} are {verdict}"
        typer.echo(
            f"{folder}: {found.inputs} stored inputs; {said}; actions differ by at most "
            f"{found.max_action_difference:.2g} (robot units), logits by at most "
            f"{found.max_logit_difference:.2g}"
        )
    if not found.same:
        raise typer.Exit(1)


def _write(file: Path | None, content: dict[str, Any]) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
