"""Everything that `data stats` says of a dataset or a mixture, computed here or in other processes.

What a scan finds is kept under a hash of the card and the content, so that an unchanged dataset is
never read again; see `content.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from spatialvla_ft.actions.fit import Gaussians
from spatialvla_ft.actions.normalise import ActionStatistics
from spatialvla_ft.data.content import content_key, is_kept, kept_json
from spatialvla_ft.data.fits import MixtureActions, QuantileFit
from spatialvla_ft.data.sample_dataset import SampleDataset
from spatialvla_ft.data.statistics import RANGES, dataset_statistics

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
