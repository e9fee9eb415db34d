"""The cache of built encoders: every entry is built once, by one process, and is whole or absent. Imports no TensorFlow."""

import contextlib
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from config import DataError


def cache_directory() -> Path:
    """Where built encoders are kept: $HUBTUNE_CACHE, or hubtune/ in the user's cache folder."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HUBTUNE_CACHE") or os.path.join(user_cache, "hubtune")).expanduser()


def build_once(name: str, build: Callable[[str], None]) -> str:
    """Returns `<cache>/<name>`, built by `build(directory)` if it is not there yet.

    Of two processes the second waits for the first and takes its result.

    Raises:
        DataError: the cache cannot be written.
    """
    target = cache_directory() / name
    if target.is_dir():
        return str(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            if not target.is_dir():
                print(f"Building {name} into {target} (once)", flush=True)
                build_whole(target, build)
    except OSError as error:
        raise DataError(
            f"cannot build {name} in {target.parent} ({error.strerror or error}): make room there, or set HUBTUNE_CACHE"
        ) from error
    return str(target)


def build_whole(target: Path, build: Callable[[str], None]) -> None:
    """Builds a directory under a temporary name and renames it, so that nobody ever sees half of it.

    Raises:
        OSError: `target` or its parent cannot be written, or is a directory that holds something already.
    """
    prefix = f".{target.name}.unfinished-"
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f"{glob.escape(prefix)}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix, ignore_cleanup_errors=True) as temporary:
        built = os.path.join(temporary, target.name)
        build(built)
        os.rename(built, target)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the directory's lock, which the system takes back when a process ends in whatever way."""
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that builds in {directory}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def hash_files(paths: Iterable[str | Path], settings: str = "") -> str:
    """One short hash of the contents of files, in the order given, and of settings."""
    total = hashlib.sha256(settings.encode())
    for path in paths:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:12]


def hash_saved_model(directory: str) -> str:
    """A short hash of a SavedModel's graph and weights; the index of the variables holds a checksum of each."""
    return hash_files(os.path.join(directory, name) for name in ("saved_model.pb", "variables/variables.index"))


def size_of(directory: str | Path) -> int:
    """Bytes of all files below a directory."""
    total = 0
    for path in Path(directory).rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total
