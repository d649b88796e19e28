"""A push to the Hub: one commit, so that a repository holds all of an export or none of it.

Large files go first and stay unseen until the commit names them. Whatever fails, the error says
what the repository holds now; a second call takes up what is there already.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.hub import is_hub_error

from .plan import PushError, PushPlan, plan_dataset

logger = logging.getLogger(__name__)

ATTEMPTS = 4
FIRST_WAIT = 1.0
"""Seconds before the second attempt; each later one waits twice as long."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers that another attempt may mend."""
RACES = (409, 412)
"""Answers that say that the repository has changed meanwhile."""
LONGEST_ANSWER = 300
"""Letters of the Hub's own words that an error repeats."""
HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")

T = TypeVar("T")


@dataclass(frozen=True)
class Pushed:
    """What the Hub holds now.

    Attributes:
        repo_id: OWNER/NAME.
        url: of the repository.
        commit: that holds the export.
        revision: branch that was written to.
        private: whether only its owner sees the repository.
        created: whether this call made the repository.
        changed: files that the commit added or changed; 0 where everything was there already.
        removed: weights of an earlier push that the commit removed.
    """

    repo_id: str
    url: str
    commit: str
    revision: str
    private: bool
    created: bool
    changed: int
    removed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "removed": list(self.removed)}


def push(
    plan: PushPlan,
    *,
    token: str,
    private: bool = True,
    revision: str = "main",
    message: str = "Upload from spatialvla-ft",
) -> Pushed:
    """Make the repository if need be, send what it lacks, and commit once.

    Args:
        plan: what to send.
        token: access token; it appears in no message.
        private: whether a new repository is seen by its owner only. One that is public already is
            written to only with private=False.
        revision: branch to write to, made if need be.
        message: of the commit.

    Raises:
        PushError: what failed, what the repository holds now, and what to do.
    """
    return _Push(plan, token, private, revision, message).run()


