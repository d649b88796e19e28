"""The page that a dataset shows on the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

FRONT_MATTER = """---
task_categories:
- robotics
tags:
- LeRobot
configs:
- config_name: default
  data_files: data/*/*.parquet
---
"""
"""What tells the Hub, and `datasets`, where the data files are."""

_BODY = """
{episodes} episodes, {frames} steps at {fps} Hz, robot {robot}; LeRobot format {version}.

Depth (`depth.<camera>`) is 16-bit grey FFV1, metres x 10000, 0 = unknown. Per frame,
`<camera>_camera_intrinsics` holds fx, fy, cx, cy in pixels and `<camera>_camera_extrinsics` the
camera's pose (OpenCV axes) in the robot's base, a 4 x 4 matrix row by row, metres.

```json
{info}
```
"""


def readme(info: dict[str, Any]) -> str:
    """Markdown with the front matter that lets `datasets` find the data files."""
    return FRONT_MATTER + _BODY.format(
        episodes=info["total_episodes"],
        frames=info["total_frames"],
        fps=info["fps"],
        robot=info["robot_type"] or "unknown",
        version=info["codebase_version"],
        info=json.dumps(info, indent=2),
    )


def licence_of_readme(folder: Path) -> str | None:
    """`license` of the front matter of a dataset's page; None without one."""
    file = folder / "README.md"
    if not file.is_file():
        return None
    parts = file.read_text(encoding="utf-8").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    licence = found.get("license") if isinstance(found, dict) else None
    return str(licence) if licence else None
