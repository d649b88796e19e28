"""Smells of episodes as a whole: their length, their words, their rate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from spatialvla_ft.inspection.findings import Finding, percent

_CODE = re.compile(r"b?(['\"]).*\1|\[.*\]|\{.*\}|(array|tensor)\(.*\)", re.DOTALL)
"""A list, a mapping or a string as JSON or Python writes it."""


def short_episodes(lengths: Int64[np.ndarray, " n"], episodes: Sequence[int]) -> list[Finding]:
    """Episodes with no step or one, and those far shorter than the rest."""
    found = []
    tiny = lengths <= 1
    if tiny.any():
        first = episodes[int(np.flatnonzero(tiny)[0])]
        found.append(
            Finding(
                rule="episode of one step",
                severity="warning",
                where=f"episode {first}" + (" and others" if tiny.sum() > 1 else ""),
                evidence=f"{int(tiny.sum())} of {len(lengths)} episodes have at most one step "
                "after the card's drops",
                cure="leave them out; an episode of one step shows no motion",
            )
        )
    middle = float(np.median(lengths))
    short = (lengths > 1) & (lengths < max(5.0, 0.2 * middle))
    if short.any() and middle >= 5:
        worst = int(np.argmin(np.where(short, lengths, lengths.max() + 1)))
        found.append(
            Finding(
                rule="short episode",
                severity="warning",
                where=f"episode {episodes[worst]}" + (" and others" if short.sum() > 1 else ""),
                evidence=f"{int(short.sum())} of {len(lengths)} episodes are shorter than a fifth "
                f"of the median of {middle:.0f} steps; the shortest has {lengths[worst]}",
                cure="look at them: aborted attempts should be left out",
            )
        )
    return found


def instructions(said: Sequence[Sequence[str] | None]) -> list[Finding]:
    """Empty words, or the same words everywhere.

    Args:
        said: of every episode the words of each step, None where the dataset has none.
    """
    count = len(said)
    if all(words is None for words in said):
        return [
            Finding(
                rule="no instructions",
                severity="warning",
                where="language",
                evidence="the card names no column with words",
                cure="language: {kind: string, key: <column>}; without words a policy cannot be "
                "told what to do",
            )
        ]
    firsts = [next((word for word in words or () if word.strip()), "") for words in said]
    found = []
    empty = sum(not first for first in firsts)
    if empty:
        found.append(
            Finding(
                rule="empty instruction",
                severity="warning",
                where="language",
                evidence=f"{empty} of {count} episodes ({percent(empty / count)}) have no words",
                cure="check language.key, or leave those episodes out",
            )
        )
    wrapped = [words for words in firsts if _CODE.fullmatch(words.strip())]
    if wrapped:
        found.append(
            Finding(
                rule="words look like code",
                severity="warning",
                where="language",
                evidence=f"{len(wrapped)} of {count} episodes ({percent(len(wrapped) / count)}) "
                f"say something like {wrapped[0][:60]!r}: JSON, or what Python prints, around the "
                "words",
                cure="write the sentence alone when the data is made; the policy would be asked "
                "with brackets and quotation marks, and never hear them from a user",
            )
        )
    kinds = Counter(firsts)
    if count > 1 and len(kinds) == 1 and not empty:
        found.append(
            Finding(
                rule="one instruction",
                severity="note",
                where="language",
                evidence=f"all {count} episodes say {firsts[0]!r}",
                cure="fine for one task; the policy will not learn to listen",
            )
        )
    changing = sum(len({word for word in words or () if word}) > 1 for words in said)
    if changing:
        found.append(
            Finding(
                rule="changing instruction",
                severity="note",
                where="language",
                evidence=f"the words change within {changing} of {count} episodes",
                cure="fine where an episode has several parts; every step keeps its own words",
            )
        )
    return found


def control_rate(stated: float | None, measured: float | None) -> list[Finding]:
    """A rate that nobody states, or that the time stamps contradict.

    Args:
        stated: Hz that the card gives.
        measured: Hz that the dataset's time stamps give.
    """
    if stated is None:
        hint = "" if measured is None else f"; the time stamps say {measured:.3g} Hz"
        return [
            Finding(
                rule="control rate missing",
                severity="warning",
                where="control_hz",
                evidence="the card states no rate" + hint,
                cure=f"control_hz: {measured:.3g}"
                if measured
                else "write control_hz: <steps per second> into the card",
            )
        ]
    if measured is None or abs(stated / measured - 1) < 0.1:
        return []
    return [
        Finding(
            rule="control rate contradicted",
            severity="warning",
            where="control_hz",
            evidence=f"the card says {stated:g} Hz, the time stamps {measured:.3g} Hz",
            cure=f"control_hz: {measured:.3g}, unless the stamps are no seconds",
        )
    ]
