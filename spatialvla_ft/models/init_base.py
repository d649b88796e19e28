"""A fresh base for pre-training: a PaliGemma 2, a ZoeDepth, and new rows for an action grid.

At step 0 the base is the PaliGemma it was made from: the same words in, the same logits out, since
the Ego3D term starts at zero. What is new (the spatial table, the head's rows of action tokens,
the Ego3D layers) starts as `docs/decisions/0007-fresh-base.md` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
)
from transformers.initialization import no_init_weights

from ..actions.grid import ActionGrid
from ..near import near_path
from .action_tables import text_like_table
from .camera_inputs import image_processor
from .checkpoint_files import check_loaded, readable_weights, shown
from .configuration_spatialvla import SpatialVLAConfig
from .ego3d import Ego3DPositionEmbedding
from .modeling_spatialvla import SpatialVLAForConditionalGeneration
from .processing_spatialvla import IMAGE_TOKEN, SpatialVLAProcessor

TEXT_EMBEDDINGS = "language_model.model.embed_tokens"
# Fields that belong to PaliGemma's own forward pass, to one machine, or to a file format.
NOT_TAKEN_OVER = frozenset(
    {"use_bidirectional_attention", "dtype", "torch_dtype", "architectures", "transformers_version"}
)


def assemble_base(
    paligemma: str | Path,
    zoedepth: str | Path,
    grid: ActionGrid,
    *,
    image_size: int | None = None,
    action_chunk_size: int = 4,
    n_freqs: int = 8,
    ego3d_patch_reso: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[SpatialVLAForConditionalGeneration, SpatialVLAProcessor]:
    """A model to pre-train, and its processor, without datasets as yet.

    Args:
        paligemma: folder or Hub repository of a PaliGemma 2 (224, 448 or 896 pixels).
        zoedepth: folder or Hub repository of a ZoeDepth.
        grid: action grid; its tokens follow `<image>` in the vocabulary.
        image_size: side in pixels that the PaliGemma must have; None takes what it has.
        action_chunk_size: actions per prediction.
        n_freqs: frequency bands of the Ego3D encoding.
        ego3d_patch_reso: Ego3D points per patch side.
        seed: of everything that is random.
        dtype: of all weights; the released checkpoints hold bfloat16.

    Raises:
        ValueError: a checkpoint of another kind, of odd vocabulary, or with weights missing.
    """
    config = _paligemma_config(paligemma, image_size)
    zoe_config = _zoedepth_config(zoedepth)
    tokenizer, begin = text_vocabulary(paligemma, config)
    processor = SpatialVLAProcessor(
        image_processor(config.vision_config.image_size, config.vision_config.patch_size),
        tokenizer,
        grid=grid,
        action_chunk_size=action_chunk_size,
    )
    assert processor.action_tokenizer.begin_id == begin
    full = SpatialVLAConfig(
        vision_config=_fields(config.vision_config),
        text_config={
            **_fields(config.text_config),
            "vocab_size": begin + grid.total,
            "tie_word_embeddings": False,
            **_specials(tokenizer),
        },
        vision_zoe_config=zoe_config,
        image_token_index=processor.image_token_id,
        action_token_begin_idx=begin,
        spatial_token_num=grid.total,
        action_token_counts=list(grid.counts),
        action_chunk_size=action_chunk_size,
        n_freqs=n_freqs,
        ego3d_patch_reso=ego3d_patch_reso,
        frozen_parameters=[TEXT_EMBEDDINGS],
        **_specials(tokenizer),
    )
    with no_init_weights():  # memory that is never written to costs nothing
        model = SpatialVLAForConditionalGeneration(full)
    _take_paligemma(model, paligemma, grid, begin, seed, dtype)
    _take_zoedepth(model, zoedepth, dtype)
    start_ego3d(model.position_embedding_3d, seed)
    model.position_embedding_3d.to(dtype)
    model.action_grid = grid
    return model.eval(), processor


def text_vocabulary(paligemma: str | Path, config: PaliGemmaConfig) -> tuple[Any, int]:
    """The tokenizer, and the id at which action tokens begin: the one after `<image>`.

    A PaliGemma's embedding has rows beyond its tokens, which pad it to a multiple of 64; where the
    tokens end, only the tokenizer says. ValueError where ids have gaps or something follows
    `<image>`.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(paligemma), trust_remote_code=False)
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    image = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if image is None:
        raise ValueError(
            f"{paligemma}: the tokenizer has no {IMAGE_TOKEN}; take the tokenizer files of a "
            "PaliGemma 2 in transformers' format, whose last token it is"
        )
    if names.get(image + 1) == "<mask>":
        # GemmaTokenizer appends a <mask> where a tokenizer's files have none.
        tokenizer = AutoTokenizer.from_pretrained(
            str(paligemma), trust_remote_code=False, mask_token=None
        )
        names = {index: token for token, index in tokenizer.get_vocab().items()}
    gaps = [index for index in range(image) if index not in names]
    if gaps:
        raise ValueError(
            f"{paligemma}: token ids must be contiguous up to {IMAGE_TOKEN} ({image}), but "
            f"{len(gaps)} of them have no token: {shown(map(str, gaps))}; the tokenizer's files "
            "are incomplete, fetch them again"
        )
    later = [f"{names[index]} ({index})" for index in sorted(names) if index > image]
    if later:
        raise ValueError(
            f"{paligemma}: {IMAGE_TOKEN} ({image}) must be the tokenizer's last token, but it is "
            f"followed by {shown(later)}; take the tokenizer as published, without tokens added"
        )
    if image != config.image_token_index:
        raise ValueError(
            f"{paligemma}: {IMAGE_TOKEN} has id {image} in the tokenizer and "
            f"{config.image_token_index} in config.json; take both from the same repository"
        )
    rows = config.text_config.vocab_size
    if image >= rows:
        raise ValueError(
            f"{paligemma}: the tokenizer has {image + 1} tokens, the weights {rows} rows; take "
            "both from the same repository"
        )
    missing = [name for name, index in _specials(tokenizer).items() if index is None]
    if missing:
        raise ValueError(f"{paligemma}: the tokenizer does not say its {', '.join(missing)}")
    return tokenizer, image + 1


