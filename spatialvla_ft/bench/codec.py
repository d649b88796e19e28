"""`spatialvla-ft bench codec`: actions to tokens and back, on one core."""

from __future__ import annotations

import numpy as np
import torch

from ..actions.gaussians import fit_gaussians
from ..actions.grid import ActionGrid
from .figures import Figure, Report, Times, Work, in_turns

BATCH = 100_000
CHUNK, CALLS = 4, 1000


def bench_codec(*, rounds: int = 7) -> Report:
    """Rate of a big batch, and time of a chunk of four actions.

    Args:
        rounds: timed ones.
    """
    rng = np.random.default_rng(0)
    actions = np.clip(rng.normal(0, 0.4, (BATCH, 7)), -1, 1)
    actions[:, 6] = actions[:, 6] > 0
    grid = ActionGrid.from_gaussians(fit_gaussians(actions))
    ids = grid.encode(actions)
    single = actions.astype(np.float32)
    few, few_ids = actions[:CHUNK], ids[:CHUNK]
    few_torch = torch.from_numpy(few)
    batches: dict[str, Work] = {
        "encode, float64": lambda: grid.encode(actions),
        "encode, float32": lambda: grid.encode(single),
        "decode": lambda: grid.decode(ids),
    }
    chunks: dict[str, Work] = {
        "encode a chunk, NumPy": lambda: grid.encode(few),
        "encode a chunk, torch": lambda: grid.encode(few_torch),
        "decode a chunk": lambda: grid.decode(few_ids),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = in_turns({**batches, **{n: _many(w) for n, w in chunks.items()}}, rounds=rounds)
    finally:
        torch.set_num_threads(threads)
    report = Report(
        "codec",
        {"bins": list(grid.bins), "batch": BATCH, "chunk": CHUNK, "threads": 1, "rounds": rounds},
    )
    for name in batches:
        report.figures.append(_rate(name, times[name]))
    for name in chunks:
        each = times[name].figure(name, f"one call with {CHUNK} actions", per=CALLS)
        in_us = {key: 1000 * getattr(each, key) for key in ("value", "low", "high")}
        report.figures.append(Figure(name, unit="us", counts=each.counts, **in_us))
    return report


def _many(work: Work) -> Work:
    def repeat() -> None:
        for _ in range(CALLS):
            work()

    return repeat


def _rate(name: str, times: Times) -> Figure:
    low, high = BATCH / max(times.seconds), BATCH / min(times.seconds)
    counts = f"actions per second, {BATCH:,} at once, one core"
    millions = [rate / 1e6 for rate in (BATCH / times.median, low, high)]
    return Figure(name, millions[0], "M/s", counts, millions[1], millions[2])
