"""What a closed-loop evaluation found, in memory and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..sim.pool import EpisodeResult
from .intervals import wilson_interval


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

    @property
    def rate(self) -> float:
        """Share of episodes solved."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of the rate."""
        return wilson_interval(self.successes, self.episodes)

    def traced(self, *, success: bool) -> list[int]:
        """Seeds of the episodes that can be replayed and ended so."""
        ended = {result.seed: result.success for result in self.results}
        return [seed for seed, trace in self.traces.items() if trace and ended[seed] == success]

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> ClosedLoop:
        """From what `to_dict` wrote.

        Raises:
            ValueError: a field is missing, or the counts contradict the episodes.
        """
        try:
            results = [EpisodeResult(**result) for result in entry.get("results", [])]
            outcome = cls(
                **{n: entry[n] for n in cls.__dataclass_fields__ if n not in ("results", "traces")},
                results=results,
                traces={int(seed): trace for seed, trace in entry.get("traces", {}).items()},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"no closed-loop result ({error}); evaluate again") from None
        counted = sum(result.success for result in results)
        if results and (counted, len(results)) != (outcome.successes, outcome.episodes):
            raise ValueError(
                f"it says {outcome.successes} of {outcome.episodes} episodes succeeded, but lists "
                f"{counted} of {len(results)}; evaluate again"
            )
        untold = set(outcome.traces) - {result.seed for result in results}
        if untold:
            raise ValueError(f"traces of episodes {sorted(untold)} without their results")
        return outcome

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "rate": self.rate,
            "interval": list(self.interval),
            "wrong_object_rate": self.wrong_objects / self.episodes,
        }
