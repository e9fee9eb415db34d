"""Where a table comes from: a path or a URL, plain or compressed, as one stream of plain bytes."""

import bz2
import contextlib
import difflib
import gzip
import http.client
import io
import lzma
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from config import DataError

_BLOCK = 1 << 18
_DECOMPRESS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_BROKEN = (OSError, EOFError, ValueError, RuntimeError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)


@contextlib.contextmanager
def open_source(source: str) -> Iterator[tuple[str, BinaryIO]]:
    """Gives the file's name without its compression suffix, and its plain bytes: a stream that `seek(0)` starts again, and
    of Parquet one that can be read from any place. What a URL gives lies in a temporary file until the end.

    Raises:
        DataError: the file is missing, cannot be downloaded, or is broken; the latter also while the stream is read.
    """
    name = Path(source.split("?")[0] if "://" in source else source).name
    suffix = Path(name).suffix.lower()
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(_download(source) if "://" in source else _open(source))
        try:
            if suffix == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(file))
                name = _only_member(source, archive)
                file = stack.enter_context(archive.open(name))
            elif suffix in _DECOMPRESS:
                name, file = name.removesuffix(Path(name).suffix), stack.enter_context(_DECOMPRESS[suffix](file))
        except _BROKEN as error:
            raise _broken(source, suffix, error) from None
        plain: Any = stack.enter_context(io.BufferedReader(_Checked(source, suffix, file), _BLOCK))
        if suffix != ".parquet" and Path(name).suffix.lower() == ".parquet":
            plain = stack.enter_context(_spool(plain))
        yield name, plain


def _open(source: str) -> IO[bytes]:
    try:
        file = Path(source).expanduser().open("rb")
        if file.seekable():
            return file
        with file:  # a named pipe
            return _spool(file)
    except FileNotFoundError:
        raise DataError(f"{source}: no such file{nearest_file(source)}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(source, error) from None


def _download(source: str) -> IO[bytes]:
    print(f"Downloading {source}", flush=True)
    try:
        with urllib.request.urlopen(source, timeout=60) as response:
            file = _spool(response)
            missing = getattr(response, "length", None)  # http.client tells this only to those who read all at once
        if missing:
            file.close()
            raise DataError(f"{source}: cannot be downloaded (the connection ended {missing:,} bytes early)")
        return file
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{source}: cannot be downloaded (HTTP {error.code}, {error.reason})") from None
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, http.client.HTTPException) as error:  # a URLError is an OSError
        raise _unreadable(source, error) from None


def _spool(stream: IO[bytes]) -> IO[bytes]:
    """The rest of a stream in a temporary file, which goes when it is closed."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(stream, file, _BLOCK)
        file.seek(0)
        stack.pop_all()
        return file


def _only_member(source: str, archive: zipfile.ZipFile) -> str:
    members = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
    if len(members) != 1:
        raise DataError(f"{source}: holds {len(members)} files; a zipped table holds one")
    return members[0]


class _Checked(io.RawIOBase):
    """A stream whose errors are DataErrors."""

    def __init__(self, source: str, suffix: str, stream: IO[bytes]) -> None:
        self._source, self._suffix, self._stream = source, suffix, stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._stream.seek(offset, whence)

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        try:
            block = self._stream.read(len(buffer))
        except _BROKEN as error:
            raise _broken(self._source, self._suffix, error) from None
        buffer[: len(block)] = block
        return len(block)


def _broken(source: str, suffix: str, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    if isinstance(error, OSError) and error.errno is not None:  # the disk's; decompressors give no number
        return _unreadable(source, error)
    return DataError(f"{source}: broken {suffix} file ({error})")


def _unreadable(source: str, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
    return DataError(f"{source}: cannot be read ({reason})")


def nearest_file(source: str) -> str:
    """The end of a message on a path that there is not: its neighbour with the nearest name."""
    path = Path(source)
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.75)
    return f": did you mean {path.parent / near[0]}?" if near else ""
