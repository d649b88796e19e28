"""Which frame of its clip every row shows: by its time stamp, by its number, or by both.

LeRobot first looked for a frame at `timestamp`, and does now at `frame_index / fps`; in what it
records both are the same. Stamps of a clock are not, and a frame that is looked for by them may be
another one, even one of the next episode in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from spatialvla_ft.data.lerobot.troubles import Trouble

Clock = Literal["timestamp", "frame_index"]
TOLERANCE = 0.25
"""Frames between a stamp and its frame. The decoder takes no frame further off than that, and a
clip begins within half a frame of one, so what is found is off by less than one: it is the right
one."""
BOTH_AGREE = (
    "where the video has one frame per row, as LeRobot writes it, say video: {time: frame_index} "
    "in the card; where its frames stand at these stamps, video: {time: timestamp}"
)


@dataclass(frozen=True)
class Rows:
    """Some rows, whole episodes in order.

    Attributes:
        owners: (r,) their episodes.
        steps: (r,) which row of its episode each is.
        stamps: (r,) `timestamp`, seconds, NaN where it is empty; None without such a column.
        numbers: (r,) `frame_index`, NaN where it is empty; None without such a column.
    """

    owners: Int64[np.ndarray, " r"]
    steps: Int64[np.ndarray, " r"]
    stamps: Float64[np.ndarray, " r"] | None
    numbers: Float64[np.ndarray, " r"] | None

    def frames(self, fps: float, clock: Clock | None) -> Float64[np.ndarray, " r"]:
        """(r,) which frame of its clip each row shows, fractions and all."""
        if self.stamps is not None and clock != "frame_index":
            return self.stamps * fps
        if self.numbers is not None:
            return self.numbers
        return self.steps.astype(np.float64)

    def troubles(
        self, fps: float, clock: Clock | None, owned: Mapping[str, Float64[np.ndarray, " n"]]
    ) -> list[Trouble]:
        """Rows of which it is not sure which frame they show.

        Args:
            fps: frames per second.
            clock: what the card goes by; None where stamps and numbers must agree.
            owned: key of a camera -> frames that belong to each episode.
        """
        frames = self.frames(fps, clock)
        by_stamp = self.stamps is not None and clock != "frame_index"
        column = "timestamp" if by_stamp else "frame_index"
        found = []
        empty = ~np.isfinite(frames)
        found += self._trouble(
            empty,
            "frame unknown",
            column,
            lambda at: f"{column} is {'empty' if np.isnan(frames[at]) else frames[at]}",
            "write the numbers that are missing; in the card, video: {time: "
            f"{'frame_index' if by_stamp else 'timestamp'}}} goes by the other column",
        )
        frames = np.where(empty, self.steps, frames)
        if clock is None and by_stamp:
            # A row without a number is the one after that before it.
            numbers = self.steps if self.numbers is None else self.numbers
            numbers = np.where(np.isfinite(numbers), numbers, self.steps)
            found += self._trouble(
                ~empty & (np.abs(frames - numbers) > TOLERANCE),
                "clock stamps",
                column,
                lambda at: (
                    f"timestamp is {frames[at] / fps:.6g} s, but frame_index {numbers[at]:g} is at "
                    f"{numbers[at] / fps:.6g} s at {fps:g} fps, "
                    f"{abs(frames[at] - numbers[at]):.2f} frames away"
                ),
                BOTH_AGREE,
            )
        back = np.zeros(len(frames), bool)
        back[1:] = (np.diff(self.owners) == 0) & (np.diff(frames) <= 0)
        found += self._trouble(
            back & ~empty,
            "rows out of order",
            column,
            lambda at: f"{column} goes from {frames[at - 1]:g} to {frames[at]:g} (in frames)",
            "sort the rows of every episode by frame_index",
        )
        for key, frames_of in owned.items():
            last = frames_of[self.owners] - 0.5
            found += self._trouble(
                ~empty & ((frames < -TOLERANCE) | (frames > last)),
                "row beyond its clip",
                f"camera {key!r}",
                lambda at, last=last: (
                    f"{column} asks for frame {frames[at]:.2f} of a clip of "
                    f"{last[at] + 0.5:g} frames"
                ),
                BOTH_AGREE,
            )
        return found

    def _trouble(
        self, bad: Bool[np.ndarray, " r"], rule: str, where: str, told: object, cure: str
    ) -> list[Trouble]:
        rows = np.flatnonzero(bad)
        if not len(rows):
            return []
        at = int(rows[0])
        assert callable(told)
        return [
            Trouble(
                rule=rule,
                serious=True,
                where=where,
                evidence=f"episode {self.owners[at]}, step {self.steps[at]}: {told(at)}",
                cure=cure,
                cases=len(rows),
                unit="rows",
            )
        ]
