"""What torch's own allocator says of the highest use of memory: the check on every other count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def allocator_peak(work: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """Bytes that `work` needs at once, on top of what is allocated when it begins.

    Every allocation counts, the workspace of kernels included. On a CPU the profiler's record of
    allocations is added up, on a GPU the allocator is asked.

    Args:
        work: called once, without arguments.
        device: whose allocator.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        raise ValueError(f"device {device} has no allocator record here; use 'cpu' or 'cuda'")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        work()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
