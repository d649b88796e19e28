"""What a push of a dataset would send: exactly which files, checked before anything is sent.

What holds for every upload to the Hugging Face Hub, of models and of datasets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.hub import PRIVATE_FILES
from spatialvla_ft.data.lerobot.info import is_lerobot
from spatialvla_ft.data.lerobot.store import LeRobotStore

from ..policy.stored import VerifyReport

REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
"""OWNER/NAME."""
SECRET = re.compile(rb"hf_[A-Za-z0-9]{30,}")
"""What an access token of the Hub looks like."""
LARGEST = 50 * 10**9
"""Bytes that the Hub takes in one file."""

TEXT = (".json", ".jsonl", ".md", ".txt", ".yaml", ".yml")
"""Files that a person may have written something into, and that are searched for access tokens."""


@dataclass(frozen=True)
class DatasetFile:
    """One file: its path in the repository, its bytes, and where it lies on disk."""

    path: str
    size: int
    source: Path


@dataclass(frozen=True)
class DatasetPlan:
    """Everything that a push of a dataset would send.

    Attributes:
        folder: what is pushed.
        repo_id: OWNER/NAME.
        version: of LeRobot's format, the tag of the commit.
        episodes, steps: in the dataset.
        files: in the order of their names.
        left_out: files of the folder that do not go.
    """

    folder: Path
    repo_id: str
    version: str
    episodes: int
    steps: int
    files: tuple[DatasetFile, ...]
    left_out: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder),
            "repo": self.repo_id,
            "version": self.version,
            "episodes": self.episodes,
            "steps": self.steps,
            "bytes": self.size,
            "files": [{"path": file.path, "size": file.size} for file in self.files],
            "left_out": list(self.left_out),
        }


def plan_dataset(folder: str | Path, repo_id: str) -> DatasetPlan:
    """List and check what would go; nothing is sent.

    Files and folders whose name begins with a dot stay at home.

    Raises:
        DatasetError: no LeRobot dataset, an incomplete one, one that holds an access token, or a
            name that no repository can have.
    """
    folder = Path(folder)
    if not REPO_ID.fullmatch(repo_id):
        raise DatasetError(f"{repo_id!r} is no name of a repository; write OWNER/NAME")
    if folder.is_dir() and not is_lerobot(folder) and (folder / "features.json").exists():
        raise DatasetError(
            f"{folder} is an RLDS dataset, and LeRobot datasets are what the Hub reads: convert it "
            f"first (spatialvla-ft data convert {folder} OUT --to lerobot) and push that"
        )
    store = LeRobotStore(folder)
    files, left_out = [], []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        if _stays(name):
            left_out.append(name)
        else:
            files.append(DatasetFile(name, path.stat().st_size, path))
    _refuse_broken(store, files)
    lengths = store.episode_lengths
    return DatasetPlan(
        folder=folder,
        repo_id=repo_id,
        version=store.info.version,
        episodes=len(lengths),
        steps=int(lengths.sum()),
        files=tuple(files),
        left_out=tuple(left_out),
    )


def _stays(name: str) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return hidden or any(fnmatch(name, pattern) for pattern in PRIVATE_FILES)


def _refuse_broken(store: LeRobotStore, files: list[DatasetFile]) -> None:
    named = set(store.episodes.data.paths())
    named.update(*(clips.places.paths() for clips in store.episodes.clips.values()))
    problems = [f"{name} is missing" for name in sorted(named - {file.path for file in files})]
    for file in files:
        if file.size == 0 and file.path in named:
            problems.append(f"{file.path} is empty")
        if file.size > LARGEST:
            problems.append(f"{file.path} has {file.size:,} bytes; the Hub takes {LARGEST:,}")
        if file.source.suffix in TEXT and SECRET.search(file.source.read_bytes()):
            problems.append(
                f"{file.path} holds what looks like an access token of the Hub: remove it, and "
                "revoke the token if it is real"
            )
    if problems:
        raise DatasetError(f"{store.folder} cannot be published: {'; '.join(problems[:10])}")


class PushError(ValueError):
    """A push that did not succeed; the message says what there is now, and what to do."""


@dataclass(frozen=True)
class PushFile:
    """One file as it would lie in the repository.

    Attributes:
        path: in the repository.
        size: bytes.
        sha256: of its content.
        git_oid: git's name for the content as a blob.
        source: the file on disk.
        content: what is sent in place of the file's own content; None for the file as it is.
    """

    path: str
    size: int
    sha256: str
    git_oid: str
    source: Path
    content: bytes | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"path": self.path, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class PushPlan:
    """Everything that a push would send.

    Attributes:
        folder: what is pushed.
        repo_id: OWNER/NAME.
        files: in the order of their names.
        left_out: files of the folder that do not go.
        verified: the folder's answers beside the stored ones; None where that was not asked for.
    """

    folder: Path
    repo_id: str
    files: tuple[PushFile, ...]
    left_out: tuple[str, ...]
    verified: VerifyReport | None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder),
            "repo": self.repo_id,
            "bytes": self.size,
            "files": [file.to_dict() for file in self.files],
            "left_out": list(self.left_out),
            "verified": self.verified.to_dict() if self.verified else None,
        }