class _Push:
    """The steps of one push, in order."""

    def __init__(
        self, plan: PushPlan, token: str, private: bool, revision: str, message: str
    ) -> None:
        self.plan, self.token, self.private = plan, token, private
        self.revision, self.message = revision, message
        self.api = HfApi(token=token)
        self.created = False

    def run(self) -> Pushed:
        """All steps; see `push`."""
        repo = self.plan.repo_id
        info = self._repository()
        if self.revision != "main":
            self._try(
                "making the branch",
                lambda: self.api.create_branch(repo, branch=self.revision, exist_ok=True),
            )
        operations = self._operations()
        changed, removed = self._differences()
        commit = self._head()
        if changed or removed:
            wanted = [op for op in operations if op.path_in_repo in changed]
            self._try(
                "sending large files",
                lambda: self.api.preupload_lfs_files(repo, wanted, revision=self.revision),
            )
            commit = self._try("the commit", lambda: self._commit(operations), races=True)
            changed_still, _ = self._differences()
            if changed_still:
                raise self._error(
                    "the check after the commit",
                    f"{len(changed_still)} files differ from those sent: "
                    + ", ".join(sorted(changed_still)[:5]),
                )
        return Pushed(
            repo_id=repo,
            url=f"{self.api.endpoint}/{repo}",
            commit=commit,
            revision=self.revision,
            private=bool(info.private),
            created=self.created,
            changed=len(changed),
            removed=tuple(sorted(removed)),
        )

    def _repository(self) -> Any:
        """The repository, made if there is none; PushError if it is public and must not be."""
        repo = self.plan.repo_id

        def info_or_none() -> Any:
            try:
                return self.api.model_info(repo)
            except RepositoryNotFoundError:
                return None

        info = self._try("looking for the repository", info_or_none)
        if info is None:
            self._try(
                "making the repository",
                lambda: self.api.create_repo(repo, private=self.private, exist_ok=True),
            )
            self.created = True
            info = self._try("reading the repository", lambda: self.api.model_info(repo))
        if self.private and not info.private:
            raise PushError(
                f"{repo} is public, and so would be what is pushed: nothing was sent. Pass "
                "--public if that is meant, or make the repository private in its settings"
            )
        return info

    def _operations(self) -> list[CommitOperationAdd]:
        operations = []
        for file in self.plan.files:
            content = file.content if file.content is not None else str(file.source)
            operation = CommitOperationAdd(file.path, content)
            if operation.upload_info.sha256.hex() != file.sha256:
                raise PushError(
                    f"{file.source} changed while it was being pushed: nothing was committed. "
                    "Push again when nothing writes to it"
                )
            operations.append(operation)
        return operations

    def _commit(self, operations: list[CommitOperationAdd]) -> str:
        """One commit on top of what is there now, unless an earlier attempt made it."""
        changed, removed = self._differences()
        head = self._head()
        if not changed and not removed:
            return head
        made = self.api.create_commit(
            self.plan.repo_id,
            [
                *(op for op in operations if op.path_in_repo in changed),
                *(CommitOperationDelete(path) for path in sorted(removed)),
            ],
            commit_message=self.message,
            revision=self.revision,
            parent_commit=head,
        )
        return str(made.oid)

    def _head(self) -> str:
        info = self._try(
            "reading the branch",
            lambda: self.api.model_info(self.plan.repo_id, revision=self.revision),
        )
        return str(info.sha)

    def _differences(self) -> tuple[set[str], set[str]]:
        """Paths that the branch lacks or has otherwise, and weights that it must lose."""
        there = self._try("reading the branch", self._files)
        changed = {
            file.path
            for file in self.plan.files
            if there.get(file.path) not in (file.sha256, file.git_oid)
        }
        removed = {path for path in there if _is_weights(path)}
        return changed, removed - {file.path for file in self.plan.files}

    def _files(self) -> dict[str, str]:
        """Path to the content's hash: SHA-256 of large files, git's of small ones."""
        entries = self.api.list_repo_tree(self.plan.repo_id, recursive=True, revision=self.revision)
        return {
            entry.path: entry.lfs.sha256 if entry.lfs is not None else entry.blob_id
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    # ------------------------------------------------------------ failures

    def _try(self, step: str, call: Callable[[], T], *, races: bool = False) -> T:
        """Call, and call again after a failure that may pass; PushError after the last one."""
        mended = (*PASSING, *RACES) if races else PASSING
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except PushError:
                raise
            except Exception as error:
                reason = _reason(error)
                status = _status(reason)
                if status is None and not _is_transport(reason):
                    raise
                said = _said(status, reason).replace(self.token, "***")
                last = attempt == ATTEMPTS
                if last or (status is not None and status not in mended):
                    # No cause: its traceback could show the request with the token in it.
                    raise self._error(step, said, status) from None
                logger.warning("%s: %s; attempt %d follows", step, said, attempt + 1)
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _error(self, step: str, said: str, status: int | None = None) -> PushError:
        text = f"{step} failed ({said}). {self._state()} {_cure(status, self.plan.repo_id)}"
        return PushError(text)

    def _state(self) -> str:
        """What the repository holds now, as far as the Hub answers."""
        repo = self.plan.repo_id
        try:
            self.api.model_info(repo)
        except RepositoryNotFoundError:
            return f"There is no repository {repo} that this token can see: nothing is published."
        except Exception as error:
            if _status(_reason(error)) is None and not _is_transport(_reason(error)):
                raise
            return (
                f"What {repo} holds now is unknown, since the Hub does not answer; it is all of "
                "this export or none of it, for it goes in one commit."
            )
        try:
            there = self._files()
        except Exception as error:
            if _status(_reason(error)) is None and not _is_transport(_reason(error)):
                raise
            return f"{repo} exists; {self.revision} could not be read."
        lacking = [
            file.path
            for file in self.plan.files
            if there.get(file.path) not in (file.sha256, file.git_oid)
        ]
        made = "was made by this call" if self.created else "exists"
        if not lacking:
            return f"{repo} {made} and holds the whole export."
        return (
            f"{repo} {made}; nothing of this push is visible in it: {len(lacking)} of "
            f"{len(self.plan.files)} files are not committed."
        )


def _is_weights(path: str) -> bool:
    """Whether a file would be loaded in place of, or beside, the pushed weights."""
    if "/" in path:
        return False
    weights = path.startswith(("model", "adapter_model", "spatial_rows", "pytorch_model"))
    return weights and path.endswith((".safetensors", ".safetensors.index.json", ".bin"))


def _reason(error: BaseException) -> BaseException:
    """What really happened: an upload in one of several threads fails with a RuntimeError."""
    inner = error.__cause__
    return inner if isinstance(error, RuntimeError) and inner is not None else error


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_transport(error: BaseException) -> bool:
    """Whether the way to the Hub failed: a dropped connection, no route, no answer in time."""
    library = type(error).__module__.split(".")[0]
    return library in HTTP_LIBRARIES or isinstance(error, ConnectionError | TimeoutError)


def _said(status: int | None, error: BaseException) -> str:
    if status is None:
        return type(error).__name__
    words = str(getattr(error, "server_message", None) or "")[:LONGEST_ANSWER]
    return f"the Hub answered {status}{': ' if words else ''}{words}"


def _cure(status: int | None, repo_id: str) -> str:
    again = "Call again when it is mended: what was sent is not sent twice."
    if status == 401:
        return f"Log in with `hf auth login`, or pass --token-file, a token that may write. {again}"
    if status == 403:
        return (
            f"This token may not write to {repo_id}: take one with the right to write to "
            f"{repo_id.split('/')[0]}. {again}"
        )
    if status in RACES:
        return "Somebody else is writing to the same branch. Call again when they are done."
    if status == 404:
        return f"Check the name, and that the token may see {repo_id}. {again}"
    if status is not None and status < 500 and status not in PASSING:
        return f"The Hub refuses this; its answer is the reason. {again}"
    return "Call again: what was sent is not sent twice, and the commit completes the push."


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
        if not is_hub_error(reason):
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


def _tag(api: object, repo_id: str, version: str, commit: str) -> None:
    """Move the version's tag to a commit."""
    from huggingface_hub import HfApi

    assert isinstance(api, HfApi)
    tags = api.list_repo_refs(repo_id, repo_type="dataset").tags
    if any(tag.name == version for tag in tags):
        api.delete_tag(repo_id, tag=version, repo_type="dataset")
    api.create_tag(repo_id, tag=version, revision=commit, repo_type="dataset")
