"""Everything that `data stats` says of a dataset or a mixture, computed here or in other processes.

What a scan finds is kept under a hash of the card and the content, so that an unchanged dataset is
never read again; see `content.py`.

Scans of datasets and mixtures: several processes, live progress, and nothing read twice.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from spatialvla_ft.actions.fit import Gaussians
from spatialvla_ft.actions.normalise import ActionStatistics
from spatialvla_ft.data.samples import SampleDataset
from spatialvla_ft.data.stats.fits import MixtureActions, QuantileFit
from spatialvla_ft.data.stats.kept import content_key, is_kept, kept_json
from spatialvla_ft.data.stats.statistics import RANGES, dataset_statistics

if TYPE_CHECKING:
    from spatialvla_ft.actions.normalise import ActionStatistics
    from spatialvla_ft.data.samples import SampleDataset
    from spatialvla_ft.data.stats.fits import MixtureActions, QuantileFit

KEPT = "scan"
STAGES = 3
"""Parts of a scan of a dataset: statistics, Gaussian fit, quantile fit."""


@dataclass(frozen=True)
class Scan:
    """What is known of the actions of a dataset.

    Attributes:
        statistics: of the standard actions, in the robot's units.
        gaussians: fit of the normalised actions.
        quantiles: bins of equal counts of the normalised actions.
    """

    statistics: ActionStatistics
    gaussians: Gaussians
    quantiles: QuantileFit

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Scan:
        """From what was kept, or came from another process."""
        return cls(
            ActionStatistics.from_dict(content["statistics"]),
            content["gaussians"],
            QuantileFit.from_dict(content["quantiles"]),
        )


Tell = Callable[[str, int, int], None]
"""Called with some work, how much of it is done, and of how much."""


def say_nothing(what: str, done: int, total: int) -> None:
    """Told, and tells nobody."""


class Channel(Protocol):
    """The way from another process to the one that asked."""

    def send(self, message: Any) -> None:
        """Send a message."""


def is_scanned(dataset: SampleDataset) -> bool:
    """Whether a scan of exactly this content, by this card, was kept."""
    return is_kept(dataset.store.statistics_dir, KEPT, content_key(dataset, RANGES))


def scan_dataset(dataset: SampleDataset, *, advance: Callable[[], None] = lambda: None) -> Scan:
    """Read a dataset unless what it says is known; `advance` is called after each stage."""
    return Scan.from_dict(_scan(dataset, advance))


def is_summed_up(actions: MixtureActions) -> bool:
    """Whether the statistics and the quantiles of a mixture are kept, so that nothing is read."""
    folder = actions.datasets[0].store.statistics_dir
    return is_kept(folder, "mixture", actions.key()) and is_kept(
        folder, "quantiles", actions.quantile_key()
    )


def dataset_process(channel: Channel, dataset: SampleDataset) -> None:
    """In another process: scan a dataset, saying 1 after each stage, then what was found."""
    channel.send(_scan(dataset, lambda: channel.send(1)))


def summary_process(channel: Channel, actions: MixtureActions) -> None:
    """In another process: the statistics of a mixture as drawn."""
    channel.send(actions.summary().to_dict())


def quantiles_process(channel: Channel, actions: MixtureActions) -> None:
    """In another process: the quantile fit of a mixture."""
    channel.send(actions.quantiles().to_dict())


def _scan(dataset: SampleDataset, advance: Callable[[], None]) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        statistics = dataset_statistics(dataset)
        advance()
        actions = MixtureActions([dataset], {dataset.name: statistics}, [1.0])
        gaussians = actions.gaussians()
        advance()
        found = {
            "statistics": statistics.to_dict(),
            "gaussians": gaussians,
            "quantiles": actions.quantiles().to_dict(),
        }
        advance()
        return found

    folder = dataset.store.statistics_dir
    content: dict[str, Any] = kept_json(folder, KEPT, content_key(dataset, RANGES), compute)
    return content


PROCESSES = "spatialvla_ft.data.stats.scan"


def check_workers(workers: int | None) -> int:
    """How many processes may scan at once: as asked for, or one per core."""
    if workers is None:
        return os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"--workers is {workers}; give 1 or more")
    return workers


def scan_datasets(
    datasets: Sequence[SampleDataset], workers: int, *, tell: Tell = say_nothing
) -> dict[str, Scan]:
    """{dataset: what a scan finds}; only those that are new are read, each by one process.

    `tell` is called with "reading actions", the numbers read, and how many are to be read.
    """
    names = [dataset.name for dataset in datasets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{twice} stand(s) in the mixture more than once, by what the data call themselves; "
            "statistics are kept by that name, so leave one of them out"
        )
    new = [dataset for dataset in datasets if not is_scanned(dataset)]
    sizes = {dataset.name: int(dataset.episode_lengths.sum()) for dataset in new}
    # The largest first, so that no long one is left to a single process at the end.
    new.sort(key=lambda dataset: -sizes[dataset.name])
    found: dict[str, Scan] = {}
    advance = _counting(tell, "reading actions", STAGES * sum(sizes.values()))
    if min(workers, len(new)) > 1:

        def run(dataset: SampleDataset) -> Any:
            step = sizes[dataset.name]
            return _in_process("dataset_process", dataset, lambda: advance(step))

        with ThreadPoolExecutor(workers) as pool:
            for dataset, content in zip(new, pool.map(run, new), strict=True):
                found[dataset.name] = Scan.from_dict(content)
    for dataset in datasets:
        if dataset.name not in found:
            step = sizes.get(dataset.name, 0)
            found[dataset.name] = scan_dataset(dataset, advance=partial(advance, step))
    return {dataset.name: found[dataset.name] for dataset in datasets}


@dataclass(frozen=True)
class ScannedMixture:
    """An opened mixture whose datasets were scanned.

    Attributes:
        datasets, shares: its parts, and their shares of the draws.
        scans: {dataset: what a scan found}.
        excluded: datasets that count for nothing in `actions`.
        actions: as they are drawn.
    """

    datasets: Sequence[SampleDataset]
    shares: Sequence[float]
    scans: dict[str, Scan]
    excluded: tuple[str, ...]
    actions: MixtureActions


def open_mixture_actions(
    name: str,
    file: Path | None,
    root: Path | None,
    exclude: Sequence[str],
    workers: int,
    *,
    tell: Tell = say_nothing,
) -> ScannedMixture:
    """Open a mixture by name and scan what is new in it."""
    from spatialvla_ft.actions.layout import slots_of
    from spatialvla_ft.data.mixtures import excluded_datasets, find_mixture, open_mixture
    from spatialvla_ft.data.reading import Reading
    from spatialvla_ft.data.stats.fits import MixtureActions

    parts = find_mixture(name, file)
    excluded = excluded_datasets(exclude, list(parts), file)
    opened = open_mixture(parts, root=root, reading=Reading(card=None))
    first, *others = opened.datasets
    for other in others:
        if slots_of(other.action_space) != slots_of(first.action_space):
            raise ValueError(
                f"{other.name} has actions {other.action_space.names}, {first.name} "
                f"{first.action_space.names}: no grid fits both; split the mixture"
            )
    scans = scan_datasets(opened.datasets, workers, tell=tell)
    statistics = {key: scan.statistics for key, scan in scans.items()}
    actions = MixtureActions(opened.datasets, statistics, opened.weights)
    if excluded:
        actions = actions.without(excluded)
    return ScannedMixture(opened.datasets, opened.weights, scans, excluded, actions)


def sum_up(
    actions: MixtureActions, workers: int, *, tell: Tell = say_nothing
) -> tuple[ActionStatistics, QuantileFit]:
    """Statistics of a mixture as drawn, and its quantile fit; both at once with two processes."""
    from spatialvla_ft.actions.normalise import ActionStatistics
    from spatialvla_ft.data.stats.fits import QuantileFit

    known = is_summed_up(actions)
    advance = _counting(tell, "summing up the mixture", 0 if known else 2)
    if known or workers < 2:
        summary = actions.summary()
        advance(1)
        quantiles = actions.quantiles()
        advance(1)
        return summary, quantiles

    def run(target: str) -> Any:
        content = _in_process(target, actions, lambda: None)
        advance(1)
        return content

    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(run, ("summary_process", "quantiles_process"))
        summary_content, quantile_content = parts
    return ActionStatistics.from_dict(summary_content), QuantileFit.from_dict(quantile_content)


def _counting(tell: Tell, what: str, total: int) -> Callable[[int], None]:
    """What is called with how much more is done; a work of nothing is not told of."""
    lock, done = threading.Lock(), 0

    def advance(amount: int) -> None:
        nonlocal done
        with lock:
            done += amount
            if total:
                tell(what, done, total)

    return advance


def _in_process(target: str, argument: Any, advance: Callable[[], None]) -> Mapping[str, Any]:
    """What a process of its own answers; every message 1 before that is progress."""
    from spatialvla_ft.processes import Worker

    role = "a process that reads the actions"
    with Worker(f"{PROCESSES}:{target}", argument, role=role) as worker:
        while not isinstance(message := worker.recv(), dict):
            advance()
    return message
