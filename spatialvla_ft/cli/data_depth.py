"""`spatialvla-ft data depth`: estimate a dataset's depth into a cache."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated

import typer

from spatialvla_ft.cli.options import AsJson


def depth(
    dataset_dir: Annotated[Path, typer.Argument(help="Version directory, or an index.")],
    estimator: Annotated[
        str, typer.Option(help="Checkpoint of ZoeDepth, Depth Anything V2, Depth Pro, SpatialVLA.")
    ],
    cache: Annotated[Path, typer.Option(help="Folder of the cache; made if there is none.")],
    card: Annotated[
        Path | None, typer.Option(help="Card file; DATASET_DIR/card.yaml if not given.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to run over.")] = "train",
    camera: Annotated[
        list[str] | None, typer.Option(help="Camera slot, repeatable; default all.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Side of the network's input; default as trained.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="Default: a GPU where there is one.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per run.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Estimate the depth of every picture of a dataset, once; stop and start it as you like.

    Example: spatialvla-ft data depth data/bridge/1.0.0 --estimator checkpoints/zoe --cache depth
    """
    import time

    from rich.console import Console

    from spatialvla_ft.cli.console import fail_with, watching

    with fail_with():
        import torch

        from spatialvla_ft.data import open_dataset
        from spatialvla_ft.depth.cache import RELATIVE_ERROR, DepthCache
        from spatialvla_ft.depth.load import DeferredEstimator, DepthSpec
        from spatialvla_ft.policy.depth import SampleDepth

        dataset = open_dataset(dataset_dir, card=card, split=split, horizon=1, depth=False)
        known = sorted(dataset.card.cameras or {})
        unknown = sorted(set(camera or []) - set(known))
        if unknown:
            raise ValueError(f"--camera {unknown} is not one of {dataset.name}'s: {known}")
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        deferred = DeferredEstimator(DepthSpec(estimator, resolution, dtype, place))
        store = DepthCache(cache)
        filler = SampleDepth(deferred, store, camera or None)
        begin = time.perf_counter()
        with watching(quiet=as_json) as begin_watch:
            done = itertools.count(1)
            told = begin_watch(f"{deferred.name} on {place}", len(dataset))
            filled = filler.fill(
                dataset,
                range(len(dataset)),
                batch_size=batch_size,
                on_frame=lambda _: told(next(done)),
            )
        seconds = time.perf_counter() - begin
        size = store.size()
    report = {
        "dataset": dataset.name,
        "split": split,
        "frames": len(dataset),
        "pictures": filled.pictures,
        "found": filled.found,
        "estimated": filled.estimated,
        "seconds": round(seconds, 3),
        "estimator": deferred.name,
        "fingerprint": deferred.fingerprint,
        "cache": str(cache),
        "cache_entries": size.entries,
        "cache_bytes": size.bytes,
        "relative_error": RELATIVE_ERROR,
    }
    if as_json:
        typer.echo(json.dumps(report))
        return
    console = Console()
    console.print(
        f"{dataset.name}, split {split}: {filled.pictures} pictures of {len(dataset)} frames; "
        f"{filled.estimated} estimated in {seconds:.1f} s, {filled.found} were there"
    )
    console.print(
        f"{cache} holds {size.entries} depth maps of all estimators in {size.bytes / 1e6:.1f} MB; "
        f"storing moves a depth by at most {RELATIVE_ERROR:.3%}"
    )
