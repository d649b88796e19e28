"""One rank of a run under `torchrun`: trains, says what it held, and may stop as by a power cut.

python train_and_probe.py RECIPE OUTPUT_JSON CUT_AT OVERRIDES...
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from torch.distributed.tensor import DTensor

from spatialvla_ft.training.build import build
from spatialvla_ft.training.distributed import main_process_first
from spatialvla_ft.training.loop import Loop
from spatialvla_ft.training.recipe import load_recipe


class PowerCutError(Exception):
    pass


def held(model) -> dict:
    """Kinds of trainable parameters, and how many of their numbers lie on this rank."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    local = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
    return {
        "kinds": sorted({type(p).__name__ for p in parameters}),
        "numbers": sum(p.numel() for p in parameters),
        "local": sum(p.numel() for p in local),
    }


def main(recipe: str, report: str, cut_at: str, *overrides: str) -> None:
    checked = load_recipe(recipe, overrides)
    with main_process_first(checked.train):
        run = build(checked)
    loop = Loop(run)
    loop.begin(resume=True)
    file = Path(f"{report}.{os.environ['RANK']}")
    file.write_text(json.dumps({"world": loop.accelerator.num_processes, **held(run.model)}))

    def cut(values, log=loop.log):
        log(values)
        if loop.done == int(cut_at):
            raise PowerCutError

    loop.log = cut
    try:
        loop.run_steps()
    except PowerCutError:
        os._exit(0)
    result = loop.finish()
    there = (result / "trained.json").is_file()  # no rank leaves before all is written
    Path(f"{report}.{os.environ['RANK']}.end").write_text(json.dumps(there))


if __name__ == "__main__":
    main(*sys.argv[1:])
