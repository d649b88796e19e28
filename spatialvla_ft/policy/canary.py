"""A canary at load: does this model still see, and does it compute what it computed before?

A library version, a mask or a lost weight can blind a vision-language-action model without any
error: it goes on to act from the words alone. So every model that is loaded to act is first asked
for the action distribution of its first token in a few situations that differ in one thing each.
Two rows that do not differ at all give the noise that these differences are measured against.

Whether Gemma 2's two soft caps are in force: on attention scores, and on the logits.

A kernel or a library version that drops them changes every number a little and breaks nothing
visibly, so it is asked for by its effect.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers.models.gemma2 import modeling_gemma2

from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.processing_spatialvla import SpatialVLAProcessor
from .stored import ACTION_TOLERANCE, Stored, StoredComparison, compare_stored


def missing_soft_caps(model: SpatialVLAForConditionalGeneration) -> list[str]:
    """What is wrong with the soft caps that the config asks for, in words; empty if nothing is."""
    text = model.config.text_config
    broken = []
    cap = text.attn_logit_softcapping
    attentions = [layer.self_attn for layer in model.language_model.model.layers]
    other = [i for i, a in enumerate(attentions) if a.attn_logit_softcapping != cap]
    if other:
        broken.append(
            f"layers {other} of the text tower bound their attention scores by "
            f"{attentions[other[0]].attn_logit_softcapping}, the config says {cap}"
        )
    kernel = text._attn_implementation
    if cap is not None and kernel == "eager" and not _kernel_caps(attentions[0]):
        broken.append(
            "the attention kernel 'eager' of this transformers version does not apply the soft cap "
            f"{cap} on attention scores"
        )
    final = text.final_logit_softcapping
    if final is not None:
        bounded = model.grid_tokens.soft_cap(torch.tensor([1e6, -1e6])).tolist()
        if max(abs(bounded[0] - final), abs(bounded[1] + final)) > 1e-3 * final:
            broken.append(f"logits are not bounded by the config's final soft cap {final}")
    return broken


def _kernel_caps(attention: Any) -> bool:
    """Compare the kernel with softmax(cap * tanh(q k / cap)) v, on scores up to about 100."""
    generator = torch.Generator().manual_seed(0)
    groups, size = attention.num_key_value_groups, 8
    query = 6 * torch.randn(1, groups, 4, size, generator=generator)
    key, value = (6 * torch.randn(1, 1, 4, size, generator=generator) for _ in range(2))
    found: Tensor = modeling_gemma2.eager_attention_forward(
        attention, query, key, value, None, dropout=0.0, scaling=1.0, softcap=3.0
    )[0]
    scores = torch.tanh(query @ key.transpose(-1, -2) / 3.0) * 3.0
    wanted = (scores.softmax(-1) @ value).transpose(1, 2)
    return bool((found - wanted).abs().max() < 1e-3)


logger = logging.getLogger(__name__)

TEXTS = ("pick up the red block", "open the drawer")
NOISE_FACTOR = 10.0
LEAST_CHANGE = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-4}
"""Least change of a log-probability that counts, where repeating an input changes nothing."""
LEAST_DEPTH_CHANGE = 1e-4
"""Least change of estimated depth from picture to picture, relative to its mean."""


class BlindModelError(ValueError):
    """A model that does not see, or does not compute what it computed when it was exported."""


@dataclass(frozen=True)
class CanaryReport:
    """What the canary saw of a healthy model.

    Attributes:
        changes: largest change of a log-probability of the first action token, or of anything that
            a head without tokens computes, by what was changed: "another picture", "a grey
            picture", "another K", "another depth", "another text".
        total_variation: the same as half the summed change of probabilities, between 0 and 1;
            empty of heads without tokens.
        noise: change of a log-probability by nothing at all.
        threshold: what a change must exceed.
        depth_change: of estimated depth between two pictures, relative to its mean; None where
            depth is not estimated.
        stored: comparison with the answers that were stored at export; None without any.
        warnings: what is odd without being broken.
        forwards: passes through the language model.
        seconds: what the canary took.
    """

    changes: dict[str, float]
    total_variation: dict[str, float]
    noise: float
    threshold: float
    depth_change: float | None
    stored: StoredComparison | None
    warnings: tuple[str, ...]
    forwards: int
    seconds: float


def chequered(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Random colours in an 8 x 8 chequerboard, so that patches differ."""
    cells = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    where = np.arange(size) * 8 // size
    return np.asarray(cells[where][:, where])


