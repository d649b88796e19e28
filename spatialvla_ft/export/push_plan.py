"""What a push would send: exactly which files, checked before anything leaves the machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..hub.plan import LARGEST, REPO_ID, SECRET, PushError, PushFile, PushPlan
from ..models.base_place import BASE_FILE
from ..models.checkpoint_files import absent_shards, broken_files
from ..models.lora import ROWS_FILE, is_adapter
from ..near import near_path
from ..policy.stored import STORED_FILE
from .adapter import PEFT_CONFIG, WEIGHTS
from .card import CARD_FILE, card_for_repository
from .stored import verify_export

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
ALWAYS = (*PROCESSOR_FILES, STORED_FILE, CARD_FILE)
CHECKPOINT_FILES = ("config.json", *ALWAYS)
ADAPTER_FILES = (PEFT_CONFIG, WEIGHTS, BASE_FILE, ROWS_FILE, *ALWAYS)
KINDS = (".json", ".safetensors", ".py", ".md", ".model", ".jinja", ".txt")
"""File endings that belong to an export, beside LICENSE and NOTICE; all else stays at home."""


def plan_push(
    folder: str | Path, repo_id: str, *, verify: bool = True, base: str | None = None
) -> PushPlan:
    """List and check what would go; nothing is sent.

    Args:
        folder: an export.
        repo_id: OWNER/NAME; the model card names it where it says how to run the model.
        verify: load the export and compare with its stored answers.
        base: where an adapter's base lies now, if it moved.

    Raises:
        PushError: no export, an incomplete or damaged one, one that answers differently, one that
            holds an access token, or a name that no repository can have.
    """
    folder = Path(folder)
    if not REPO_ID.fullmatch(repo_id):
        raise PushError(f"--repo {repo_id!r} is no name of a repository; write OWNER/NAME")
    if not folder.is_dir():
        raise PushError(
            f"{folder} is no folder; push what `spatialvla-ft export` wrote{near_path(folder)}"
        )
    chosen, left_out = _choose(folder)
    _refuse_incomplete(folder, {file.name for file in chosen})
    files = tuple(_read(file, repo_id) for file in chosen)
    report = verify_export(folder, base=base) if verify else None
    if report is not None and not report.same:
        raise PushError(
            f"{folder} does not give its stored answers ({report}): nothing is pushed. It was "
            "changed since it was exported; export it again"
        )
    return PushPlan(folder, repo_id, files, tuple(left_out), report)


def _choose(folder: Path) -> tuple[list[Path], list[str]]:
    """Files that go, and names of what does not."""
    chosen, left_out = [], []
    for file in sorted(folder.iterdir()):
        known = file.suffix in KINDS or file.stem.upper() in ("LICENSE", "NOTICE")
        plain = file.is_file() and not file.is_symlink() and not file.name.startswith(".")
        if known and plain:
            chosen.append(file)
        else:
            left_out.append(file.name + ("/" if file.is_dir() else ""))
    return chosen, left_out


def _refuse_incomplete(folder: Path, names: set[str]) -> None:
    wanted = set(ADAPTER_FILES if is_adapter(folder) else CHECKPOINT_FILES)
    if not is_adapter(folder):
        if not any(name.startswith("model") and name.endswith(".safetensors") for name in names):
            wanted.add("model.safetensors")
        wanted |= set(absent_shards(folder)) | _named_code(folder)
    problems = [f"{name} is missing" for name in sorted(wanted - names)]
    problems += [f"{name} cannot be read" for name in broken_files(folder)]
    for name in sorted(names):
        size = (folder / name).stat().st_size
        if size == 0:
            problems.append(f"{name} is empty")
        if size > LARGEST:
            problems.append(f"{name} has {size:,} bytes; the Hub takes {LARGEST:,} in one file")
    if problems:
        raise PushError(
            f"{folder} is no complete export: {'; '.join(problems)}. Write it again with "
            "`spatialvla-ft export SOURCE --out DIR`"
        )


def _named_code(folder: Path) -> set[str]:
    """Code files that `auto_map` names."""
    named = set()
    for name in ("config.json", "processor_config.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            named |= {f"{c.split('.')[0]}.py" for c in content.get("auto_map", {}).values()}
    return named


def _read(file: Path, repo_id: str) -> PushFile:
    """Hashes of a file; the card's are those of the card with the repository's name."""
    content = None
    if file.suffix != ".safetensors":
        data = file.read_bytes()
        if SECRET.search(data):
            raise PushError(
                f"{file} holds what looks like an access token of the Hub: nothing is pushed. "
                "Remove it, and revoke the token if it is real"
            )
        if file.name == CARD_FILE:
            content = data = card_for_repository(data.decode(), repo_id).encode()
        size, sha256, blob = len(data), hashlib.sha256(data), _blob(len(data))
        blob.update(data)
    else:
        size, sha256 = file.stat().st_size, hashlib.sha256()
        blob = _blob(size)
        with file.open("rb") as handle:
            while part := handle.read(1 << 22):
                sha256.update(part)
                blob.update(part)
    return PushFile(file.name, size, sha256.hexdigest(), blob.hexdigest(), file, content)


def _blob(size: int) -> Any:
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
