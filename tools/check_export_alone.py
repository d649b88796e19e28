"""Load an export where this package is not, and compare its actions with the stored ones.

    python -I tools/check_export_alone.py exports/b       # or OWNER/NAME on the Hub

Needs torch, transformers, scipy and pillow, nothing of this repository: the code that lies beside
the weights is what runs. Where the package is installed all the same, it is made impossible to
import. Prints a line and exits with code 1 where an action differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

BLOCKED = ("spatialvla_ft", "jaxtyping")
TOLERANCE = 1e-6
"""Largest difference of an action that is decoded from tokens, in the robot's units."""
HEAD_TOLERANCE = 1e-3
"""Of one that a head computes, normalised."""


class Blocked:
    """A finder that says that some packages are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """ModuleNotFoundError for a blocked package; None leaves it to other finders."""
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def check(folder: str) -> dict[str, Any]:
    """What was loaded and how its answers compare with the stored ones."""
    import numpy as np
    import torch
    import transformers
    from huggingface_hub import hf_hub_download
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    golden = Path(folder) / "golden_outputs.safetensors"
    if not Path(folder).is_dir():
        golden = Path(hf_hub_download(folder, golden.name))
    with safe_open(str(golden), "pt") as opened:
        stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        keys = json.loads(opened.metadata()["keys"])
    inputs = {n.removeprefix("inputs."): t for n, t in stored.items() if n.startswith("inputs.")}

    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    report: dict[str, Any] = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "inputs": len(keys),
        "config": type(config).__name__,
    }
    with tempfile.TemporaryDirectory() as again:
        for auto, place in (
            (AutoModel, folder),
            (AutoModelForImageTextToText, folder),
            (AutoModel, again),
        ):
            processor = AutoProcessor.from_pretrained(place, trust_remote_code=True)
            model = auto.from_pretrained(place, trust_remote_code=True, dtype=torch.float32).eval()
            name = auto.__name__ + (" saved again" if place is not folder else "")
            if model.action_head is not None:
                report[name] = beside(model, processor, inputs, stored, keys)
            elif keys[0] is None:
                ids = model.predict_action(inputs)
                same = torch.equal(ids, stored["expected.ids"])
                report[name] = {"ids_equal": same, "actions": 0.0 if same else float("inf")}
            else:
                ids = model.predict_action(inputs)
                actions = processor.decode_actions(ids, unnorm_key=keys)["actions"]
                difference = np.abs(np.asarray(actions) - stored["expected.actions"].numpy())
                report[name] = {
                    "ids_equal": torch.equal(ids, stored["expected.ids"]),
                    "actions": float(difference.max()),
                }
            if auto is AutoModelForImageTextToText:
                model.save_pretrained(again)
                processor.save_pretrained(again)
                with safe_open(str(Path(again) / "model.safetensors"), "pt") as opened:
                    names = [n for n in opened.keys() if n.startswith("vision_tower.")]  # noqa: SIM118
                report["released_names"] = all(".vision_model." in name for name in names)
    report |= doors(processor)
    report["same"] = all(
        r["ids_equal"] and r["actions"] <= (HEAD_TOLERANCE if "head" in r else TOLERANCE)
        for r in report.values()
        if isinstance(r, dict)
    )
    report["code"] = [type(model).__module__, type(processor).__module__]
    report["package"] = [name for name in sys.modules if name.split(".")[0] in BLOCKED]
    return report


def beside(
    model: Any, processor: Any, inputs: dict[str, Any], stored: dict[str, Any], keys: list[Any]
) -> dict[str, Any]:
    """Actions of a head without tokens, one prompt at a time as they were stored."""
    import torch

    rows = [{n: t[i : i + 1] for n, t in inputs.items()} for i in range(len(keys))]
    normalised = torch.cat([model.predict_actions(row) for row in rows]).double()
    apart = float((normalised - stored["expected.normalised"]).abs().max())
    found = {"head": model.action_head.kind, "ids_equal": True, "actions": apart}
    if keys[0] is not None:
        units = processor.to_robot_units(normalised, keys)
        found["units"] = float(abs(units - stored["expected.actions"].numpy()).max())
    return found


def doors(processor: Any) -> dict[str, Any]:
    """How its code reads a picture of floats, and depth in whole numbers."""
    import numpy as np

    if processor.layout.proprio_dim is not None:
        return {}
    views = processor.layout.num_views
    picture = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    K = np.array([[60.0, 0, 32], [0, 60, 20], [0, 0, 1]])

    def pixels(one: Any, **more: Any) -> Any:
        call = {"images": [[one] * views], "text": "go", "intrinsic": K, **more}
        return processor(**call)["pixel_values"]

    floats = np.moveaxis(picture, -1, 0).astype(np.float32) / 255
    try:
        pixels(picture, depth=np.full((40, 64), 700, np.uint16))
        refused = "no"
    except ValueError as error:
        refused = str(error)
    difference = float((pixels(floats) - pixels(picture)).abs().max())
    return {"float_pictures": difference, "integer_depth": refused}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    folder = parser.parse_args().folder
    sys.meta_path.insert(0, Blocked())
    report = check(folder)
    print(json.dumps(report))
    if not report["same"] or report["package"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
