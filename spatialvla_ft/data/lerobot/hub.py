"""LeRobot datasets on the Hugging Face Hub: fetched whole at a revision, and published."""

from __future__ import annotations

import re
from pathlib import Path

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.info import is_lerobot

HUB = "hf://datasets/"
PRIVATE_FILES = [".spatialvla_ft/*", ".cache/*", "*.lock", "*.incomplete"]
"""What never leaves the folder."""
_ADDRESS = re.compile(r"([\w.-]+/[\w.-]+)(?:@(\S+))?")


def parse_address(address: str) -> tuple[str, str | None]:
    """(OWNER/NAME, revision or None) of `hf://datasets/OWNER/NAME[@REVISION]`."""
    found = _ADDRESS.fullmatch(address.removeprefix(HUB))
    if not address.startswith(HUB) or found is None:
        raise DatasetError(f"{address!r} is no Hub address; write {HUB}OWNER/NAME[@REVISION]")
    return found[1], found[2]


def fetch_dataset(repo_id: str, *, revision: str | None = None) -> Path:
    """Folder of a dataset from the Hub, in huggingface_hub's cache; what is there is not fetched.

    Args:
        repo_id: OWNER/NAME.
        revision: branch, tag or commit; the default branch if not given.

    Raises:
        DatasetError: no such dataset or revision, no access, no answer, or no LeRobot dataset.
    """
    import huggingface_hub

    where = f"{repo_id}{f' at {revision}' if revision else ''}"
    try:
        folder = huggingface_hub.snapshot_download(
            repo_id, repo_type="dataset", revision=revision, ignore_patterns=PRIVATE_FILES
        )
    except Exception as error:
        if not is_hub_error(error):
            raise
        raise DatasetError(
            f"cannot fetch dataset {where} ({type(error).__name__}): check the name and revision, "
            "whether you are logged in (hf auth login) if it is private, and the network"
        ) from error
    if not is_lerobot(Path(folder)):
        raise DatasetError(
            f"dataset {where} has no meta/info.json, so it is no LeRobot dataset; fetch RLDS "
            "datasets with their own tools and give the folder"
        )
    return Path(folder)


def is_hub_error(error: BaseException) -> bool:
    """Whether the Hub or the way to it failed: huggingface_hub's HTTP client varies by version."""
    known = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "requests")
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in known
