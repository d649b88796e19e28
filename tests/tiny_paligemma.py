"""Tiny random checkpoints with the files, key names and tokenizer of the published ones.

PaliGemma 2 as google/paligemma2-3b-pt-* hold it: bfloat16 shards with an index, keys of the years
before transformers 5, no head (it is tied), vocabulary rows padded to a multiple of 64, and a
Gemma tokenizer that ends in 1024 places, 128 segments and <image>. ZoeDepth as
Intel/zoedepth-nyu-kitti: two domains with a head each.
"""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken as Added
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
)

SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
WORDS = ["▁pick", "▁up", "▁the", "▁red", "▁block", "▁put", "▁it", "▁down", "pick", "put"]


def write_tokenizer(folder, *, mask_in_vocabulary=True, image_token=True):
    """tokenizer.json and tokenizer_config.json of Gemma's form; returns the number of tokens."""
    specials = SPECIALS if mask_in_vocabulary else SPECIALS[:-1]
    vocab = {token: i for i, token in enumerate(specials)}
    for token in [f"<0x{byte:02X}>" for byte in range(256)]:
        vocab[token] = len(vocab)
    merges = []
    for word in WORDS:
        for letter in word:
            vocab.setdefault(letter, len(vocab))
        for end in range(2, len(word) + 1):
            vocab.setdefault(word[:end], len(vocab))
            if (word[: end - 1], word[end - 1]) not in merges:
                merges.append((word[: end - 1], word[end - 1]))
    vocab.setdefault("\n", len(vocab))
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([Added(t, special=True, normalized=False) for t in specials])
    tokenizer.add_tokens([Added(f"<loc{i:04d}>", normalized=True) for i in range(1024)])
    tokenizer.add_tokens([Added(f"<seg{i:03d}>", normalized=True) for i in range(128)])
    if image_token:
        tokenizer.add_special_tokens([Added("<image>", special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "additional_special_tokens": ["<image>"] if image_token else [],
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>",
        "processor_class": "PaliGemmaProcessor",
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    write_json(folder / "tokenizer_config.json", config)
    return tokenizer.get_vocab_size()


def paligemma_config(vocab_size, image_token, image_size=224, **text):
    """Sizes of a tiny PaliGemma 2; head_dim and query_pre_attn_scalar differ on purpose."""
    return PaliGemmaConfig(
        text_config={
            "model_type": "gemma2",
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 12,
            "sliding_window": 4096,
            "initializer_range": 0.2,
            "eos_token_id": [1, 107],
            **text,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": image_size,
            "patch_size": 14,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vision_use_head": False,
        },
        projection_dim=32,
        image_token_index=image_token,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )


def write_paligemma(folder, image_size=224, *, dtype=torch.bfloat16, shard="40KB", **text):
    """A tiny random PaliGemma 2 checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = write_tokenizer(folder)
    padded = -(-(tokens + 1) // 64) * 64
    torch.manual_seed(11)
    model = PaliGemmaForConditionalGeneration(
        paligemma_config(padded, tokens - 1, image_size, **text)
    )
    with torch.no_grad():  # padded rows that would be seen if they were kept
        model.get_input_embeddings().weight[tokens:] = 7.0
        model.model.multi_modal_projector.linear.weight.mul_(20)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    published_names(folder)
    write_json(
        folder / "preprocessor_config.json",
        {
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "SiglipImageProcessor",
            "image_seq_length": (image_size // 14) ** 2,
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "PaliGemmaProcessor",
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": image_size, "width": image_size},
        },
    )
    return folder


def published_names(folder):
    """Give weights and config the names and fields of the published files.

    transformers 5 saves SigLIP without its `vision_model.`, and writes fields that are younger
    than the published files.
    """

    def old(name):
        return name.replace("vision_tower.", "vision_tower.vision_model.")

    for file in sorted(folder.glob("*.safetensors")):
        save_file({old(k): v for k, v in load_file(file).items()}, file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {old(k): v for k, v in content["weight_map"].items()}
        write_json(index, content)
    config = json.loads((folder / "config.json").read_text())
    for younger in ("dtype", "vocab_size", "tie_word_embeddings"):
        config.pop(younger, None)
    for younger in ("use_bidirectional_attention", "layer_types", "rope_parameters"):
        config["text_config"].pop(younger, None)
    for default in ("tie_word_embeddings", "attn_logit_softcapping"):
        config["text_config"].pop(default, None)
    if config["vision_config"]["image_size"] == 224:
        del config["vision_config"]["image_size"]  # only non-default values were written
    config |= {"torch_dtype": "bfloat16", "transformers_version": "4.47.0.dev0"}
    config |= {"_vocab_size": 257152, "num_hidden_layers": 26}
    write_json(folder / "config.json", config)


def zoedepth_config():
    """ZoeDepth with two domains; its input stays 384 pixels, as published."""
    return ZoeDepthConfig(
        backbone_config={
            "model_type": "beit",
            "image_size": 384,
            "patch_size": 16,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "use_relative_position_bias": True,
            "reshape_hidden_states": False,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        backbone_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=8,
        bin_embedding_dim=8,
        num_patch_transformer_layers=4,
        patch_transformer_hidden_size=128,
        patch_transformer_intermediate_size=16,
        patch_transformer_num_attention_heads=4,
        bin_configurations=[
            {"max_depth": 10.0, "min_depth": 0.001, "n_bins": 16, "name": "nyu"},
            {"max_depth": 80.0, "min_depth": 0.001, "n_bins": 16, "name": "kitti"},
        ],
    )


def write_zoedepth(folder, dtype=torch.float32):
    """A tiny random ZoeDepth checkpoint."""
    torch.manual_seed(12)
    ZoeDepthForDepthEstimation(zoedepth_config()).to(dtype).save_pretrained(folder)
    return folder


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
