"""The report of `spatialvla-ft bench gpu` as a section for docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

COMMAND = "make gpu"
HEAD = """\
| part | what | median | least to greatest | what it counts |
|---|---|---|---|---|
"""


def table(report: dict[str, Any]) -> str:
    """A heading with date, hardware and command, a row per figure, a line per part without any.

    Args:
        report: of `bench_gpu`.
    """
    rows = [
        _row(part["part"], figure)
        for part in report["parts"]
        for figure in (part["report"] or {"figures": []})["figures"]
    ]
    lines = [_state(part) for part in report["parts"] if part["state"] != "done"]
    notes = [
        f"- {part['part']}: {note}"
        for part in report["parts"]
        for note in (part["report"] or {"notes": []})["notes"]
    ]
    took = ", ".join(
        f"{part['part']} {part['seconds']:.0f} s"
        for part in report["parts"]
        if part["state"] != "not reached"
    )
    ends = [*lines, *notes, f"- time: {took}"]
    return f"{heading(report)}\n\n{HEAD}{''.join(rows)}\n" + "\n".join(ends) + "\n"


def heading(report: dict[str, Any]) -> str:
    """The first lines: date, hardware, versions, command."""
    machine = report["machine"]
    hardware = f"{machine['cores']} cores, no GPU used"
    if report["device"] == "cuda":
        hardware = f"{machine['gpu']}, {machine['memory_gib']:g} GiB, driver {machine['driver']}"
    libraries = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "transformers", "peft", "triton", "cuda")
    )
    return (
        f"### Size {report['size']} on {hardware} ({report['date']}; `{COMMAND}`, "
        f"{report['seconds']:.0f} s)\nPython {machine['python']}, {libraries}; random weights."
    )


def _row(part: str, figure: dict[str, Any]) -> str:
    value = "unmeasured"
    if figure["value"] is not None:
        value = f"{figure['value']:.4g} {figure['unit']}".strip()
    spread = "" if figure["low"] is None else f"{figure['low']:.4g} to {figure['high']:.4g}"
    cells = (part, figure["name"], value, spread, figure["counts"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _state(part: dict[str, Any]) -> str:
    """Why a part is not done, with its last words."""
    words = f": {part['output'][-1].strip()}" if part["output"] else ""
    return f"- **{part['part']} {part['state']}**: {part['why']}{words}"
