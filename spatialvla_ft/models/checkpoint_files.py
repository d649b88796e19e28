"""The files of a checkpoint: where they are, what they say beside config.json, what they lack.

A released checkpoint keeps chunk size and token counts of the grid in `processor_config.json`.
Weights that a checkpoint lacks transformers gives random values, and logs a table. A robot that
runs on random values is no use, so here it is an error that names what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from ..actions.grid import ActionGrid
from ..actions.grid_io import from_processor_config
from ..near import near_path
from .configuration_spatialvla import SpatialVLAConfig

HUB_SECONDS = 5
"""In which the Hub answers, or counts as out of reach."""
ANSWERS = (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled)
"""Errors that are not a matter of reach: what they mean shows when the file is asked for."""


def read_processor_config(source: str | Path, **hub: Any) -> dict[str, Any] | None:
    """`processor_config.json` of a checkpoint folder or Hub repository; None if it has none."""
    return read_json(source, "processor_config.json", **hub)


def read_json(source: str | Path, name: str, **hub: Any) -> dict[str, Any] | None:
    """One JSON file of a checkpoint folder or Hub repository; None if it has none.

    ValueError where that cannot be said: no such place, no access, or a Hub out of reach.
    """
    refuse_no_place(source)
    if Path(source).is_dir():
        path = Path(source) / hub.get("subfolder", "") / name
        if not path.is_file():
            return None
    else:
        try:
            path = Path(cached_file(str(source), name, **hub))
        except OSError as error:
            reason = hub_reason(error.__cause__ or error, name)
            if reason is None:
                return None
            beside = near_path(source) if Path(source).parent.is_dir() else ""
            raise ValueError(f"{source}: {reason}{beside}") from error
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One JSON file as checkpoints have them; arrays and enumerations become plain values."""
    path.write_text(
        json.dumps(content, indent=2, sort_keys=True, default=_plain) + "\n", encoding="utf-8"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if hasattr(value, "value"):
        return value.value
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def refuse_no_place(source: str | Path) -> None:
    """ValueError for what is neither a folder nor the form of a Hub repository's name."""
    name = str(source)
    if not Path(source).is_dir() and (name.count("/") > 1 or name.startswith(("/", ".", "~"))):
        raise ValueError(
            f"{source} is no folder; give a checkpoint folder, or OWNER/NAME on the Hub"
            + near_path(source)
        )


def refuse_out_of_reach(source: str | Path) -> None:
    """ValueError for what is neither a folder nor a repository of a Hub that answers.

    Said at once: the Hub's own client tries for half a minute to reach what may be no more than a
    misspelt folder. What the Hub answers is not judged here; that shows when a file is asked for.
    """
    refuse_no_place(source)
    if Path(source).is_dir():
        return
    error = asked_hub(str(source))
    if error is not None and not isinstance(error, ANSWERS):
        raise ValueError(f"{source}: {_unreached('it')} ({error})") from error


def asked_hub(name: str) -> Exception | None:
    """What goes wrong when the Hub is asked once, briefly, for a repository; None if nothing does.

    A repository whose config.json is in the cache is not asked for.
    """
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return None
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except Exception as error:  # the HTTP client's own errors are of other classes in each release
        return error
    return None


def hub_reason(error: BaseException, file: str) -> str | None:
    """Why the Hub gave no file, and the cure; None where the repository merely lacks it."""
    if isinstance(error, GatedRepoError):
        return (
            "this repository is gated: accept its terms on its page on the Hub, then log in with "
            "`hf auth login`, or pass token="
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            "there is neither a folder nor a Hub repository of this name that you may read: check "
            "its spelling, or, if it is private, log in with `hf auth login` or pass token="
        )
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision: name a branch, tag or commit that it has"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return _unreached(file)
    if isinstance(error, EntryNotFoundError):
        return None
    if isinstance(error, HfHubHTTPError):
        return f"the Hub refused or failed ({error}): check your access, or try again later"
    if "does not appear to have a file" in str(error):  # known to be absent from an earlier call
        return None
    return f"it cannot be read from the Hub ({error})"


def _unreached(file: str) -> str:
    return (
        f"there is no folder of this name, {file} is not in the cache and the Hub was not "
        "reached (no connection, or offline mode): connect, or fetch the checkpoint where "
        "there is a connection (`hf download OWNER/NAME --local-dir DIR`) and give that folder"
    )


def image_tokens(source: str | Path, **hub: Any) -> int:
    """Tokens per picture, from a checkpoint's config.json; ValueError where it has none."""
    config = read_json(source, "config.json", **hub)
    if config is None:
        raise ValueError(
            f"{source}: preprocessor_config.json has no image_seq_length and there is no "
            "config.json to work it out from. Add image_seq_length, the number of patches of a "
            "picture (256 for 224 pixels in patches of 14), or the checkpoint's config.json"
        )
    return SpatialVLAConfig.from_dict(config).num_image_tokens


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


def stored_grid(config: SpatialVLAConfig, source: str | Path, **hub: Any) -> ActionGrid | None:
    """The action grid of a checkpoint's processor; None where it has none of the model's tokens.

    A model is of use without: what is wrong with the file its processor says, when it is loaded.
    """
    try:
        processor = read_processor_config(source, **hub)
        grid = None if processor is None else from_processor_config(processor)
    except ValueError:
        return None
    same = grid is not None and list(grid.counts) == config.action_token_counts
    return grid if same else None


def fill_from_processor_config(config: SpatialVLAConfig, source: str | Path, **hub: Any) -> None:
    """Fill chunk size and token counts from the processor's file, where config.json lacks them."""
    if config.action_chunk_size is not None and config.action_token_counts is not None:
        return
    processor = read_processor_config(source, **hub)
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


SHOWN = 6


def check_loaded(info: dict[str, Any], source: str | Path, *, cure: str = "") -> None:
    """ValueError unless a checkpoint held exactly the weights that its config asks for.

    Args:
        info: the library's `output_loading_info`.
        source: what was loaded, for the message.
        cure: what to do about missing or unexpected weights, a sentence.
    """
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        lines = [f"{name} {tuple(have)} (needed {tuple(need)})" for name, have, need in mismatched]
        raise ValueError(
            f"{source}: {len(mismatched)} weights have another shape than config.json gives them: "
            f"{shown(lines)}. Weights and config are of two checkpoints, or a size was overridden: "
            "take both from the same one; a grid of other bins is a matter of `adapt_to_grid`"
        )
    problems = []
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        problems.append(f"{len(missing)} weights are missing: {shown(missing)}")
    if info["unexpected_keys"]:
        unexpected = sorted(info["unexpected_keys"])
        problems.append(f"{len(unexpected)} weights are not part of the model: {shown(unexpected)}")
    if problems:
        raise ValueError(f"{source}: {'; '.join(problems)}. {cure}".rstrip())


def shown(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@contextmanager
def readable_weights(source: str | Path) -> Iterator[None]:
    """Turn what goes wrong with weight files into a ValueError that names them."""
    try:
        yield
    except (SafetensorError, FileNotFoundError) as error:
        absent = absent_shards(source)
        if absent:
            raise ValueError(
                f"{source}: its index names {len(absent)} weight files that are not there: "
                f"{shown(absent)}; fetch the checkpoint again, it is incomplete"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise
        broken = broken_files(source)
        which = shown(broken) if broken else "a weight file"
        raise ValueError(
            f"{source}: {which} cannot be read ({error}): it was cut short while being fetched or "
            "written, or is a Git LFS pointer; fetch it again (from the Hub: force_download=True)"
        ) from error


def absent_shards(source: str | Path) -> list[str]:
    """Weight files that the index of a folder names and the folder lacks."""
    index = Path(source) / "model.safetensors.index.json"
    if not index.is_file():
        return []
    named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return sorted(name for name in named if not (Path(source) / name).is_file())


def broken_files(source: str | Path) -> list[str]:
    """Weight files of a folder that safetensors cannot open, with their sizes."""
    broken = []
    for file in sorted(Path(source).glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError:
            broken.append(f"{file.name} ({file.stat().st_size:,} bytes)")
    return broken
