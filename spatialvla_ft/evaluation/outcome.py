"""What a closed-loop evaluation found, in memory and as JSON.

Shares of episodes, with their confidence intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..sim.pool import EpisodeResult

Z_95 = 1.959963984540054


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95 % unless `z` says otherwise.

    Unlike the normal approximation it stays in [0, 1] and is honest at 0 and at all successes
    (Wilson 1927).
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials and trials >= 1: {successes}, {trials}")
    share = successes / trials
    z2 = z * z / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = z / (1 + z2) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class Share:
    """`count` of `trials`."""

    count: int
    trials: int

    @property
    def rate(self) -> float:
        """The share itself."""
        return self.count / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Its Wilson 95 % interval."""
        return wilson_interval(self.count, self.trials)


@dataclass(frozen=True)
class Swap:
    """The same scenes with the other word: the instruction names the first distractor instead.

    A policy that does not read acts the same both times and ends at the same block, so it follows
    the words in no scene at all.

    Attributes:
        episodes: scenes, those of the evaluation that have a distractor.
        successes: scenes that were solved with the other word.
        wrong_objects: scenes in which the other word led to a block that it does not name.
        followed: scenes in which each of the two words led to the block that it names.
        chance: share of scenes that picking one of the blocks anew each time would follow.
        results: every episode with the other word.
        traces: as in `ClosedLoop`.
    """

    episodes: int
    successes: int
    wrong_objects: int
    followed: int
    chance: float
    results: list[EpisodeResult] = field(repr=False)
    traces: dict[int, list[list[float]]] = field(repr=False)

    @property
    def solved(self) -> Share:
        """Scenes that were solved with the other word."""
        return Share(self.successes, self.episodes)

    @property
    def wrong(self) -> Share:
        """Scenes in which the other word led to a block that it does not name."""
        return Share(self.wrong_objects, self.episodes)

    @property
    def follows(self) -> Share:
        """Scenes in which each of the two words led to the block that it names."""
        return Share(self.followed, self.episodes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            **_shares(rate=self.solved, wrong_object_rate=self.wrong, followed_rate=self.follows),
        }


