"""The cache of built encoders: every entry is built once, by one process, and is whole or absent. Imports no TensorFlow."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from config import DataError

_UNFINISHED = ".unfinished-"


def cache_directory() -> Path:
    """Where built encoders are kept: $HUBTUNE_CACHE, or hubtune/ in the user's cache folder."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("HUBTUNE_CACHE") or os.path.join(user_cache, "hubtune"))


def build_once(name: str, build: Callable[[str], None]) -> str:
    """Returns `<cache>/<name>`, built by `build(directory)` if it is not there yet.

    Raises:
        DataError: the cache cannot be written.
    """
    target = cache_directory() / name
    if not target.is_dir():
        try:
            build_whole(target, build)
        except OSError as error:
            raise DataError(
                f"cannot build {name} in {target.parent} ({error.strerror or error}): make room there, or set HUBTUNE_CACHE"
            ) from error
    return str(target)


def build_whole(target: Path, build: Callable[[str], None]) -> None:
    """Builds a directory under a temporary name and renames it, so that nobody ever sees half of it.

    Of two processes the second waits for the first and takes its result. What a killed process left is removed.

    Raises:
        OSError: `target` or its parent cannot be written, or is a directory that holds something already.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent):
        if target.is_dir() and any(target.iterdir()):
            return
        for unfinished in target.parent.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        print(f"Building {target.name} into {target} (once)", flush=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=_UNFINISHED, ignore_cleanup_errors=True
        ) as temporary:
            built = os.path.join(temporary, target.name)
            build(built)
            os.rename(built, target)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the directory's lock, which the system takes back when a process ends in whatever way."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that builds in {directory}", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def hash_files(paths: Iterable[str | Path]) -> str:
    """One short hash of the contents of files, in the order given."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:12]


def size_of(directory: str | Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())
