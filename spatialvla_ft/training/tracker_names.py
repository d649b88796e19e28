"""Trackers by name: which there are, which are installed, and under which name a run goes on."""

from __future__ import annotations

import importlib.util
import json
import re
import secrets
from pathlib import Path
from typing import Any

from .. import files

OURS = ("jsonl", "tensorboard")
OTHERS = {
    "wandb": ("wandb", "pip install 'spatialvla-ft[wandb]'"),
    "trackio": ("trackio", "pip install 'spatialvla-ft[trackio]'"),
    "comet_ml": ("comet_ml", "pip install comet_ml"),
    "aim": ("aim", "pip install aim"),
    "mlflow": ("mlflow", "pip install mlflow"),
    "clearml": ("clearml", "pip install clearml"),
    "dvclive": ("dvclive", "pip install dvclive"),
    "swanlab": ("swanlab", "pip install swanlab"),
}
"""Accelerate's trackers: the module that they need, and how to get it."""
FILE = "trackers.json"


def check_trackers(names: list[str]) -> list[str]:
    """The names, each known, installed and named once.

    Raises:
        ValueError: one is not; the message says what to install, or which there are.
    """
    for name in names:
        if name not in OURS and name not in OTHERS:
            raise ValueError(
                f"tracker {name!r} is not known; there are {', '.join([*OURS, *OTHERS])}"
            )
        if name in OTHERS and importlib.util.find_spec(OTHERS[name][0]) is None:
            raise ValueError(
                f"tracker {name!r} is not installed: {OTHERS[name][1]}, or leave it out"
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"trackers are named twice: {twice}; name each once")
    return names


def init_arguments(names: list[str], output: Path) -> dict[str, dict[str, Any]]:
    """What Accelerate hands to each tracker, so that a continued run goes on as the same one.

    The name of the run lies in `trackers.json` of the output folder; a run that starts afresh there
    has none, and gets another.
    """
    wanted = [name for name in names if name in ("wandb", "trackio")]
    if not wanted:
        return {}
    path = output / FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    run = known.get("run") or f"{_plain(output)}-{secrets.token_hex(4)}"
    arguments: dict[str, dict[str, Any]] = {}
    if "wandb" in wanted:
        arguments["wandb"] = {"id": run, "name": run, "resume": "allow", "dir": str(output)}
    if "trackio" in wanted:
        arguments["trackio"] = {"name": run, "resume": "allow"}
    if run != known.get("run"):
        output.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps({"run": run}) + "\n")
    return arguments


def without_secrets(content: Any) -> Any:
    """A recipe's content without user names, passwords and queries in addresses."""
    if isinstance(content, dict):
        return {name: without_secrets(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_secrets(value) for value in content]
    if isinstance(content, str) and "://" in content:
        return re.sub(r"(\w+://)[^/@\s]*@", r"\1", content).split("?", 1)[0]
    return content


def _plain(output: Path) -> str:
    """Name of a folder as every tracker takes it."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", output.resolve().name)[:40].strip("-") or "run"