@torch.no_grad()
def check_sight(
    model: SpatialVLAForConditionalGeneration,
    processor: SpatialVLAProcessor,
    *,
    stored: Stored | None = None,
) -> CanaryReport:
    """Check that pictures, depth and K change what the model would do, and stored answers hold.

    One pass of at most seven short prompts, ZoeDepth on two pictures where depth is estimated, and
    a pass for each of two stored inputs.

    Args:
        model: in evaluation mode.
        processor: of the model.
        stored: answers that came with the checkpoint, if any.

    Raises:
        BlindModelError: names everything that is broken, where, the likely cause and the cure.
    """
    start = time.perf_counter()
    broken = [f"soft cap: {fault}" for fault in missing_soft_caps(model)]
    names, inputs = _probe(model, processor)
    debug = model(**inputs, debug_outputs=True, logits_to_keep=1).debug
    logs = _first_token(model, debug) if model.action_head is None else _of_head(model, inputs)
    if not bool(torch.isfinite(logs).all()):
        raise BlindModelError(
            "what the model computes of its first action is not finite: weights are damaged, or "
            f"numbers overflow in {model.dtype}; load the checkpoint again, in bfloat16 or float32"
        )
    changes = {name: float((logs[i] - logs[0]).abs().max()) for i, name in enumerate(names) if i}
    variation = {}
    if model.action_head is None:
        probabilities = logs.exp()
        variation = {
            name: float((probabilities[i] - probabilities[0]).abs().sum() / 2)
            for i, name in enumerate(names)
            if i and name != "nothing"
        }
    noise = changes.pop("nothing")
    least = LEAST_CHANGE.get(model.dtype, LEAST_CHANGE[torch.bfloat16])
    threshold = max(NOISE_FACTOR * noise, least)
    what = "log-probabilities" if model.action_head is None else "its head's numbers"
    blind = {name for name in changes if not changes[name] > threshold}
    broken += [
        f"{name} changes no action ({what} move by {changes[name]:.2g}, by "
        f"{noise:.2g} when nothing changes): " + _where_lost(model, debug, names.index(name), name)
        for name in changes
        if name in blind and name != "another text"
    ]
    depth_change = _depth_change(model, inputs["pixel_values"], names)
    if depth_change is not None and not depth_change > LEAST_DEPTH_CHANGE:
        broken.append(
            "estimated depth does not change with the picture (by "
            f"{depth_change:.2g} of its mean): ZoeDepth does not see, its weights "
            "(vision_zoe_model.*) are not those of the checkpoint. Load the checkpoint again, or "
            "with depth_source='sensor' and the sensor's depth"
        )
    comparison = None
    if stored is not None:
        comparison = compare_stored(model, processor, stored)
        broken += _stored_faults(comparison)
    if broken:
        raise BlindModelError(
            "this model must not act:\n"
            + "\n".join(f"- {fault}" for fault in broken)
            + f"\n(transformers {transformers.__version__}, torch {torch.__version__}; "
            "canary=False loads it all the same)"
        )
    warnings = []
    if "another text" in blind:
        warnings.append(
            "the instruction does not change the first action: the model does not read, or was "
            "trained on a single one"
        )
    for warning in warnings:
        logger.warning("%s", warning)
    return CanaryReport(
        changes=changes,
        total_variation=variation,
        noise=noise,
        threshold=threshold,
        depth_change=depth_change,
        stored=comparison,
        warnings=tuple(warnings),
        forwards=1 + (comparison.inputs if comparison else 0),
        seconds=time.perf_counter() - start,
    )


