"""`spatialvla-ft bench graphs` and `bench flex`: a GPU's own ways, how fast and whether they agree.

A chunk as one CUDA graph beside the same passes launched one by one and beside the library's
forward; flex attention beside eager attention. Random weights leave the best two tokens of a slot
close to each other, so ids are compared in float32 too, where rounding seldom swaps them.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from ..heads.chunk_decoder import MAX_BRANCHES, ChunkDecoder
from ..heads.decoding import library_greedy
from ..heads.gemma_layers import TextLayers
from ..memory.sizes import bench_inputs, bench_model, check_size
from ..models.lora import attach_lora
from ..models.memory import cast_weights
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from .figures import Report, Times, Work, in_turns
from .train_step import BATCH, LEARNING_RATE, RANK, adapter_step, peak_of, training_inputs

NO_GPU = "needs a GPU: --device cuda"
WAYS = {
    "graph": "a chunk replayed as one CUDA graph: predict_action",
    "plain": "the same passes, launched one by one",
    "library": "token by token through the library's forward",
    "with ZoeDepth": "a chunk, picture to token ids, by predict_action, the depth estimated",
}


def bench_graphs(size: str, *, device: str = "cpu", rounds: int = 5) -> Report:
    """A chunk of four actions, depth given: as a CUDA graph, pass by pass, by the library.

    Args:
        size: tiny, 100m or 4b (random weights).
        device: cpu or cuda; without a GPU there is no graph.
        rounds: timed ones, taken in turns.
    """
    check_size(size, device)
    model = bench_model(size, device=device)
    inputs = bench_inputs(model.config, device=device)
    report = Report("graphs", _settings(size, model, device, rounds))
    works = _predictions(model, inputs)
    begin = time.perf_counter()
    works["graph"]()
    first = 1000 * (time.perf_counter() - begin)
    kept = getattr(model, "_graphs", None)
    if kept is None or None in kept.graphs.values():  # as on a CPU, or capturing was refused
        del works["graph"]
        why = NO_GPU if device == "cpu" else "no graph was captured; the log says why"
        report.add("graph", None, "ms", why)
    else:
        report.add("first graph", first, "ms", "the first prediction, capturing included")
    more = {}
    if device == "cuda":
        unknown = {name: tensor for name, tensor in inputs.items() if name != "depth"}
        more["with ZoeDepth"] = lambda: model.predict_action(unknown)
    times = in_turns({**works, **more}, rounds=rounds, device=device)
    for name in times:
        report.figures.append(times[name].figure(name, WAYS[name]))
    if "graph" in works:
        pairs = zip(times["plain"].seconds, times["graph"].seconds, strict=True)
        ratios = Times(tuple(plain / graph / 1000 for plain, graph in pairs))
        figure = ratios.figure("plain / graph", "times faster as a graph, round by round")
        report.figures.append(replace(figure, unit="x"))
    _compare(report, works, model.dtype)
    if device == "cuda":
        try:
            cast_weights(model, torch.float32)
            _compare(report, works, torch.float32)
        except torch.OutOfMemoryError:
            report.notes.append("too little memory to compare ids in float32, too")
    report.notes.append("random weights: speed and agreement, not quality")
    return report


def _predictions(
    model: SpatialVLAForConditionalGeneration, inputs: dict[str, Tensor]
) -> dict[str, Work]:
    """Three ways to the ids of one chunk."""
    writer = model.token_writer
    prompt = {name: tensor for name, tensor in inputs.items() if name != "token_type_ids"}
    seen = {name: inputs[name] for name in ("pixel_values", "intrinsics", "depth")}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    length = ids.shape[1]

    @torch.inference_mode()
    def plain() -> Tensor:
        embeds, _ = model.embed_inputs(ids, **seen)
        layers = TextLayers(model.language_model.model)
        cache = layers.empty_cache(1, length + len(writer.slots) + MAX_BRANCHES, embeds)
        decoder = ChunkDecoder(writer, layers, length, embeds, mask, padded=False)
        return decoder(embeds, cache)

    return {
        "graph": lambda: model.predict_action(inputs),
        "plain": plain,
        "library": torch.inference_mode()(
            lambda: library_greedy(writer, prompt, model.hidden_states)
        ),
    }


def _compare(report: Report, works: dict[str, Work], dtype: torch.dtype) -> None:
    """How many ids of the others are those of the plain passes."""
    wanted = works["plain"]()
    kind = str(dtype).removeprefix("torch.")
    for name in works:
        if name != "plain":
            same = int((works[name]() == wanted).sum())
            counts = "ids of the chunk that are those of the plain passes"
            report.add(f"{name}, same ids, {kind}", same, f"of {wanted.numel()}", counts)


def bench_flex(size: str, *, device: str = "cpu", rounds: int = 3) -> Report:
    """Flex attention beside eager attention: a pass over labelled prompts, and a LoRA step.

    Args:
        size: of the model; decides on the batch too.
        device: cpu or cuda; without a GPU nothing is measured, since flex has no backward there.
        rounds: timed ones, the two kernels in turns.
    """
    check_size(size, device)
    if device != "cuda":
        report = Report("flex", {"size": size, "device": device, "rounds": rounds})
        for name in ("eager step", "flex step"):
            report.add(name, None, "ms", NO_GPU)
        return report
    model = bench_model(size, device=device)
    report = Report("flex", {**_settings(size, model, device, rounds), "batch": BATCH[size]})
    one = training_inputs(model.config, 1, device=device)

    def labels_of(kernel: str) -> Tensor:
        model.set_attn_implementation(kernel)
        with torch.inference_mode():
            return model(**one, logits_to_keep="labels").logits.float()

    begin = time.perf_counter()
    flex = labels_of("flex_attention")
    compiled = time.perf_counter() - begin
    eager = labels_of("eager")
    report.add("first flex pass", compiled, "s", "one prompt, compiling the kernel included")
    same = int((flex.argmax(-1) == eager.argmax(-1)).sum())
    told = "greatest logits at the same token, along the same sequence"
    report.add("same ids", same, f"of {flex.argmax(-1).numel()}", told)
    off = float((flex - eager).abs().max() / eager.std())
    report.add("largest difference", off, "", "of a logit, over the spread of all")

    peft_model = attach_lora(model, rank=RANK).train()
    adapters = [p for p in peft_model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(adapters, lr=LEARNING_RATE, weight_decay=0.0)
    inputs = training_inputs(model.config, BATCH[size], device=device)
    step = adapter_step(peft_model, optimiser, adapters, inputs)

    def stepped(kernel: str) -> Work:
        def work() -> None:
            model.set_attn_implementation(kernel)
            step()

        return work

    works = {"eager": stepped("eager"), "flex": stepped("flex_attention")}
    begin = time.perf_counter()
    works["flex"]()
    report.add(
        "first flex step", time.perf_counter() - begin, "s", "compiling forward and backward"
    )
    times = in_turns(works, rounds=rounds, device=device)
    for name, work in works.items():
        counts = "a LoRA step: forward, backward, clipping, AdamW"
        report.figures.append(times[name].figure(f"{name} step", counts))
        peak = peak_of(work, device) / 2**20
        report.add(f"{name} peak", peak, "MiB", "tensors made by one step")
    ratio = times["eager"].median / times["flex"].median
    report.add("eager / flex", ratio, "x", "how much faster a step with flex attention is")
    return report


def _settings(
    size: str, model: SpatialVLAForConditionalGeneration, device: str, rounds: int
) -> dict[str, object]:
    return {
        "size": size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "rounds": rounds,
    }
