"""`spatialvla-ft init-base`: a fresh base for pre-training, from a PaliGemma 2 and a ZoeDepth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spatialvla_ft.cli.options import AsJson

if TYPE_CHECKING:
    from spatialvla_ft.actions import ActionGrid
    from spatialvla_ft.models import SpatialVLAForConditionalGeneration


def init_base(
    paligemma: Annotated[
        str, typer.Option(help="PaliGemma 2 (224, 448 or 896): folder, or OWNER/NAME on the Hub.")
    ],
    zoedepth: Annotated[str, typer.Option(help="ZoeDepth: folder, or OWNER/NAME on the Hub.")],
    output: Annotated[Path, typer.Option(help="New folder for the base.")],
    grid: Annotated[
        Path | None, typer.Option(help="Action grid: grid.json of `grids fit`, or a checkpoint.")
    ] = None,
    gaussians: Annotated[
        Path | None,
        typer.Option(help="Instead of --grid: YAML or JSON of mu and sigma per axis."),
    ] = None,
    gaussians_of: Annotated[
        str | None, typer.Option(help="Which of the fits in --gaussians, where it holds several.")
    ] = None,
    min_sigma: Annotated[
        float, typer.Option(help="Raise smaller sigmas of --gaussians to this.")
    ] = 0.0,
    image_size: Annotated[
        int | None, typer.Option(help="Refuse a PaliGemma 2 made for another picture size.")
    ] = None,
    action_chunk_size: Annotated[int, typer.Option(help="Actions per prediction.")] = 4,
    dtype: Annotated[
        str, typer.Option(help="Of the weights: bfloat16 (as released) or float32.")
    ] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Of the new weights.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Assemble a base for pre-training.

    At step 0 it answers as the PaliGemma 2 it was made from; training keeps its text embeddings.

    Example: spatialvla-ft init-base --paligemma google/paligemma2-3b-pt-224
    --zoedepth Intel/zoedepth-nyu-kitti --grid grid.json --output bases/paligemma2-224

    Then: spatialvla-ft train RECIPE model.base=bases/paligemma2-224
    """
    from spatialvla_ft.cli.console import fail_with

    with fail_with():
        from spatialvla_ft.export.checkpoint import DTYPES, write_layout
        from spatialvla_ft.files import appears_whole, even_modes, refuse_used

        refuse_used(output, "--output")
        if dtype not in DTYPES:
            raise ValueError(f"--dtype is {dtype!r}; use one of {list(DTYPES)}")
        action_grid = _grid(grid, gaussians, gaussians_of, min_sigma)
        from spatialvla_ft.models.init_base import assemble_base

        model, processor = assemble_base(
            paligemma,
            zoedepth,
            action_grid,
            image_size=image_size,
            action_chunk_size=action_chunk_size,
            seed=seed,
            dtype=DTYPES[dtype],
        )
        with appears_whole(output) as scratch:
            write_layout(model, processor, scratch)
            even_modes(scratch)
    report = _report(model, action_grid) | {
        "output": str(output),
        "paligemma": paligemma,
        "zoedepth": zoedepth,
        "dtype": dtype,
        "bytes": sum(file.stat().st_size for file in output.iterdir()),
    }
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _show(report)


def _grid(
    grid: Path | None, gaussians: Path | None, name: str | None, min_sigma: float
) -> ActionGrid:
    from spatialvla_ft.actions import ActionGrid
    from spatialvla_ft.actions.grid_io import load_grid
    from spatialvla_ft.data.stats.grid_actions import read_gaussians

    if (grid is None) == (gaussians is None):
        raise ValueError(
            "give exactly one of --grid grid.json (`spatialvla-ft grids fit` writes it) and "
            "--gaussians fits.yaml"
        )
    if grid is not None:
        if name is not None or min_sigma:
            raise ValueError("--gaussians-of and --min-sigma go with --gaussians, not with --grid")
        return load_grid(grid)
    return ActionGrid.from_gaussians(read_gaussians(gaussians, name), min_sigma=min_sigma)


def _report(model: SpatialVLAForConditionalGeneration, grid: ActionGrid) -> dict[str, Any]:
    config = model.config
    frozen = tuple(config.frozen_parameters)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    trained = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.requires_grad and not name.startswith(frozen)
    )
    return {
        "image_size": config.vision_config.image_size,
        "image_tokens": config.num_image_tokens,
        "text_tokens": config.action_token_begin_idx,
        "action_tokens": config.spatial_token_num,
        "grid": {"kind": grid.kind, "bins": list(grid.bins)},
        "action_chunk_size": config.action_chunk_size,
        "parameters": sum(sizes.values()),
        "trained": trained,
        "frozen_parameters": list(frozen),
    }


def _show(report: dict[str, Any]) -> None:
    side, tokens = report["image_size"], report["image_tokens"]
    begin, count = report["text_tokens"], report["action_tokens"]
    lines = (
        f"{report['output']}: {report['parameters']:,} parameters in {report['dtype']}, "
        f"{report['bytes'] / 1e6:,.0f} MB",
        f"pictures of {side} x {side} pixels, {tokens} image tokens; chunks of "
        f"{report['action_chunk_size']} actions",
        f"vocabulary: {begin:,} text tokens, then {count:,} action tokens ({begin}.."
        f"{begin + count - 1}) of a {report['grid']['kind']} grid",
        f"training keeps {', '.join(report['frozen_parameters'])} and ZoeDepth, and learns "
        f"{report['trained']:,} parameters",
        f"next: spatialvla-ft train RECIPE model.base={report['output']}",
    )
    for line in lines:
        typer.echo(line)