def _first_token(
    model: SpatialVLAForConditionalGeneration, debug: dict[str, Tensor]
) -> Float[Tensor, "R V"]:
    """Log-probabilities of the first action token, of each row."""
    rows, tokens = model.config.action_slots[0], model.grid_tokens
    hidden = debug["final_norm"][:, -1].float()
    logits = tokens.soft_cap(F.linear(hidden, tokens.rows(rows).float()))
    return logits.log_softmax(-1)


def _of_head(
    model: SpatialVLAForConditionalGeneration, inputs: dict[str, Tensor]
) -> Float[Tensor, "R n"]:
    """All that the head computes, of each row."""
    assert model.action_head is not None
    return model.action_head.raw(model.head_states(inputs)).float()


def _probe(
    model: SpatialVLAForConditionalGeneration, processor: SpatialVLAProcessor
) -> tuple[list[str], dict[str, Tensor]]:
    """Names and model tensors of the rows; each differs from the first in what its name says."""
    size, views = processor.image_size, processor.layout.num_views
    rng = np.random.default_rng(0)
    one, other = chequered(rng, size), chequered(rng, size)
    grey = np.full_like(one, 128)
    near = np.array([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1]], np.float64)
    far = near * [[1.6, 1, 0.9], [1, 1.5, 1.1], [1, 1, 1]]
    ramp = np.linspace(0.4, 1.5, size * size, dtype=np.float32).reshape(size, size)
    situations = [
        ("as it is", one, near, ramp, TEXTS[0]),
        ("nothing", one, near, ramp, TEXTS[0]),
        ("another picture", other, near, ramp, TEXTS[0]),
        ("a grey picture", grey, near, ramp, TEXTS[0]),
        ("another text", one, near, ramp, TEXTS[1]),
    ]
    if model.config.use_vision_zoe:
        situations += [
            ("another K", one, far, ramp, TEXTS[0]),
            ("another depth", one, near, ramp[::-1] * 0.7, TEXTS[0]),
        ]
    names, pictures, intrinsics, depths, texts = (list(c) for c in zip(*situations, strict=True))
    several = views > 1
    proprio: dict[str, object] = {}
    if processor.layout.proprio_dim is not None:
        known = [name for name, entry in processor.statistics.items() if "proprio" in entry]
        shape = (len(names), processor.layout.window, processor.layout.proprio_dim)
        proprio = {"proprio": np.zeros(shape), "unnorm_key": known[0] if known else None}
    inputs = processor(
        images=[[p] * views for p in pictures] if several else pictures,
        text=texts,
        intrinsic=[[k] * views for k in intrinsics] if several else intrinsics,
        depth=[[d] * views for d in depths] if several else depths,
        **proprio,
    )
    tensors = {n: t.to(model.device) for n, t in inputs.items() if isinstance(t, Tensor)}
    if not model.config.use_vision_zoe:
        tensors.pop("depth")
    return names, tensors


def _depth_change(
    model: SpatialVLAForConditionalGeneration, pixels: Tensor, names: list[str]
) -> float | None:
    """Largest change of estimated depth between two pictures, relative to its mean."""
    if not model.config.use_vision_zoe or model.config.vision_zoe_config is None:
        return None
    pair = torch.stack([pixels[0], pixels[names.index("another picture")]])
    if pair.ndim == 5:  # the first view of several
        pair = pair[:, 0]
    depth = model.depth_of(pair).float()
    return float((depth[1] - depth[0]).abs().max() / depth.abs().mean().clamp_min(1e-12))


Fault = tuple[str, Callable[[SpatialVLAForConditionalGeneration], str]]

