"""A small SpatialVLA from random weights: the same classes, other sizes.

For the quickstart, for tests and for debugging a pipeline on a laptop. What differs from the
released model is declared in the config: a convolutional stem, unit-RMS features before the sum
with Ego3D, and a head whose action rows are the spatial table itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..actions.grid import ActionGrid
from ..actions.tokenizer import SpatialActionTokenizer
from .action_tables import ordered_table
from .camera_inputs import image_processor
from .configuration_spatialvla import SpatialVLAConfig
from .modeling_spatialvla import SpatialVLAForConditionalGeneration
from .processing_spatialvla import IMAGE_TOKEN, SpatialVLAProcessor

PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"


def small_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learnt from `texts`, with `<image>` after its words."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, EOS, BOS, UNK],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNK,
        padding_side="left",
    )
    wrapped.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    return wrapped


def small_processor(
    texts: Iterable[str],
    grid: ActionGrid,
    *,
    image_size: int,
    patch_size: int,
    action_chunk_size: int,
    **known: Any,
) -> SpatialVLAProcessor:
    """A processor for a small model.

    Args:
        texts: instructions, from which the tokenizer learns its words.
        grid: action grid.
        image_size: side of the model's picture, pixels.
        patch_size: side of a patch, pixels.
        action_chunk_size: actions per prediction.
        **known: `statistics` and `intrinsic_config`.
    """
    tokenizer = small_tokenizer(texts)
    SpatialActionTokenizer(tokenizer, grid)
    return SpatialVLAProcessor(
        image_processor(image_size, patch_size),
        tokenizer,
        grid=grid,
        action_chunk_size=action_chunk_size,
        **known,
    )


def small_config(
    processor: SpatialVLAProcessor,
    *,
    patch_size: int,
    vision: dict[str, Any],
    text: dict[str, Any],
    **config: Any,
) -> SpatialVLAConfig:
    """Configuration of a small model that fits a processor; arguments as in `small_model`."""
    grid = processor.grid
    begin = processor.action_tokenizer.begin_id
    specials = {
        "pad_token_id": processor.tokenizer.pad_token_id,
        "bos_token_id": processor.tokenizer.bos_token_id,
        "eos_token_id": processor.tokenizer.eos_token_id,
    }
    return SpatialVLAConfig(
        vision_config={"image_size": processor.image_size, "patch_size": patch_size, **vision},
        text_config={
            "vocab_size": begin + grid.total,
            "tie_word_embeddings": False,
            **specials,
            **text,
        },
        image_token_index=processor.image_token_id,
        action_token_begin_idx=begin,
        spatial_token_num=grid.total,
        action_token_counts=list(grid.counts),
        action_chunk_size=processor.action_chunk_size,
        **specials,
        **config,
    )


def small_model(
    processor: SpatialVLAProcessor,
    *,
    patch_size: int,
    vision: dict[str, Any],
    text: dict[str, Any],
    seed: int = 0,
    **config: Any,
) -> SpatialVLAForConditionalGeneration:
    """A random model that fits a processor.

    Args:
        processor: decides on vocabulary, picture size and chunk.
        patch_size: side of a patch, pixels.
        vision: fields of SiglipVisionConfig.
        text: fields of Gemma2Config.
        seed: of the random weights.
        **config: further fields of `SpatialVLAConfig`.
    """
    full = small_config(processor, patch_size=patch_size, vision=vision, text=text, **config)
    torch.manual_seed(seed)
    model = SpatialVLAForConditionalGeneration(full)
    table, grid = model.spatial_embed_tokens.weight, processor.grid
    with torch.no_grad():
        table.copy_(ordered_table(grid, table.shape[1]))
    model.action_grid = grid
    return model
