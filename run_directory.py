"""Run directories: claimed once, never written over, and never holding half a file."""

import os
import shutil
from datetime import datetime
from pathlib import Path

from config import Config, DataError

_ROOM_FOR_THE_REST = 20_000_000  # bytes for graph, vocabulary, predictions and logs


def refuse_used_run_directory(config: Config) -> None:
    """Refuses a named run directory that holds something; creates nothing.

    Raises:
        DataError: the directory is not empty.
    """
    if config.run_name is None:
        return
    directory = Path(config.output_dir).expanduser() / config.run_name
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(f"run directory {directory} is not empty: choose another run_name, or remove it")


def refuse_full_disk(config: Config, needed: int) -> None:
    """Refuses, before the long work, a disk without room for `needed` bytes of weights.

    Raises:
        DataError: less is free where output_dir lies.
    """
    folder = Path(config.output_dir).expanduser().absolute()
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if free < needed + _ROOM_FOR_THE_REST:
        raise DataError(
            f"output_dir {folder}: a run needs about {(needed + _ROOM_FOR_THE_REST) / 1e6:,.0f} MB and {free / 1e6:,.0f} MB "
            "are free: make room, or set output_dir"
        )


def claim_run_directory(config: Config) -> Path:
    """Creates the run directory.

    Raises:
        DataError: the directory is not empty.
    """
    parent = Path(config.output_dir).expanduser()
    if config.run_name is not None:
        refuse_used_run_directory(config)
        (parent / config.run_name).mkdir(parents=True, exist_ok=True)
        return parent / config.run_name
    return claim_dated_directory(parent, config.data)


def claim_dated_directory(parent: Path, data: str) -> Path:
    """Creates a folder in `parent`, named after a table and the time; the later of two in one second gets a number.

    Raises:
        DataError: all its numbered followers exist as well.
    """
    name = f"{Path(data.rstrip('/')).name.split('.')[0]}-{datetime.now():%Y%m%d-%H%M%S}"
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        try:
            (parent / f"{name}{suffix}").mkdir(parents=True)
        except FileExistsError:
            continue
        return parent / f"{name}{suffix}"
    raise DataError(f"{parent / name} and its numbered followers exist: choose another folder")


def write_atomically(path: Path, content: str) -> None:
    """Writes a file under a temporary name and renames it, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(content, encoding="utf-8", newline="")
    os.replace(temporary, path)
