"""Depth on disk, by what it was computed from.

One file per picture, named by a hash of the picture, the estimator's fingerprint and, where the
estimator uses it, K. So another picture, other weights or another resolution never hit. Any number
of processes may read and write at once: a file appears whole, under its final name, or not at all.

An estimator that remembers on disk.

Depth maps in few bytes: half precision, differences along rows, planes of bytes, deflate.

Half precision keeps 11 binary digits, so a stored depth is off by at most 2**-11 of itself
(0.049 %, 0.5 mm at 1 m), about a hundredth of what any estimator is off by. Its bits, read as
integers, grow with depth: neighbours on a surface differ little, and deflate finds that.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from ..files import whole_file
from ..geometry.depth_maps import usable
from ..pictures import described
from .protocol import DepthEstimator, check_pictures

RELATIVE_ERROR = 2.0**-11
SMALLEST, LARGEST = 2.0**-14, 65504.0
LEVEL = 1


def pack(metres: Float32[np.ndarray, "H W"]) -> bytes:
    """A depth map as bytes.

    Args:
        metres: positive and finite, between 0.06 mm and 65 km.

    Raises:
        ValueError: a pixel outside that range, or another shape or type.
    """
    if metres.ndim != 2 or metres.size == 0:
        raise ValueError(f"a depth map must be (H, W), got {metres.shape}")
    if metres.dtype.kind != "f":
        raise ValueError(f"a depth map is in metres, float32, got {metres.dtype}")
    if not usable(metres).all() or metres.min() < SMALLEST or metres.max() > LARGEST:
        raise ValueError(
            f"depth to be stored must be finite and {SMALLEST:g} .. {LARGEST:g} m, got "
            f"{metres.min():g} .. {metres.max():g}; fill holes before storing"
        )
    bits = np.ascontiguousarray(metres, np.float32).astype(np.float16).view(np.uint16)
    steps = np.diff(bits, axis=1, prepend=np.uint16(0))  # modulo 2**16
    folded = (steps << 1) ^ (np.uint16(0) - (steps >> 15))  # small steps down become small, too
    planes = np.stack([folded & 0xFF, folded >> 8]).astype(np.uint8)
    return zlib.compress(planes.tobytes(), LEVEL)


def unpack(data: bytes, height: int, width: int) -> Float32[np.ndarray, "H W"]:
    """The depth map of `pack`.

    Raises:
        ValueError: the bytes are not a map of that size.
    """
    try:
        raw = zlib.decompress(data)
    except zlib.error as error:
        raise ValueError(f"damaged depth map: {error}") from None
    if len(raw) != 2 * height * width:
        raise ValueError(f"{len(raw)} bytes do not make a {height} x {width} depth map")
    planes = np.frombuffer(raw, np.uint8).reshape(2, height, width).astype(np.uint16)
    folded = planes[0] | (planes[1] << 8)
    steps = (folded >> 1) ^ (np.uint16(0) - (folded & 1))
    bits = np.cumsum(steps, axis=1, dtype=np.uint16)
    return bits.view(np.float16).astype(np.float32)


def rounded(metres: Float32[np.ndarray, "*S"]) -> Float32[np.ndarray, "*S"]:
    """Depth as it comes back from the store."""
    return metres.astype(np.float16).astype(np.float32)


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
        with whole_file(path) as scratch:
            scratch.write_bytes(data)

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


class CachedDepth:
    """Depth from the cache where it is there, else from the estimator, and then into the cache.

    What is returned is always what the cache gives back (rounded to half precision), so that the
    first look at a picture and every later one agree bit for bit.

    Args:
        estimator: asked for what is missing.
        cache: where depth is kept.
    """

    def __init__(self, estimator: DepthEstimator, cache: DepthCache) -> None:
        self.estimator, self.cache = estimator, cache
        self.name = f"{estimator.name}, cached"
        self.uses_intrinsics = estimator.uses_intrinsics
        self.hits = self.misses = 0

    @property
    def fingerprint(self) -> str:
        """The estimator's: its entries serve with and without this wrapper."""
        return self.estimator.fingerprint

    def key(self, picture: np.ndarray, intrinsics: np.ndarray | None) -> bytes:
        """Key of a picture (H, W, 3), bytes or float, with its K."""
        K = intrinsics if self.uses_intrinsics else None
        return picture_key(picture, self.estimator.fingerprint, K)

    def __call__(
        self,
        pictures: Float[Tensor, "B 3 H W"],
        intrinsics: Float[Tensor, "B 3 3"] | None = None,
    ) -> Float[Tensor, "B H W"]:
        """Metres; only pictures that are not in the cache are estimated, in one batch."""
        check_pictures(pictures, intrinsics)
        Ks = [None] * len(pictures) if intrinsics is None else list(intrinsics.cpu().numpy())
        keys = [self.key(p, K) for p, K in zip(_as_stored(pictures), Ks, strict=True)]
        found = [self.cache.get(key) for key in keys]
        missing = [i for i, depth in enumerate(found) if depth is None]
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            given = None if intrinsics is None else intrinsics[missing]
            estimated = self.estimator(pictures[missing], given).cpu().numpy()
            for i, metres in zip(missing, estimated, strict=True):
                self.cache.put(keys[i], metres)
                found[i] = rounded(metres)
        return torch.from_numpy(np.stack(found)).to(pictures.device)


def _as_stored(pictures: Float[Tensor, "B 3 H W"]) -> list[np.ndarray]:
    """(H, W, 3) per picture: the bytes it was made from where it was, else its float32."""
    stored = []
    for picture in pictures.detach().float().cpu().permute(0, 2, 3, 1):
        as_bytes = (picture * 255).round().to(torch.uint8)
        exact = torch.equal(as_bytes.float() / 255, picture)
        stored.append((as_bytes if exact else picture).contiguous().numpy())
    return stored


def from_bytes(pictures: np.ndarray) -> Float[Tensor, "B 3 H W"]:
    """(B, H, W, 3) bytes as an estimator takes them; ValueError for another type."""
    if pictures.dtype != np.uint8:
        raise ValueError(f"pictures must be bytes, got {described(pictures)}; see `rgb_bytes`")
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