def start_ego3d(ego3d: Ego3DPositionEmbedding, seed: int) -> None:
    """First values of Ego3D (in place): torch's own, and zeros in the last layer.

    The term it adds is then exactly zero, and the last layer still learns from the first step on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in ego3d.position_embedding_head:
            if isinstance(layer, (nn.Linear, nn.LayerNorm)):
                layer.reset_parameters()
    last = ego3d.position_embedding_head[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


# -------------------------------------------------------------------- weights


def _take_paligemma(
    model: SpatialVLAForConditionalGeneration,
    source: str | Path,
    grid: ActionGrid,
    begin: int,
    seed: int,
    dtype: torch.dtype,
) -> None:
    """Hand the loaded tensors over rather than copy them; only the vocabulary is rebuilt."""
    with readable_weights(source):
        loaded, info = PaliGemmaForConditionalGeneration.from_pretrained(
            source, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
    check_loaded(info, source, cure="Fetch the PaliGemma 2 again; its download is incomplete.")
    parts = loaded.model
    _hand_over(parts.vision_tower.state_dict(), model.vision_tower)
    _hand_over(parts.multi_modal_projector.state_dict(), model.multi_modal_projector)
    text = parts.language_model.state_dict()
    words = text.pop("embed_tokens.weight")[:begin]
    rows = text_like_table(words, grid, seed).to(dtype)
    table = torch.cat((words, rows))
    del loaded, parts, words
    _hand_over({**text, "embed_tokens.weight": table}, model.language_model.model)
    _hand_over({"weight": table.clone()}, model.language_model.lm_head)
    _hand_over({"weight": rows}, model.spatial_embed_tokens)


def _take_zoedepth(
    model: SpatialVLAForConditionalGeneration, source: str | Path, dtype: torch.dtype
) -> None:
    with readable_weights(source):
        loaded, info = ZoeDepthForDepthEstimation.from_pretrained(
            source, dtype=dtype, output_loading_info=True
        )
    check_loaded(info, source, cure="Fetch the ZoeDepth again; its download is incomplete.")
    _hand_over(loaded.state_dict(), model.vision_zoe_model)
    model.vision_zoe_model.requires_grad_(False)


def _hand_over(weights: dict[str, Tensor], module: nn.Module) -> None:
    module.load_state_dict(weights, assign=True)


# -------------------------------------------------------------------- configurations


def _paligemma_config(source: str | Path, image_size: int | None) -> PaliGemmaConfig:
    config = _config(source, "--paligemma")
    kind = config.model_type
    if kind == "paligemma":
        kind = f"paligemma with {config.text_config.model_type}"
    if kind != "paligemma with gemma2":
        raise ValueError(
            f"{source} is a checkpoint of type {kind}, not a PaliGemma 2 (paligemma with gemma2); "
            "give e.g. google/paligemma2-3b-pt-224"
        )
    vision = config.vision_config
    if image_size is not None and vision.image_size != image_size:
        raise ValueError(
            f"{source} takes pictures of {vision.image_size} pixels, not of {image_size}; give the "
            f"PaliGemma 2 made for {image_size}, its position embeddings are trained at that size"
        )
    if config.projection_dim != config.text_config.hidden_size:
        raise ValueError(
            f"{source}: projection_dim {config.projection_dim} is not the hidden size "
            f"{config.text_config.hidden_size} of its language model; config.json is odd"
        )
    return config


def _zoedepth_config(source: str | Path) -> ZoeDepthConfig:
    config = _config(source, "--zoedepth")
    if config.model_type != "zoedepth":
        raise ValueError(
            f"{source} is a checkpoint of type {config.model_type}, not a ZoeDepth; give e.g. "
            "Intel/zoedepth-nyu-kitti"
        )
    return config


def _config(source: str | Path, option: str) -> Any:
    if not Path(source).is_dir() and str(source).count("/") != 1:
        raise ValueError(
            f"{source} is no folder; give a checkpoint folder, or OWNER/NAME on the Hub, "
            f"as {option}{near_path(source)}"
        )
    return AutoConfig.from_pretrained(str(source), trust_remote_code=False)


def _fields(config: Any) -> dict[str, Any]:
    return {k: v for k, v in config.to_dict().items() if k not in NOT_TAKEN_OVER}


def _specials(tokenizer: Any) -> dict[str, int | None]:
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {name: getattr(tokenizer, name) for name in names}
