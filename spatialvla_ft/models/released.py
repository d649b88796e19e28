"""What released checkpoints keep outside config.json: chunk size and token counts of the grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from .configuration_spatialvla import SpatialVLAConfig


def read_processor_config(source: str | Path, **hub: Any) -> dict[str, Any] | None:
    """`processor_config.json` of a checkpoint folder or Hub repository; None if it has none."""
    path = cached_file(
        str(source),
        "processor_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
        **hub,
    )
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def token_counts(processor: dict[str, Any]) -> tuple[int, ...] | None:
    """Tokens of each slot, from a processor's `action_grid`, or a released `action_config`.

    None where the file has neither.
    """
    if "action_grid" in processor:
        return tuple(processor["action_grid"]["token_counts"])
    if "action_config" not in processor:
        return None
    bins = processor["action_config"]["num_bins"]
    translation, rotation = bins["translation"], bins["rotation"]
    return (
        translation["theta_bins"] * translation["phi_bins"] * translation["r_bins"],
        rotation["roll_bins"] * rotation["pitch_bins"] * rotation["yaw_bins"],
        bins["gripper"],
    )


def fill_from_processor_config(config: SpatialVLAConfig, source: str | Path) -> None:
    """Fill chunk size and token counts from the processor's file, where config.json lacks them."""
    if config.action_chunk_size is not None and config.action_token_counts is not None:
        return
    processor = read_processor_config(source)
    counts = None if processor is None else token_counts(processor)
    if processor is None or counts is None:
        return
    if config.action_chunk_size is None:
        config.action_chunk_size = int(processor["action_chunk_size"])
    if config.action_token_counts is None:
        if sum(counts) != config.spatial_token_num:
            raise ValueError(
                f"{source}: the model has {config.spatial_token_num} action tokens, the grid in "
                f"processor_config.json has {sum(counts)} {counts}: the files are of two "
                "checkpoints; take both from the same one"
            )
        config.action_token_counts = list(counts)
