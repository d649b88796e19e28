"""The process that writes RLDS: TensorFlow and torch must not share one."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run(channel: Any, folder: Path, out: Path, name: str) -> None:
    """Send the number of episodes after each, then (directory, report) at the end."""
    from spatialvla_ft.data.lerobot.to_rlds import write

    path, report = write(folder, out, name, progress=channel.send)
    channel.send((str(path), report.to_dict()))
