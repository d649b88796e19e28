"""LeRobot datasets on the Hugging Face Hub: fetched whole at a revision, and published."""

from __future__ import annotations

import re
from pathlib import Path

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.info import is_lerobot
from spatialvla_ft.data.lerobot.push_plan import PRIVATE_FILES, plan_dataset

HUB = "hf://datasets/"
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
        if not _is_hub(error):
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


def push_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str = "Upload dataset",
    token: str | None = None,
) -> str:
    """Publish a LeRobot dataset in one commit; returns the commit's id.

    What goes is what `plan_dataset` lists. The commit is tagged with the dataset's format version,
    since LeRobot looks for that tag.

    Args:
        folder: the dataset.
        repo_id: OWNER/NAME; made if it does not exist.
        private: whether only its owner sees a new repository. One that is public already is written
            to only with private=False; a private one stays private.
        revision: branch to write to, made if need be; the default branch if not given.
        message: of the commit.
        token: access token; the stored login if not given. It is never logged.

    Raises:
        DatasetError: no complete LeRobot dataset, a public repository that was to be private, or
            the Hub refused or did not answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    plan = plan_dataset(folder, repo_id)
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if private and not api.dataset_info(repo_id).private:
            raise DatasetError(
                f"{repo_id} is public, and so would be what is pushed: nothing was sent. Pass "
                "--public (private=False) if that is meant, or make the repository private"
            )
        if revision is not None:
            api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(file.path, str(file.source)) for file in plan.files],
            commit_message=message,
            repo_type="dataset",
            revision=revision,
        )
        if revision is None:
            _tag(api, repo_id, plan.version, commit.oid)
    except Exception as error:
        reason = _reason(error)
        if not _is_hub(reason):
            raise
        status = getattr(getattr(reason, "response", None), "status_code", None)
        said = f"status {status}" if status else type(reason).__name__
        raise DatasetError(
            f"cannot publish {folder} as {repo_id} ({said}): check that you may write there "
            "(hf auth login), and the network; a second try goes on where this one stopped, and "
            "until then the repository shows all of an earlier push or nothing"
        ) from error
    return str(commit.oid)


def is_private(repo_id: str, *, token: str | None = None) -> bool:
    """Whether only its owner sees a dataset's repository."""
    from huggingface_hub import HfApi

    return bool(HfApi(token=token).dataset_info(repo_id).private)


def _reason(error: Exception) -> Exception:
    """What really happened: an upload in one of several threads fails with a RuntimeError."""
    inner = error.__cause__
    return inner if isinstance(error, RuntimeError) and isinstance(inner, Exception) else error


def _is_hub(error: Exception) -> bool:
    """Whether the Hub or the way to it failed: huggingface_hub's HTTP client varies by version."""
    known = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "requests")
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in known


def _tag(api: object, repo_id: str, version: str, commit: str) -> None:
    """Move the version's tag to a commit."""
    from huggingface_hub import HfApi

    assert isinstance(api, HfApi)
    tags = api.list_repo_refs(repo_id, repo_type="dataset").tags
    if any(tag.name == version for tag in tags):
        api.delete_tag(repo_id, tag=version, repo_type="dataset")
    api.create_tag(repo_id, tag=version, revision=commit, repo_type="dataset")
