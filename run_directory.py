"""Run directories: claimed once, never written over but by their own training that goes on, and never holding half a file."""

import contextlib
import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from command_line import python
from config import Config, ConfigError, DataError, resume_config
from spec import read_record

LAST = Path("checkpoints", "last")  # what a training needs to go on
STATE = LAST / "state.json"
_ROOM_FOR_THE_REST = 20_000_000  # bytes for graph, vocabulary, predictions and logs


class TrainingState(BaseModel):
    """What there is to know of an unfinished training beside its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    loss_at_start: float
    fingerprints: dict[str, str]  # of the examples, by the names of the parts
    history: list[dict[str, int | float]] = Field([])  # a record for each finished epoch
    seconds: float = 0.0  # of training alone
    resumed: int = 0  # how many times

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint that goes with it."""
        return f"epoch-{len(self.history)}"


def read_training_state(config: Config) -> TrainingState | None:
    """The state that the training of `config.resume` goes on from, None where the training is a new one.

    Raises:
        DataError: there is no run, it is finished, or it has nothing whole to go on from.
        ConfigError: an option is not the run's own.
    """
    if config.resume is None:
        return None
    own, directory = resume_config(config.resume), resumed_directory(config.resume)
    for key in Config.model_fields:
        if key not in {"resume", "wandb_mode"} and getattr(config, key) != getattr(own, key):
            raise ConfigError(
                f"{key}={getattr(config, key)!r}: the run to resume, {config.resume}, has {getattr(own, key)!r}; "
                f"leave {key} as it was, or train anew without resume"
            )
    anew = f"train anew: {python()} train.py --config {shlex.quote(str(directory / 'config.yaml'))} --run_name NEW"
    if not (directory / STATE).exists():
        if _ran_to_its_end(directory):
            raise DataError(f"resume={config.resume}: its training ran to its end, and nothing is left to do")
        raise DataError(f"resume={config.resume}: it stopped before its first epoch was finished; {anew}")
    state = read_record(directory / STATE, TrainingState, remedy=anew)
    if not (directory / LAST / f"{state.checkpoint}.index").exists():
        raise DataError(f"{directory / LAST}: {state.checkpoint}, which state.json names, is missing; {anew}")
    return state


def resumed_directory(directory: str) -> Path:
    """The run directory that `resume` names."""
    return Path(directory).expanduser().resolve()


def _ran_to_its_end(directory: Path) -> bool:
    try:
        return json.loads((directory / "metrics.json").read_text(encoding="utf-8"))["train"]["interrupted"] is False
    except (OSError, ValueError, LookupError, TypeError):
        return False


def refuse_used_run_directory(config: Config) -> None:
    """Refuses a named run directory of a new training that holds something; creates nothing.

    Raises:
        DataError: the directory is not empty.
    """
    if config.run_name is None or config.resume is not None:
        return
    directory = Path(config.output_dir).expanduser() / config.run_name
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(f"run directory {directory} is not empty: choose another run_name, or remove it")


def refuse_full_disk(config: Config, needed: int) -> None:
    """Refuses, before the long work, a disk without room for `needed` bytes of weights.

    Raises:
        DataError: less is free where the run directory lies.
    """
    folder = Path(config.resume or config.output_dir).expanduser().absolute()
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if free < needed + _ROOM_FOR_THE_REST:
        raise DataError(
            f"{folder}: a run needs about {(needed + _ROOM_FOR_THE_REST) / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free: "
            f"make room{'' if config.resume else ', or set output_dir'}"
        )


def claim_run_directory(config: Config) -> Path:
    """Creates the run directory and puts config.yaml into it; a training that goes on has its own already.

    Raises:
        DataError: the directory is not empty.
    """
    if config.resume is not None:
        return resumed_directory(config.resume)
    directory = _create_run_directory(config)
    write_atomically(directory / "config.yaml", config.to_yaml())
    return directory


def _create_run_directory(config: Config) -> Path:
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


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keeps a run directory from other trainings, for as long as this process lives at most.

    Raises:
        DataError: another process trains there.
    """
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise DataError(f"{directory}: its training still runs: wait for its end, or stop it first") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(lock)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file under a temporary name and renames it, so that a reader never sees half of it.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a full disk's error names none
        raise


def flush_to_disk(path: Path) -> None:
    """Returns when a file's content is where a power failure leaves it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
