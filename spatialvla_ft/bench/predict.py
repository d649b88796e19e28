"""`spatialvla-ft bench predict`: a chunk of actions, stage by stage, beside `generate`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..heads.chunk_decoder import MAX_BRANCHES, ChunkDecoder, best_of_slot
from ..heads.gemma_layers import TextLayers
from ..memory.sizes import bench_inputs, bench_model, check_size, parameters
from ..memory.tensor_bytes import TensorBytes
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from .figures import Machine, Report, Times, Work, count_flops, in_turns, measure_machine
from .heads import add_chunks

STAGES = ("depth", "vision", "prefill", "decode", "head")
WORKS = ("depth", "vision", "prefill", "decode_and_head", "head")
COUNTS = {
    "depth": "ZoeDepth on one picture of 224 x 224",
    "vision": "SigLIP, Ego3D and projector on one picture whose depth is known",
    "prefill": "Gemma 2's layers over the prompt, the last one for its last token",
    "decode": "passes on the cache for the other tokens of the chunk, without the head",
    "head": "logits of each slot's own rows and their greatest, all tokens of the chunk",
}


@dataclass(frozen=True)
class _Parts:
    """Work of each stage on its own, with what the stage before it hands over."""

    depth: Work
    vision: Work
    prefill: Work
    decode_and_head: Work
    head: Work
    passes: int


def bench_predict(size: str, *, device: str = "cpu", rounds: int = 7) -> Report:
    """Time a chunk of four actions.

    Args:
        size: tiny, 100m or 4b (random weights).
        device: cpu or cuda.
        rounds: timed ones; every round takes each piece of work once.
    """
    check_size(size, device)
    model = bench_model(size, device=device)
    inputs = bench_inputs(model.config, device=device)
    chunk = model.config.action_chunk_size
    tokens = len(model.token_writer.slots)
    with torch.inference_mode():
        parts = _parts(model, inputs)
    without_depth = {name: tensor for name, tensor in inputs.items() if name != "depth"}
    works: dict[str, Work] = {
        "predict_action": lambda: model.predict_action(inputs),
        "generate": lambda: model.generate(
            **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        ),
        "with_depth": lambda: model.predict_action(without_depth),
        **{name: getattr(parts, name) for name in WORKS},
    }
    times = in_turns(works, rounds=rounds, device=device)
    machine = measure_machine(device, model.dtype)
    counts = parameters(model)
    report = Report(
        "predict",
        {
            "size": size,
            "device": machine.device,
            "threads": machine.threads,
            "dtype": str(model.dtype).removeprefix("torch."),
            "rounds": rounds,
            "parameters": sum(counts.values()),
            "parameters_by_part": counts,
            "prompt_tokens": inputs["input_ids"].shape[1],
            "chunk": chunk,
            "tokens": tokens,
        },
    )
    _add_times(report, times, chunk)
    _add_floor(report, model, parts, machine, tokens)
    add_chunks(report, model, inputs, rounds=rounds, device=device)
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    report.add("weights", own / 2**20, "MiB", "parameters of the whole model")
    with TensorBytes() as made:
        model.predict_action(without_depth)
    report.add("peak", made.peak / 2**20, "MiB", "tensors made by predict_action with ZoeDepth")
    if device == "cpu":
        report.add("4b on a GPU", None, "ms", "4 B parameters, bfloat16, with ZoeDepth: unmeasured")
    report.notes.append("random weights: speed, not quality")
    return report


def _parts(model: SpatialVLAForConditionalGeneration, inputs: dict[str, Tensor]) -> _Parts:
    pixels, ids = inputs["pixel_values"], inputs["input_ids"]
    seen = {name: inputs[name] for name in ("pixel_values", "intrinsics", "depth")}
    embeds, _ = model.embed_inputs(ids, **seen)
    slots = model.token_writer.slots

    def prepared() -> ChunkDecoder:
        layers = TextLayers(model.language_model.model)
        mask = inputs["attention_mask"]
        return ChunkDecoder(model.token_writer, layers, ids.shape[1], embeds, mask, padded=False)

    ready = prepared()
    cache = ready.layers.empty_cache(1, ids.shape[1] + len(slots) + MAX_BRANCHES, embeds)
    hidden = ready.read_prompt(embeds, cache)

    tokens = model.grid_tokens

    def head() -> None:
        for rows in slots:
            best_of_slot(tokens, hidden, rows)

    return _Parts(
        depth=_quietly(lambda: model.depth_of(pixels)),
        vision=_quietly(lambda: model.get_image_features(**seen)),
        prefill=_quietly(lambda: prepared().read_prompt(embeds, cache)),
        decode_and_head=_quietly(lambda: ready.write_actions(hidden, cache)),
        head=_quietly(head),
        passes=ready.passes,
    )


def _quietly(work: Work) -> Work:
    return torch.inference_mode()(work)


def _add_times(report: Report, times: dict[str, Times], chunk: int) -> None:
    for stage in ("depth", "vision", "prefill"):
        report.figures.append(times[stage].figure(stage, COUNTS[stage]))
    head = times["head"].median
    report.add("decode", 1000 * (times["decode_and_head"].median - head), "ms", COUNTS["decode"])
    report.figures.append(times["head"].figure("head", COUNTS["head"]))
    ours, theirs = times["predict_action"], times["generate"]
    report.figures.append(
        ours.figure("predict_action", "a chunk, picture to token ids, depth given")
    )
    report.figures.append(
        theirs.figure("generate", "as many tokens by transformers' generate, depth given")
    )
    pairs = zip(ours.seconds, theirs.seconds, strict=True)
    ratios = Times(tuple(a / b / 1000 for a, b in pairs))
    figure = ratios.figure("ratio", "predict_action / generate, round by round")
    report.figures.append(type(figure)(**{**figure.__dict__, "unit": ""}))
    whole = times["with_depth"]
    report.figures.append(whole.figure("chunk", "a chunk with ZoeDepth, picture to token ids"))
    report.add("chunk rate", 1 / whole.median, "Hz", "chunks per second, with ZoeDepth")
    report.add("action rate", chunk / whole.median, "Hz", "actions per second, with ZoeDepth")
    report.add("chunk rate, depth given", 1 / ours.median, "Hz", "chunks per second")
    report.add("action rate, depth given", chunk / ours.median, "Hz", "actions per second")


def _add_floor(
    report: Report,
    model: SpatialVLAForConditionalGeneration,
    parts: _Parts,
    machine: Machine,
    tokens: int,
) -> None:
    """What the arithmetic and the bytes of each stage cost at the speed of a copy and a product."""
    report.add("copy", machine.bytes_per_second / 1e9, "GB/s", "a big copy, read plus written")
    report.add("product", machine.flops / 1e12, "TFLOP/s", "a big matrix product, same dtype")
    size = model.dtype.itemsize
    counts = parameters(model)
    slots = model.token_writer.slots
    passes = parts.passes
    width = model.config.text_config.hidden_size
    read = {
        "depth": size * counts["depth"],
        "vision": size * counts["vision"],
        "prefill": size * counts["text_layers"],
        "decode": size * counts["text_layers"] * passes,
        "head": size * width * sum(rows.stop - rows.start for rows in slots),
    }
    head = count_flops(parts.head)
    flops = {
        "depth": count_flops(parts.depth),
        "vision": count_flops(parts.vision),
        "prefill": count_flops(parts.prefill),
        "decode": count_flops(parts.decode_and_head) - head,
        "head": head,
    }
    total = 0.0
    for stage in STAGES:
        floor = machine.floor_ms(flops[stage], read[stage])
        total += floor
        report.add(
            f"floor of {stage}",
            floor,
            "ms",
            f"{flops[stage] / 1e9:.3g} GFLOP, {read[stage] / 2**20:.4g} MiB of weights",
        )
    report.add("floor", total, "ms", f"sum of the stages' floors; {passes} passes for {tokens - 1}")
    chunk = report["chunk"].value
    report.add("chunk over floor", chunk / total, "", "how far the chunk with ZoeDepth is from it")
