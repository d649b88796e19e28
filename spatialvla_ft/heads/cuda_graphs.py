"""On a GPU: a whole chunk as one CUDA graph.

A decoding pass of a 4 B model keeps a GPU busy for a millisecond, while Python needs several to
launch it. So the prompt's pass and all passes of the chunk are captured once per batch size and
prompt length (in steps of `LENGTH_STEP`, padded on the left), and replayed with a single launch.

Every capture is checked against the same passes run eagerly before it is used. If capturing fails
or the numbers differ, a warning says so and prediction stays eager. Shape letters as in
`decoding.py`.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .chunk_decoder import MAX_BRANCHES, ChunkDecoder, TokenWriter
from .gemma_layers import TextLayers

logger = logging.getLogger(__name__)

LENGTH_STEP = 32
MAX_GRAPHS = 4
"""Graphs that are kept; each holds a cache and its working memory."""


class GraphedChunk:
    """One captured graph: embeddings of a prompt in, ids of a chunk out.

    Args:
        writer: of a language model of plain linear layers, on a GPU.
        embeds: (B, T, D) of the first prompt, padded to the graph's length.
        attention_mask: (B, T), pads on the left.

    Raises:
        RuntimeError: CUDA refused to capture, or the replay's ids differ from the eager ones.
    """

    def __init__(
        self,
        writer: TokenWriter,
        embeds: Float[Tensor, "B T D"],
        attention_mask: Int[Tensor, "B T"],
    ) -> None:
        self.embeds, self.mask = embeds.clone(), attention_mask.clone()
        batch, length, _ = embeds.shape
        text = writer.text
        room = length + len(writer.slots) + MAX_BRANCHES
        cache = TextLayers(text).empty_cache(batch, room, embeds)

        def passes() -> Tensor:
            layers = TextLayers(text)  # in here: what it computes of the weights is captured, too
            decoder = ChunkDecoder(writer, layers, length, self.embeds, self.mask, padded=True)
            return decoder(self.embeds, cache)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # as torch asks for: warm up beside the default stream
            for _ in range(3):
                eager = passes()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.ids = passes()
        self.graph.replay()
        if not torch.equal(self.ids, eager):
            raise RuntimeError("the replay chooses other tokens than the passes it was made of")

    def __call__(self, embeds: Tensor, attention_mask: Tensor) -> Int[Tensor, "B N"]:
        """Absolute ids for a prompt of the captured size."""
        self.embeds.copy_(embeds)
        self.mask.copy_(attention_mask)
        self.graph.replay()
        return self.ids.clone()


class GraphStore:
    """The graphs of one model, least recently used first; copies of the model start empty."""

    def __init__(self) -> None:
        self.graphs: OrderedDict[Any, GraphedChunk | None] = OrderedDict()
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphStore:
        return GraphStore()

    def __reduce__(self) -> tuple[type[GraphStore], tuple[()]]:
        return GraphStore, ()


def can_capture(writer: TokenWriter, embeds: Tensor) -> bool:
    """Whether a chunk may become a graph: on a GPU, and nothing Python decides at each layer.

    An adapter that is not merged can be switched or disabled between calls without a trace in the
    weights, so its model predicts eagerly; merge it for speed.
    """
    linear = (
        m for layer in writer.text.layers for n, m in layer.named_modules() if n.endswith("_proj")
    )
    return embeds.is_cuda and all(type(module) is nn.Linear for module in linear)


@torch.inference_mode()
def graphed_greedy(
    writer: TokenWriter,
    embeds: Float[Tensor, "B T D"],
    attention_mask: Int[Tensor, "B T"],
) -> Int[Tensor, "B N"] | None:
    """Ids of a chunk by replaying its graph; None if it cannot be captured (a warning says why)."""
    embeds, attention_mask = pad_left(embeds, attention_mask)
    rows = tuple((where.start, where.stop) for where in writer.slots)
    key = (tuple(embeds.shape), embeds.dtype, embeds.device, rows, _weights(writer))
    store: GraphStore = writer.kept.setdefault("_graphs", GraphStore())
    with store.lock:
        if key not in store.graphs:
            try:
                store.graphs[key] = GraphedChunk(writer, embeds, attention_mask)
            except RuntimeError as error:
                logger.warning("prediction runs without a CUDA graph, slower: %s", error)
                store.graphs[key] = None
            while len(store.graphs) > MAX_GRAPHS:
                store.graphs.popitem(last=False)
        store.graphs.move_to_end(key)
        graph = store.graphs[key]
        return None if graph is None else graph(embeds, attention_mask)


def pad_left(
    embeds: Float[Tensor, "B T D"], attention_mask: Int[Tensor, "B T"]
) -> tuple[Float[Tensor, "B U D"], Int[Tensor, "B U"]]:
    """Pads on the left up to a multiple of `LENGTH_STEP`, so that few lengths exist."""
    more = -embeds.shape[1] % LENGTH_STEP
    return F.pad(embeds, (0, 0, more, 0)), F.pad(attention_mask, (more, 0))


def _weights(writer: TokenWriter) -> int:
    """Changes when a weight moves; a graph reads the addresses that it was captured with."""
    tokens = writer.tokens
    tables = (tokens.lm_head, tokens.spatial, tokens.apart)
    modules = (writer.text, *(table for table in tables if table is not None))
    return hash(tuple(p.data_ptr() for module in modules for p in module.parameters()))
