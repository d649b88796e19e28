"""Numbers as the report writes them."""

from __future__ import annotations

from spatialvla_ft.evaluation.outcome import Share

NBSP = "\u00a0"
"""A space at which no line breaks."""


def percent(share: float) -> str:
    """0.755 is 76 %; tenths where rounding would hide that it is not 0 or 1."""
    digits = 1 if share != 0 and share != 1 and not 0.01 <= share < 0.995 else 0
    return f"{100 * share:.{digits}f}{NBSP}%"


def interval(share: Share) -> str:
    """Wilson 95 % interval in percent."""
    low, high = share.interval
    return f"{percent(low)} to{NBSP}{percent(high)}"


def count(share: Share) -> str:
    """So many of so many."""
    return f"{share.count} of {share.trials}"


def rated(share: Share) -> str:
    """Count, share and interval."""
    return f"{count(share)} ({percent(share.rate)}, 95{NBSP}% interval {interval(share)})"


def seconds(value: float) -> str:
    """12.3 s, or 2 min 05 s from a minute and a half on."""
    if value < 90:
        return f"{value:.1f}{NBSP}s"
    return f"{int(value + 0.5) // 60} min {int(value + 0.5) % 60:02d} s"