_MASKED: Fault = (
    "final_norm",
    lambda m: (
        "it is in the prompt, but no word attends to the picture. The attention mask (prefix_mask "
        f"{m.config.prefix_mask!r}) hides it, or attention itself is broken, as a transformers "
        "version that this toolkit was not tested with can do; install one between 5.17 and 5.23"
    ),
)
_MERGED: Fault = (
    "inputs_embeds",
    lambda m: (
        "the projected features never reach the prompt: image features are not merged at the "
        f"<image> tokens (image_token_index {m.config.image_token_index}); take processor and "
        "model from the same checkpoint"
    ),
)
_PROJECTED: Fault = (
    "image_features",
    lambda _: (
        "it is lost before the projector's output: weights of multi_modal_projector are missing or "
        "zero, or Ego3D is not added; load the checkpoint again and heed its missing keys"
    ),
)
_ENCODED: Fault = (
    "ego3d",
    lambda _: (
        "the points change, their Ego3D encoding does not: weights of position_embedding_3d are "
        "missing or zero; load the checkpoint again and heed its missing keys"
    ),
)
_STAGES: dict[str, tuple[Fault, ...]] = {
    "picture": (
        (
            "vision",
            lambda _: (
                "SigLIP gives the same features for both pictures: its weights (vision_tower.*) "
                "are not those of the checkpoint, or pixel values do not reach it"
            ),
        ),
        _PROJECTED,
        _MERGED,
        _MASKED,
    ),
    "K": (
        (
            "xyz",
            lambda _: (
                "back-projected points are the same for both: intrinsics are ignored, so every "
                "camera is taken for one and the same"
            ),
        ),
        _ENCODED,
        _PROJECTED,
        _MERGED,
        _MASKED,
    ),
    "depth": (
        ("depth", lambda _: "the depth that is given is ignored: the same map is used for both"),
        (
            "xyz",
            lambda _: "back-projected points are the same for both: depth does not reach them",
        ),
        _ENCODED,
        _PROJECTED,
        _MERGED,
        _MASKED,
    ),
}


def _where_lost(
    model: SpatialVLAForConditionalGeneration, debug: dict[str, Tensor], row: int, name: str
) -> str:
    """The first stage whose output is the same in this row and in the first one, in words."""
    for tensor, words in _STAGES[name.split()[-1]]:
        value = debug[tensor]
        per_row = value.reshape(len(debug["inputs_embeds"]), -1).float()
        if tensor == "final_norm":
            per_row = value[:, -1].float()
        scale = per_row[0].abs().max().clamp_min(1e-12)
        if float((per_row[row] - per_row[0]).abs().max() / scale) < 1e-6:
            return words(model)
    return (
        "it changes every stage a little, too little for the action: the weights are not trained, "
        "or not those of the checkpoint"
    )


def _stored_faults(found: StoredComparison) -> list[str]:
    """What the comparison with stored answers shows to be broken."""
    faults = []
    if not found.deviation <= found.tolerance:
        cause = (
            "the right weights, computed differently: a soft cap, the attention kernel or mask, "
            "Ego3D's geometry, or a transformers version that changed one of these. Install the "
            "version that the checkpoint was exported with"
            if found.correlation > 0.5
            else "these are other weights: re-initialised, partly loaded or of another checkpoint. "
            "Load it again and heed missing keys; if it was trained further, export it anew"
        )
        faults.append(
            f"the answers stored at export do not come back: action logits are off by "
            f"{found.deviation:.2g} of their spread (rounding explains {found.tolerance:g}), "
            f"correlation {found.correlation:.3f}: {cause}"
        )
    if not found.action_difference <= ACTION_TOLERANCE:
        faults.append(
            "the stored tokens decode to other actions, off by up to "
            f"{found.action_difference:.3g} in the robot's units: the grid or the statistics in "
            "processor_config.json are not those of the export; restore that file"
        )
    return faults
