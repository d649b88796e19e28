"""LoRA adapters: which modules they touch, how they are kept, how they find their base again.

An adapter folder holds peft's files, the processor (grid, statistics, intrinsics of the new robot),
and `spatial_rows.safetensors`: the spatial table, and the head's action rows, as they were after
adaptation to the new grid and before training. With the base that `adapter_config.json` names, that
is the whole model.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..actions.adapt import adapt_embeddings
from ..actions.grid import ActionGrid
from .action_tables import ACTION_HEAD, join_action_head, separate_action_head, set_action_rows
from .base_place import BASE_FILE, base_entry, find_base, read_base
from .checkpoint_files import stored_grid
from .lora_targets import TARGETS
from .memory import cast_weights
from .modeling_spatialvla import SpatialVLAForConditionalGeneration
from .processing_spatialvla import SpatialVLAProcessor
from .small import ordered_table

ROWS_FILE = "spatial_rows.safetensors"


def attach_lora(
    model: SpatialVLAForConditionalGeneration,
    *,
    rank: int = 32,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: str = TARGETS,
    train_whole: tuple[str, ...] = (),
) -> PeftModel:
    """Freeze the model and give it trainable adapters.

    Args:
        model: the base.
        rank: of the update.
        alpha: the update is scaled by alpha / rank; None means alpha = rank, scale 1.
        dropout: on the adapters' input.
        targets: regular expression over whole module names.
        train_whole: modules trained whole rather than through an adapter, e.g.
            "spatial_embed_tokens", "position_embedding_3d", or "action_head_rows" for the head's
            rows of action tokens alone.
    """
    if ACTION_HEAD in train_whole and model.action_head_rows is None:
        separate_action_head(model)
    missing = [name for name in train_whole if not _has_module(model, name)]
    if missing:
        raise ValueError(
            f"the model has no module {missing}; lora.train_whole takes names such as "
            "'spatial_embed_tokens', 'action_head_rows', 'position_embedding_3d'"
        )
    covered = "|".join(rf"{name}\..*" for name in train_whole)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=targets,
        exclude_modules=rf".*({covered})" if covered else None,
        modules_to_save=list(train_whole) or None,
        init_lora_weights="gaussian",
        bias="none",
    )
    return get_peft_model(model, config)


def _has_module(model: torch.nn.Module, name: str) -> bool:
    return any(full == name or full.endswith("." + name) for full, _ in model.named_modules())


@torch.no_grad()
def adapt_to_grid(
    model: SpatialVLAForConditionalGeneration, old: ActionGrid, new: ActionGrid
) -> None:
    """Re-initialise spatial embeddings, and the head's action rows, for a new grid (in place).

    Each row becomes the trilinear interpolation of the old rows at the new bin's centre. Slots that
    the old grid has nothing for, such as joints after an arm, start ordered: a random projection of
    the frequency encoding of their values, with the mean and spread of the old rows per dimension.
    The model grows or shrinks with the grid; `processor.set_grid` does the same for the tokenizer.
    """
    first = ordered_table(new, model.config.text_config.hidden_size)
    table = model.spatial_embed_tokens.weight.data
    head = model.grid_tokens.rows(slice(0, old.total)).data
    tables = [
        adapt_embeddings(rows, old, new, fresh=_like_rows(first, rows)) for rows in (table, head)
    ]
    set_action_rows(model, new.counts, *tables)
    model.action_grid = new


def _like_rows(fresh: Tensor, rows: Tensor) -> Tensor:
    """Fresh rows of unit spread, moved to the mean and spread of others in every dimension."""
    rows = rows.float()
    unit = (fresh - fresh.mean()) / fresh.std()
    return unit.to(rows.device) * rows.std(dim=0) + rows.mean(dim=0)


def spatial_rows(model: SpatialVLAForConditionalGeneration) -> dict[str, Tensor]:
    """The spatial table and, where the head has rows of its own, the head's action rows."""
    rows = {"spatial_embed_tokens": model.spatial_embed_tokens.weight.detach().clone()}
    if not model.config.tie_action_head:
        whole = slice(0, model.config.spatial_token_num)
        rows["lm_head_action_rows"] = model.grid_tokens.rows(whole).detach().clone()
    return rows


def fingerprint(model: torch.nn.Module) -> str:
    """A short hash of names, shapes and values of all parameters.

    Observation tokens and a head of its own are left out: where they exist an adapter always
    carries its own, and those of a base that has none are random.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(("observation_tokens.", "action_head.")):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_adapter(
    peft_model: PeftModel,
    processor: SpatialVLAProcessor,
    rows: dict[str, Tensor],
    folder: Path,
    *,
    base: str,
    base_fingerprint: str,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Write an adapter folder.

    Args:
        peft_model: what was trained.
        processor: of the new robot.
        rows: `spatial_rows` before training.
        folder: where to.
        base: the checkpoint that training started from.
        base_fingerprint: of that checkpoint as it was loaded.
        overrides: config fields it was loaded with, other than its own, e.g. `prefix_mask`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for config in peft_model.peft_config.values():
        config.base_model_name_or_path = base
    peft_model.save_pretrained(str(folder), save_embedding_layers=False)
    processor.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in rows.items()}, str(folder / ROWS_FILE))
    content = {
        **base_entry(base, base, folder),
        "fingerprint": base_fingerprint,
        "overrides": overrides or {},
        "action_token_counts": list(processor.grid.counts),
    }
    (folder / BASE_FILE).write_text(json.dumps(content, indent=2) + "\n")


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds an adapter rather than a whole model."""
    return (Path(path) / "adapter_config.json").is_file()


def refuse_base_of_whole(path: str | Path, base: str | None) -> None:
    """ValueError if a base is given for a checkpoint that is no adapter."""
    if base is not None:
        raise ValueError(
            f"--base is {base}, but {path} is a whole checkpoint and needs no base; leave it out"
        )


def load_with_adapter(
    folder: Path, *, base: str | None = None, dtype: torch.dtype = torch.float32
) -> PeftModel:
    """Base plus adapter, as trained.

    Args:
        folder: what `save_adapter` wrote.
        base: where the base lies now, if it moved.
        dtype: of the loaded weights.

    Raises:
        ValueError: the base is missing, or is another model than the one that was adapted.
    """
    recorded = read_base(folder)
    source = find_base(folder, given=base)
    # The fingerprint is of the stored values, so these are read before they are rounded.
    model = SpatialVLAForConditionalGeneration.from_pretrained(
        source, dtype=torch.float32, **recorded.get("overrides", {})
    )
    have = fingerprint(model)
    if have != recorded["fingerprint"]:
        raise ValueError(
            f"{folder} was trained on a base with fingerprint {recorded['fingerprint']}, but "
            f"{source} has {have}: it is another model, or already merged. Pass the original base"
        )
    cast_weights(model, dtype)
    rows = load_file(str(folder / ROWS_FILE))
    table = rows["spatial_embed_tokens"]
    counts = recorded.get("action_token_counts", model.config.action_token_counts)
    set_action_rows(model, counts, table, rows.get("lm_head_action_rows", table))
    model.action_grid = stored_grid(model.config, folder)
    adapter = json.loads((folder / "adapter_config.json").read_text())
    if ACTION_HEAD in (adapter.get("modules_to_save") or ()):
        separate_action_head(model)
    return PeftModel.from_pretrained(model, str(folder))


def merge_adapter(adapted: PeftModel) -> SpatialVLAForConditionalGeneration:
    """The base with its adapters merged into the weights (in place), in the released layout."""
    model = adapted.merge_and_unload()
    join_action_head(model)
    return model.eval()
