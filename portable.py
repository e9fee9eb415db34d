"""W&B's record of a run, made to outlive a move of the run directory.

W&B keeps what a run logs in a `.wandb` file: LevelDB's log format behind seven bytes of its own, one protocol buffer a record.
The bytes of artifacts lie beside it, and the record names them by absolute path. `wandb sync` passes over those it does not find
without a word, so each artifact is recorded under more than one path.
"""

import json
import os
import shlex
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

SYNC_SCRIPT = Path("wandb", "sync.sh")  # in the run directory
_UNSENT = "unsent"  # a file in a part's folder
_PATIENCE = 10  # seconds
_IDENT = 7  # bytes before the first block
_BLOCK = 1 << 15
_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def make_portable(run_directory: Path, folder: Path) -> None:
    """Lets `wandb sync` find the artifacts of a finished offline run wherever the run directory has been moved to.

    Each artifact is recorded by absolute path, by the path from the run directory, and by that from the working directory, if
    the run directory is in it: the first holds until a move, the others afterwards for a `wandb sync` from those folders. The
    first that is found uploads it, for the others the server has the same content already.

    Args:
        folder: the run's own in `run_directory`/wandb.

    Raises:
        OSError: the file cannot be written anew; it is then left as it was.
    """
    (file,) = folder.glob("*.wandb")
    moved: list[Record] = []
    folders = [base for base in (run_directory.absolute(), Path.cwd()) if run_directory.absolute().is_relative_to(base)]
    for record in read_records(file):
        moved.append(record)
        if any(entry.local_path for entry in record.artifact.manifest.contents):
            moved += [_seen_from(record, base) for base in folders]
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(file.read_bytes()[:_IDENT] + b"".join(_frames(moved)))
    os.replace(temporary, file)


def wait_for_the_end(part: Path) -> None:
    """Waits until the file of a finished run is complete: W&B's other process may still be writing it.

    Raises:
        TimeoutError: it is not.
    """
    until = time.monotonic() + _PATIENCE
    while not _has_ended(part):
        if time.monotonic() > until:
            raise TimeoutError(f"{part} has no end")
        time.sleep(0.05)


def mark_unsent(part: Path) -> None:
    """Notes that an online part of a run was not sent to its end."""
    (part / _UNSENT).touch()


def write_sync_script(run_directory: Path, run_ids: list[str]) -> None:
    """Writes a shell script that uploads what W&B may not have: offline parts of runs, and online ones that are marked as unsent
    or have no end, as those of a killed process. Where there are none, there is no script.

    They go in the order of `run_ids`, parts of one run by their time. Of runs that are given to it together, `wandb sync` may
    send the one that uses an artifact before the one that made it, which then is nobody's; and it finds artifacts by their
    paths from the folder it runs in.
    """
    lines = [
        "# Uploads what W&B has not got yet, from wherever the run directory has been moved to.",
        'cd "$(dirname "$0")/.." || exit 1',
        "unset WANDB_SERVICE  # a notebook's, which would look for the files from the notebook's folder",
        f"command -v wandb > /dev/null || PATH=$PATH:{shlex.quote(str(Path(sys.executable).parent))}",
    ]
    head, script = len(lines), run_directory / SYNC_SCRIPT
    for part in [part for run_id in run_ids for part in _parts(run_directory, run_id)]:
        if part.name.startswith("offline-"):
            lines.append(f"wandb sync wandb/{part.name} || exit 1")
        elif (part / _UNSENT).exists() or not _has_ended(part):
            lines.append(f"wandb sync --include-online wandb/{part.name} || exit 1")
    if len(lines) > head:
        script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        script.unlink(missing_ok=True)


def _has_ended(part: Path) -> bool:
    return any(record.HasField("exit") for file in part.glob("*.wandb") for record in read_records(file))


def _parts(run_directory: Path, run_id: str) -> list[Path]:
    """The folders of a run by their time: run-YYYYMMDD_HHMMSS-ID, with offline- in front of what was logged offline."""
    parts = {part: part.name.removeprefix("offline-") for part in (run_directory / "wandb").glob("*run-*")}
    start = len("run-YYYYMMDD_HHMMSS-")
    return sorted((part for part, name in parts.items() if name[start:] == run_id), key=lambda part: parts[part])


def read_records(file: Path) -> Iterator[Record]:
    """The records of a `.wandb` file, up to the first that is damaged, as the last one of a killed run can be."""
    content, place, parts = file.read_bytes(), _IDENT, b""
    while place + _HEADER.size <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER.size:
            place += left
            continue
        checksum, length, kind = _HEADER.unpack_from(content, place)
        body = content[place + _HEADER.size : place + _HEADER.size + length]
        if len(body) < length or _checksum(kind, body) != checksum:
            return
        place += _HEADER.size + length
        parts += body
        if kind in (_FULL, _LAST):
            yield Record.FromString(parts)
            parts = b""


def last_value(run_directory: Path, run_id: str, name: str) -> float:
    """The last value of a number that a run has logged in `run_directory`, 0 where there is none."""
    value = 0.0
    for part in _parts(run_directory, run_id):
        for record in read_records(part / f"run-{run_id}.wandb"):
            for item in record.history.item:
                if "/".join(item.nested_key) == name or item.key == name:
                    value = float(json.loads(item.value_json))
    return value


def _seen_from(record: Record, folder: Path) -> Record:
    """The same artifact, its bytes by their paths from `folder`."""
    copy = Record.FromString(record.SerializeToString())
    for entry in copy.artifact.manifest.contents:
        if entry.local_path:
            entry.local_path = os.path.relpath(entry.local_path, folder)
    return copy


def _frames(records: list[Record]) -> Iterator[bytes]:
    """The records, numbered from 1, in blocks: a record that does not fit into what is left of one goes on in the next."""
    place = _IDENT
    for number, record in enumerate(records, 1):
        record.num = number
        rest, first = record.SerializeToString(), True
        while first or rest:
            left = _BLOCK - place % _BLOCK
            if left < _HEADER.size:
                yield b"\0" * left
                place += left
                continue
            body, rest = rest[: left - _HEADER.size], rest[left - _HEADER.size :]
            kind = (_FIRST if rest else _FULL) if first else (_MIDDLE if rest else _LAST)
            yield _HEADER.pack(_checksum(kind, body), len(body), kind) + body
            place, first = place + _HEADER.size + len(body), False


def _checksum(kind: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(bytes([kind])))
