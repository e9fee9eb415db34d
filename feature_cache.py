"""Feature vectors on disk: files of some thousand rows each, written whole, found again by a digest of what was encoded.

Imports no TensorFlow.
"""

import hashlib
import os
import uuid
import warnings
import zipfile
from pathlib import Path

import numpy as np

_DIGEST_BYTES = 16
CHUNK_ROWS = 2048  # at most so many are lost when the process is killed
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile)


def digest(*parts: bytes) -> bytes:
    """A key of 16 bytes for some contents, in their order."""
    total = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.digest()


class FeatureCache:
    """Vectors, float32 [D], by key, in a folder that several processes may use at once.

    A file is an .npz with `keys`, uint8 [rows, 16], and `rows`, float32 [rows, D]; the format's own checksums tell damage.
    Its name is the digest of its contents, and it is written under another name first, so whole or absent. What cannot be
    read is removed with a warning, and computed again.

    Raises:
        ValueError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: list[tuple[bytes, np.ndarray]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"cache_dir: cannot make {folder} ({error.strerror}): name a folder that can be written, or None"
            ) from None

    def read(self, keys: list[bytes]) -> dict[bytes, np.ndarray]:
        """The vectors of those keys that are there."""
        wanted, found = set(keys), dict[bytes, np.ndarray]()
        for path in sorted(self._folder.glob("*.npz")):
            if not wanted:
                break
            try:
                part = _read_chunk(path, wanted)
            except FileNotFoundError:  # another process has found it damaged
                continue
            except _UNREADABLE as error:
                path.unlink(missing_ok=True)
                warnings.warn(
                    f"cache_dir: {path} is damaged ({error}): removed, its features are computed again",
                    UserWarning,
                    stacklevel=2,
                )
                continue
            found |= part
            wanted -= part.keys()
        return found

    def add(self, keys: list[bytes], rows: np.ndarray) -> None:
        """Takes vectors, and writes them when there are enough for a file."""
        self._pending += zip(keys, rows, strict=True)
        if len(self._pending) >= CHUNK_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes what is not yet written. A full disk is a warning: the features themselves are not lost by it."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        keys = np.frombuffer(b"".join(key for key, _ in pending), np.uint8).reshape(-1, _DIGEST_BYTES)
        rows = np.stack([row for _, row in pending]).astype(np.float32)
        name = digest(keys.tobytes(), rows.tobytes()).hex()
        temporary = self._folder / f".unfinished-{uuid.uuid4().hex}"
        try:
            with temporary.open("wb") as file:
                np.savez(file, keys=keys, rows=rows)
            os.replace(temporary, self._folder / f"{name}.npz")
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            warnings.warn(f"cache_dir: {self._folder}: {error.strerror}: features not kept", UserWarning, stacklevel=2)


def _read_chunk(path: Path, wanted: set[bytes]) -> dict[bytes, np.ndarray]:
    """The wanted vectors of one file, whose vectors are read only if one of them is wanted."""
    with (
        path.open("rb") as content,
        np.load(content, allow_pickle=False) as file,
    ):  # or np.load leaves damaged ones open
        keys = [key.tobytes() for key in file["keys"]]
        if wanted.isdisjoint(keys):
            return {}
        rows = file["rows"]
    if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != len(keys):
        raise ValueError(f"holds {rows.dtype} of shape {rows.shape} for {len(keys)} keys")
    return {key: row for key, row in zip(keys, rows, strict=True) if key in wanted}
