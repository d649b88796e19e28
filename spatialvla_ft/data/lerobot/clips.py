"""Where the frames of one camera lie in its videos, for all episodes at once.

Merges have written places that point into other episodes. Such a video plays without an error, so
nothing but its place tells that the pictures are another episode's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.troubles import Trouble

MERGES = (
    "LeRobot up to 0.4.1 wrote wrong places when it merged: merge again with a later one, or fetch "
    "the dataset again"
)
SPARE = 1.5
"""Frames that a clip may be longer than its episode without a word."""


@dataclass(frozen=True)
class Places:
    """Which file holds each of n episodes, by the two numbers in its name; NaN where none is told.

    Attributes:
        what: what these columns of the episode table begin with: `data`, or `videos/<camera>`.
        template: path in the dataset, from `meta/info.json`.
        names: of the numbers in the template.
        fixed: what else the template needs.
    """

    what: str
    template: str
    names: tuple[str, str]
    fixed: dict[str, str]
    chunks: Float64[np.ndarray, " n"]
    files: Float64[np.ndarray, " n"]

    @cached_property
    def known(self) -> Bool[np.ndarray, " n"]:
        """(n,) whether both are whole numbers from 0."""
        both = np.stack([self.chunks, self.files])
        with np.errstate(invalid="ignore"):
            return np.asarray((np.isfinite(both) & (both >= 0) & (both == np.rint(both))).all(0))

    def path(self, episode: int) -> str | None:
        """The file, relative to the dataset; None where the table tells none."""
        if not self.known[episode]:
            return None
        return self._path(int(self.chunks[episode]), int(self.files[episode]))

    def paths(self, episodes: Int64[np.ndarray, " m"] | None = None) -> list[str]:
        """The files of all or some episodes, each once, in order."""
        known = self.known if episodes is None else self.known[episodes]
        chunks = self.chunks if episodes is None else self.chunks[episodes]
        files = self.files if episodes is None else self.files[episodes]
        pairs = np.unique(np.stack([chunks[known], files[known]], axis=1), axis=0)
        return [self._path(int(chunk), int(file)) for chunk, file in pairs]

    def same_file(self, episode: int) -> Bool[np.ndarray, " n"]:
        """(n,) whether an episode lies in the file of this one."""
        same = (self.chunks == self.chunks[episode]) & (self.files == self.files[episode])
        return np.asarray(same)

    def _path(self, chunk: int, file: int) -> str:
        numbers: dict[str, Any] = dict(zip(self.names, (chunk, file), strict=True))
        try:
            return self.template.format(**numbers, **self.fixed)
        except (KeyError, IndexError, ValueError) as error:
            raise DatasetError(
                f"meta/info.json: the path {self.template!r} cannot be filled in with "
                f"{sorted(numbers | self.fixed)} ({error!r}); write it as LeRobot does"
            ) from None


@dataclass(frozen=True)
class Clips:
    """The stretches of video of one camera.

    Attributes:
        key: of the video.
        places: the files.
        starts: (n,) seconds into the file.
        stops: (n,) seconds into the file, NaN where the dataset does not tell.
        told_stops: whether the table has a column for them.
    """

    key: str
    places: Places
    starts: Float64[np.ndarray, " n"]
    stops: Float64[np.ndarray, " n"]
    told_stops: bool

    def path(self, episode: int) -> str:
        """The video, relative to the dataset; DatasetError where the table tells none."""
        path = self.places.path(episode)
        if path is None:
            raise DatasetError(f"{self.key!r}, episode {episode}: the episode table names no video")
        return path

    def owned(
        self, lengths: Int64[np.ndarray, " n"], fps: float, *, shared: bool
    ) -> Float64[np.ndarray, " n"]:
        """(n,) frames from its start on that belong to an episode; infinite where nothing tells.

        Up to its stop, which some writers set to the time of the last frame, and up to the start of
        the next clip in the file unless episodes may share frames.
        """
        span = (self.stops - self.starts) * fps
        frames = np.where(span < lengths - 0.5, span + 1, span)
        frames = np.where(np.isfinite(frames), frames, np.inf)
        if not shared:
            order, joins = self._order(lengths)
            gaps = np.diff(self.starts[order]) * fps
            before = order[:-1]
            frames[before] = np.where(joins, np.minimum(frames[before], gaps), frames[before])
        return np.asarray(frames)

    def _order(
        self, lengths: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " m"], Bool[np.ndarray, " m-1"]]:
        """(episodes in the order of the videos, whether each lies in the file of the one before).

        Episodes without steps or without a place are left out.
        """
        usable = np.flatnonzero(self.places.known & np.isfinite(self.starts) & (lengths > 0))
        keys = (self.starts[usable], self.places.files[usable], self.places.chunks[usable])
        order = usable[np.lexsort(keys)]
        chunks, files = self.places.chunks[order], self.places.files[order]
        return order, (np.diff(chunks) == 0) & (np.diff(files) == 0)

    def troubles(
        self, lengths: Int64[np.ndarray, " n"], fps: float, *, shared: bool
    ) -> list[Trouble]:
        """All that cannot be of these clips, from the table alone.

        Args:
            lengths: steps of every episode.
            fps: frames per second.
            shared: whether episodes may have frames in common, as the card says.
        """
        found = [*self._places(lengths, fps), *self._spans(lengths, fps)]
        return found if shared else [*found, *self._overlaps(lengths, fps)]

    def _trouble(self, rule: str, evidence: str, cure: str, cases: int, **more: Any) -> Trouble:
        where = f"camera {self.key!r}"
        return Trouble(
            rule=rule, where=where, evidence=evidence, cure=cure, cases=cases,
            **{"serious": True, **more},
        )  # fmt: skip

    def _places(self, lengths: Int64[np.ndarray, " n"], fps: float) -> list[Trouble]:
        used, found = lengths > 0, []
        low = np.where(np.isfinite(self.starts), self.starts, -np.inf) * fps < -0.5
        for name, values, wrong, allowed in (
            ("chunk_index", self.places.chunks, ~self.places.known, "a whole number from 0"),
            ("file_index", self.places.files, ~self.places.known, "a whole number from 0"),
            ("from_timestamp", self.starts, low, "seconds from 0"),
        ):
            if name != "from_timestamp":
                with np.errstate(invalid="ignore"):
                    wrong = ~((values >= 0) & (values == np.rint(values)) & np.isfinite(values))
            bad = np.flatnonzero(used & wrong)
            if len(bad):
                at = int(bad[0])
                value = "empty" if np.isnan(values[at]) else f"{values[at]:g}"
                found.append(
                    self._trouble(
                        "place of a clip",
                        f"episode {at}: {self.places.what}/{name} is {value}, it must be {allowed}",
                        "write the episode table (meta/episodes) again, or fetch the dataset again",
                        len(bad),
                    )
                )
        return found

    def _spans(self, lengths: Int64[np.ndarray, " n"], fps: float) -> list[Trouble]:
        span, found = (self.stops - self.starts) * fps, []
        used = (lengths > 0) & self.places.known & np.isfinite(self.starts)
        short = np.flatnonzero(used & (span < lengths - 1.5))
        if len(short):
            at = int(short[0])
            found.append(
                self._trouble(
                    "clip shorter than its episode",
                    f"episode {at} has {lengths[at]} steps, {lengths[at] / fps:.3f} s at {fps:g} "
                    f"fps, its clip {self.starts[at]:.3f} to {self.stops[at]:.3f} s of "
                    f"{self.path(at)} only {max(span[at] / fps, 0):.3f} s",
                    MERGES,
                    len(short),
                )
            )
        spare = np.flatnonzero(used & (span > lengths + SPARE))
        if len(spare):
            at = int(spare[0])
            found.append(
                self._trouble(
                    "clip longer than its episode",
                    f"episode {at} has {lengths[at]} steps, its clip of {self.path(at)} "
                    f"{span[at]:.1f} frames at {fps:g} fps",
                    "look whether its pictures fit its steps (data inspect --out PAGE); frames to "
                    "spare at the end do no harm, another rate would",
                    len(spare),
                    serious=False,
                )
            )
        unknown = np.flatnonzero(used & ~np.isfinite(self.stops))
        if self.told_stops and len(unknown):
            found.append(
                self._trouble(
                    "end of a clip unknown",
                    f"episode {unknown[0]}: {self.places.what}/to_timestamp is empty",
                    "its clip is taken to be as long as the episode",
                    len(unknown),
                    serious=False,
                )
            )
        return found

    def _overlaps(self, lengths: Int64[np.ndarray, " n"], fps: float) -> list[Trouble]:
        """Frames that two episodes own.

        Half a frame of leeway is what rounded times need: the reader takes a frame only if it lies
        within a quarter of one from the time asked for, so two clips that can be read at all and
        share no frame are off by less.
        """
        order, joins = self._order(lengths)
        first = self.starts[order] * fps
        # Where a clip overlaps any other of its file, two neighbours in the file do.
        bad = np.flatnonzero(joins & (np.diff(first) < lengths[order][:-1] - 0.5))
        if not len(bad):
            return []
        one, other = int(order[bad[0]]), int(order[bad[0] + 1])
        start = float(self.starts[other])
        stop = min(float(self.starts[e] + lengths[e] / fps) for e in (one, other))
        return [
            self._trouble(
                "overlapping clips",
                f"episodes {min(one, other)} and {max(one, other)} both claim {start:.3f} to "
                f"{stop:.3f} s of {self.path(other)}, so one of them would show the other's "
                "pictures",
                f"{MERGES}; only where episodes are meant to share frames, say "
                "video: {shared: true} in the card",
                len(bad),
                unit="such pairs",
            )
        ]
