"""Where the files of a dataset lie: a folder, or any URL that fsspec knows.

Local files are read by `pread`. Over a URL a range of bytes is one request; credentials are the
driver's own business (environment, configuration files) and never part of the URL, since URLs are
written into the index and into messages.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.files import whole_file

CACHE_VARIABLE = "SPATIALVLA_FT_CACHE"
OPEN_FILES = 16
READ_AHEAD = 8 << 20
BLOCK = 1 << 20
REQUESTS = 16

_CHANGES: tuple[str, ...] = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "mtime",
    "LastModified",
    "Last-Modified",
)
_CHANGES += ("last_modified", "updated", "created")


class Store(Protocol):
    """The files of one dataset."""

    url: str
    local: bool

    def path(self, name: str) -> str:
        """Where a file lies, for messages."""

    def read(self, name: str) -> bytes:
        """A whole small file; FileNotFoundError if there is none."""

    def stats(self, names: list[str]) -> list[dict[str, Any] | None]:
        """Size and `mtime_ns` (over a URL: `version`) of files; None for a missing one."""

    def open(self, name: str) -> BinaryIO:
        """A file to be read from its start to its end."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file; fewer if it ends before."""

    def local_file(self, name: str) -> Path:
        """The file on this machine, for libraries that know no other; a copy of one at a URL."""


