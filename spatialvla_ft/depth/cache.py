"""Depth on disk, by what it was computed from.

One file per picture, named by a hash of the picture, the estimator's fingerprint and, where the
estimator uses it, K. So another picture, other weights or another resolution never hit. Any number
of processes may read and write at once: a file appears whole, under its final name, or not at all.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from .packing import pack, unpack

logger = logging.getLogger(__name__)

MAGIC = b"DEPTH01\n"
HEADER = struct.Struct("<II16s16s")
SUFFIX = ".depth"


@dataclass(frozen=True)
class CacheSize:
    """What a cache holds: number of depth maps, and bytes of their files."""

    entries: int
    bytes: int


class DepthCache:
    """A folder of depth maps, see `packing` for the error of storing.

    Args:
        folder: made with its first entry. It may be deleted at any time; depth is computed again.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: bytes) -> Path:
        """File of a key; 256 subfolders keep folders short."""
        name = key.hex()
        return self.folder / name[:2] / (name + SUFFIX)

    def get(self, key: bytes) -> Float32[np.ndarray, "H W"] | None:
        """Metres, or None where nothing is stored or what is stored is damaged.

        A damaged file is reported in the log and left to be overwritten.
        """
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return _read(data, key)
        except ValueError as error:
            logger.warning("%s is damaged and will be computed again: %s", path, error)
            return None

    def put(self, key: bytes, metres: Float32[np.ndarray, "H W"]) -> None:
        """Store metres, whole or not at all; the last of several writers wins.

        Raises:
            ValueError: depth that is not finite and positive.
        """
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = _written(metres, key)
        part = path.with_name(f"{uuid.uuid4().hex}.part")
        try:
            part.write_bytes(data)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def size(self) -> CacheSize:
        """Number and bytes of the stored maps."""
        sizes = [path.stat().st_size for path in self.folder.glob(f"??/*{SUFFIX}")]
        return CacheSize(len(sizes), sum(sizes))


def picture_key(
    picture: UInt8[np.ndarray, "H W 3"] | Float32[np.ndarray, "H W 3"],
    fingerprint: str,
    intrinsics: np.ndarray | None = None,
) -> bytes:
    """16 bytes that name the depth of a picture.

    Args:
        picture: its bytes, shape and type count.
        fingerprint: of the estimator.
        intrinsics: K, given only where the estimator uses it; compared in float32.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{fingerprint} {picture.dtype} {picture.shape} ".encode())
    if intrinsics is not None:
        digest.update(np.ascontiguousarray(intrinsics, "<f4").tobytes())
    digest.update(np.ascontiguousarray(picture).data)
    return digest.digest()


def _written(metres: np.ndarray, key: bytes) -> bytes:
    payload = pack(metres)
    height, width = metres.shape
    return MAGIC + HEADER.pack(height, width, key, _checksum(key, height, width, payload)) + payload


def _read(data: bytes, key: bytes) -> Float32[np.ndarray, "H W"]:
    begin = len(MAGIC) + HEADER.size
    if len(data) < begin or not data.startswith(MAGIC):
        raise ValueError(f"{len(data)} bytes that are no depth entry")
    height, width, stored, checksum = HEADER.unpack(data[len(MAGIC) : begin])
    payload = data[begin:]
    if stored != key:
        raise ValueError("it belongs to another key")
    if checksum != _checksum(key, height, width, payload):
        raise ValueError("its checksum does not fit its content")
    return unpack(payload, height, width)


def _checksum(key: bytes, height: int, width: int, payload: bytes) -> bytes:
    head = key + struct.pack("<II", height, width)
    return hashlib.blake2b(head + payload, digest_size=16).digest()