@dataclass(frozen=True)
class ClosedLoop:
    """Outcome of N episodes.

    Attributes:
        policy, robot, task: what was evaluated on what.
        episodes: N.
        successes: episodes solved; `rate` and its Wilson 95 % `interval` follow.
        wrong_objects: episodes that ended at a block that was not named.
        mean_steps: actions per episode.
        settings: simulation options, and the first seed.
        results: every episode.
        traces: {seed: (steps, 7) executed actions} of the first few episodes; the simulation is
            deterministic, so they replay the episode for a picture.
        swap: the same scenes with the other word, if that was tried.
    """

    policy: str
    robot: str
    task: str
    episodes: int
    successes: int
    wrong_objects: int
    mean_steps: float
    settings: dict[str, Any]
    results: list[EpisodeResult] = field(repr=False)
    traces: dict[int, list[list[float]]] = field(repr=False)
    swap: Swap | None = None

    @property
    def rate(self) -> float:
        """Share of episodes solved."""
        return self.solved.rate

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of the rate."""
        return self.solved.interval

    @property
    def solved(self) -> Share:
        """Episodes solved, with their number."""
        return Share(self.successes, self.episodes)

    @property
    def wrong(self) -> Share:
        """Episodes that ended at a block that was not named."""
        return Share(self.wrong_objects, self.episodes)

    @property
    def collisions(self) -> int:
        """Episodes that ended because the hand hit something that stands in the way."""
        return sum(result.collided for result in self.results)

    def traced(self, *, success: bool) -> list[int]:
        """Seeds of the episodes that can be replayed and ended so."""
        ended = {result.seed: result.success for result in self.results}
        return [seed for seed, trace in self.traces.items() if trace and ended[seed] == success]

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> ClosedLoop:
        """From what `to_dict` wrote, also before there were several numbers of distractors.

        Raises:
            ValueError: a field is missing, or the counts contradict the episodes.
        """
        try:
            plain = ("policy", "robot", "task", "mean_steps")
            settings = dict(entry["settings"])
            if isinstance(settings.get("distractors"), int):
                settings["distractors"] = [settings["distractors"]]
            outcome = cls(
                **{name: entry[name] for name in plain},
                **_episodes(entry),
                settings=settings,
                swap=_swap(entry["swap"]) if entry.get("swap") is not None else None,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no closed-loop result ({error}); evaluate again") from None
        _check(outcome)
        if outcome.swap is not None:
            _check_swap(outcome, outcome.swap)
        return outcome

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            **_shares(rate=self.solved, wrong_object_rate=self.wrong),
            "collisions": self.collisions,
            "swap": None if self.swap is None else self.swap.to_dict(),
        }


def other_word(distractors: Sequence[int]) -> dict[str, Any]:
    """Simulation options under which scenes name their first distractor instead.

    Scenes without a distractor have none to name and must not be run so; where one would stand in
    the list, the simulation wants a number that it allows.
    """
    return {"other_word": True, "distractors": tuple(max(1, count) for count in distractors)}


def followed(results: Sequence[EpisodeResult], other: Sequence[EpisodeResult]) -> int:
    """Scenes solved with both words; `other` may lack scenes."""
    solved = {result.seed for result in results if result.success}
    return sum(result.success and result.seed in solved for result in other)


def _shares(**shares: Share) -> dict[str, Any]:
    """{..._rate: share, ..._interval: [low, high]}."""
    found: dict[str, Any] = {}
    for name, share in shares.items():
        found[name] = share.rate
        found[name.removesuffix("rate") + "interval"] = list(share.interval)
    return found


def _episodes(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, results and traces, as `ClosedLoop` and `Swap` both have them."""
    return {
        **{name: entry[name] for name in ("episodes", "successes", "wrong_objects")},
        "results": [EpisodeResult(**result) for result in entry.get("results", [])],
        "traces": {int(seed): trace for seed, trace in entry.get("traces", {}).items()},
    }


def _swap(entry: Mapping[str, Any]) -> Swap:
    return Swap(**_episodes(entry), followed=entry["followed"], chance=entry["chance"])


def _check(outcome: ClosedLoop | Swap) -> None:
    """The counts are those of the results, and every trace has a result."""
    results = outcome.results
    counted = sum(result.success for result in results)
    if results and (counted, len(results)) != (outcome.successes, outcome.episodes):
        raise ValueError(
            f"it says {outcome.successes} of {outcome.episodes} episodes succeeded, but lists "
            f"{counted} of {len(results)}; evaluate again"
        )
    wrong = sum(result.wrong_object for result in results)
    if results and wrong != outcome.wrong_objects:
        raise ValueError(
            f"it says {outcome.wrong_objects} episodes ended at a wrong object, but lists {wrong}; "
            "evaluate again"
        )
    untold = set(outcome.traces) - {result.seed for result in results}
    if untold:
        raise ValueError(f"traces of episodes {sorted(untold)} without their results")


def _check_swap(outcome: ClosedLoop, swap: Swap) -> None:
    try:
        _check(swap)
    except ValueError as error:
        raise ValueError(f"swap: {error}") from None
    if not (0 < swap.episodes <= outcome.episodes and 0 <= swap.followed <= swap.successes):
        raise ValueError(
            f"swap: {swap.followed} followed and {swap.successes} solved of {swap.episodes} scenes "
            f"cannot be, with {outcome.episodes} episodes; evaluate again"
        )
    if not (outcome.results and swap.results):
        return
    strange = {r.seed for r in swap.results} - {r.seed for r in outcome.results}
    if strange:
        raise ValueError(f"swap: scenes {sorted(strange)} were not evaluated with their own word")
    both = followed(outcome.results, swap.results)
    if both != swap.followed:
        raise ValueError(
            f"swap: it says {swap.followed} scenes followed both words, but lists {both}; "
            "evaluate again"
        )
