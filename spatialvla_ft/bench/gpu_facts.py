"""A program that says in a line of JSON what GPU this machine has, and the libraries to use it.

It runs in a process of its own (`python -m spatialvla_ft.bench.gpu_facts`), since asking a GPU for
its name takes half a gigabyte of its memory for as long as the process lives.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LIBRARIES = ("torch", "transformers", "peft", "triton")


def facts() -> dict[str, Any]:
    """What a figure has to stand beside; `gpu` is None, and `why` says so, where there is none."""
    import torch

    found: dict[str, Any] = {
        "gpu": None,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }
    if torch.cuda.is_available():
        seen = torch.cuda.get_device_properties(0)
        place = {"gpu": seen.name, "memory_gib": round(seen.total_memory / 2**30, 1)}
        return {**found, **place, "capability": f"{seen.major}.{seen.minor}"}
    if torch.version.cuda is None:
        return {**found, "why": f"torch {torch.__version__} is built without CUDA"}
    driver = found["driver"]
    told = "nvidia-smi tells of no driver" if driver is None else f"the driver is {driver}"
    return {**found, "why": f"torch {torch.__version__} sees none, {told}"}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    """Version of the driver; None without nvidia-smi, or where it fails."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def main() -> None:
    """Say it on standard output, as the last line."""
    sys.stdout.write(json.dumps(facts()) + "\n")


if __name__ == "__main__":
    main()