class LocalStore:
    """Files of a folder."""

    local = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)
        self._files: OrderedDict[str, int] = OrderedDict()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict(), "_pid": -1}

    def path(self, name: str) -> str:
        """Where a file lies, for messages."""
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        """A whole small file; FileNotFoundError if there is none."""
        return (self.folder / name).read_bytes()

    def stats(self, names: list[str]) -> list[dict[str, Any] | None]:
        """Size and modification time of files; None for a missing one."""
        found: list[dict[str, Any] | None] = []
        for name in names:
            try:
                stat = (self.folder / name).stat()
            except FileNotFoundError:
                found.append(None)
            else:
                found.append({"size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
        return found

    def open(self, name: str) -> BinaryIO:
        """A file to be read from its start to its end."""
        return (self.folder / name).open("rb", buffering=0)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file; fewer if it ends before."""
        if self._pid != os.getpid():
            self._files, self._pid = OrderedDict(), os.getpid()
        file = self._files.pop(name, None)
        if file is None:
            file = os.open(self.folder / name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files[name] = file
        return os.pread(file, size, offset)

    def local_file(self, name: str) -> Path:
        """The file itself."""
        return self.folder / name


class UrlStore:
    """Files below a URL.

    Args:
        url: of the folder, e.g. `gs://bucket/bridge_orig/1.0.0`.
        cache_bytes: memory for blocks of 1 MiB around what was read; 0 for none. Helps where
            neighbouring frames are read one after another, not where frames are drawn at random.

    Raises:
        DatasetError: the URL holds a password, or its driver is not installed.
    """

    local = False

    def __init__(self, url: str, *, cache_bytes: int = 0) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.password or parts.query or parts.fragment or ("@" in parts.netloc):
            raise DatasetError(
                f"the {parts.scheme}:// URL of the dataset holds a user name, password or query; "
                "the URL is written into the index, so give credentials to the driver instead (its "
                "environment variables or configuration file)"
            )
        self.url = url.rstrip("/")
        self.cache_bytes = cache_bytes
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._open()

    def _open(self) -> None:
        import fsspec

        scheme = self.url.partition("://")[0]
        try:
            # fsspec itself starts anew in a process that was forked.
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise DatasetError(
                f"{scheme}:// needs a driver that is not installed: {error}"
            ) from None
        except ValueError:
            raise DatasetError(
                f"{scheme}:// is no kind of URL that fsspec knows; it knows "
                f"{', '.join(sorted(fsspec.available_protocols()))}"
            ) from None
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k not in ("_fs", "_root")}
        return {**state, "_blocks": OrderedDict(), "_pid": -1}

    def _driver(self) -> Any:
        if self._pid != os.getpid():
            self._open()
        return self._fs

    def path(self, name: str) -> str:
        """Where a file lies, for messages."""
        return f"{self.url}/{name}"

    @contextmanager
    def _answer(self, name: str) -> Iterator[None]:
        """Name the file where its server gives no answer; every driver has errors of its own."""
        try:
            yield
        except (FileNotFoundError, DatasetError):
            raise
        except Exception as error:
            raise DatasetError(
                f"cannot read {self.path(name)} ({type(error).__name__}: {error}); check the "
                "address, your access to it and the network"
            ) from error

    def _at(self, name: str) -> str:
        return f"{str(self._root).rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """A whole small file; FileNotFoundError if there is none."""
        with self._answer(name):
            return cast(bytes, self._driver().cat_file(self._at(name)))

    def stats(self, names: list[str]) -> list[dict[str, Any] | None]:
        """Size and, where the server tells one, version of files; None for a missing one."""
        driver = self._driver()

        def one(name: str) -> dict[str, Any] | None:
            try:
                with self._answer(name):
                    info = driver.info(self._at(name))
            except FileNotFoundError:
                return None
            if info.get("size") is None:
                raise DatasetError(
                    f"the server of {self.path(name)} tells no size; copy the dataset to a disk"
                )
            version = next((str(info[key]) for key in _CHANGES if info.get(key)), "")
            return {"size": int(info["size"]), "version": version}

        with ThreadPoolExecutor(REQUESTS) as pool:
            return list(pool.map(one, names))

    def open(self, name: str) -> BinaryIO:
        """A file to be read from its start to its end."""
        driver = self._driver()
        file = driver.open(self._at(name), "rb", block_size=READ_AHEAD, cache_type="readahead")
        return cast(BinaryIO, file)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file; fewer if it ends before."""
        if not self.cache_bytes:
            return self._request(name, offset, offset + size)
        first, last = offset // BLOCK, (offset + size - 1) // BLOCK
        data = b"".join(self._block(name, i) for i in range(first, last + 1))
        return data[offset - first * BLOCK : offset - first * BLOCK + size]

    def _block(self, name: str, number: int) -> bytes:
        data = self._blocks.pop((name, number), None)
        if data is None:
            data = self._request(name, number * BLOCK, (number + 1) * BLOCK)
        self._blocks[name, number] = data
        while len(self._blocks) > max(1, self.cache_bytes // BLOCK):
            self._blocks.popitem(last=False)
        return data

    def _request(self, name: str, start: int, stop: int) -> bytes:
        with self._answer(name):
            data = self._driver().cat_file(self._at(name), start=start, end=stop)
        if len(data) > stop - start:
            raise DatasetError(
                f"the server of {self.path(name)} ignores byte ranges: {len(data)} bytes came "
                f"where {stop - start} were asked for; copy the dataset to a disk"
            )
        return cast(bytes, data)

    def local_file(self, name: str) -> Path:
        """A copy of the file in the cache folder, fetched once for each version of it."""
        (stat,) = self.stats([name])
        if stat is None:
            raise DatasetError(f"{self.path(name)} is missing; fetch the dataset again")
        text = f"{self.path(name)} {stat['size']} {stat['version']}"
        folder = cache_folder() / "shards" / hashlib.sha256(text.encode()).hexdigest()[:24]
        place = folder / name
        if not place.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(place) as scratch:
                self._driver().get_file(self._at(name), str(scratch))
                if scratch.stat().st_size != stat["size"]:
                    raise DatasetError(
                        f"{self.path(name)} came as {scratch.stat().st_size} bytes instead of "
                        f"{stat['size']}; the transfer was cut short, call again"
                    )
        return place


def cache_folder() -> Path:
    """Where indices and copies of datasets at URLs are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "spatialvla-ft")


def is_url(place: str | Path) -> bool:
    """Whether a dataset is given by a URL rather than a path."""
    return isinstance(place, str) and "://" in place


def open_store(place: str | Path, *, cache_bytes: int = 0) -> Store:
    """The files at a path or URL; `file://` is a path."""
    if isinstance(place, str) and place.startswith("file://"):
        place = Path(urllib.parse.unquote(place.removeprefix("file://")))
    if is_url(place):
        return UrlStore(str(place), cache_bytes=cache_bytes)
    return LocalStore(Path(place))
