"""How long the commands take to start: `--help`, and the answer to one text.

    python -m benchmarks.bench_startup --model runs/tickets-20261120-101500

Medians of whole processes, with warm file caches, on all cores that there are. Without `--model` a run is made of the bundled
reviews (one epoch, half a minute). "to the answer" ends with the line of output, "in all" with the process. Below are the
imports with the most time of their own, and the phases between.
"""

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers import markdown, parse, parser, run
from config import HubtuneError

_ROOT = Path(__file__).parents[1]
_COMMANDS = ("train", "predict", "evaluation", "encoders", "label_issues", "artifacts")
_TEXT = "It broke after two days and nobody answers."
_HEAVIEST = 10
_IMPORT = re.compile(r"import time: +(\d+) \| +\d+ \| +(\S+)")  # microseconds of its own, cumulated ones, module
_PHASES = """import time; marks = [time.perf_counter()]
import gc; gc.disable()
import runtime; marks.append(time.perf_counter())
import predict; marks.append(time.perf_counter())
gc.freeze(); gc.enable()
classifier = predict.load_classifier({model!r}); marks.append(time.perf_counter())
for _ in range(3):
    classifier.predict_proba([{text!r}]); marks.append(time.perf_counter())
print(*marks)"""


def seconds(arguments: list[str]) -> tuple[float, float]:
    """Seconds until a command's first line of output, and until its end.

    Raises:
        HubtuneError: the command fails.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        answered = time.perf_counter() - start
        _, errors = process.communicate()
    if process.returncode:
        raise HubtuneError(f"{arguments[0]} failed: {errors.strip()[-200:]}")
    return answered, time.perf_counter() - start


def start_rows(model: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A line per command, after one call each that warms the file caches."""
    texts = {f"{name}.py --help": ([f"{name}.py", "--help"], given.helps) for name in _COMMANDS}
    texts['predict.py --model RUN "text"'] = (["predict.py", "--model", model, _TEXT], given.repeats)
    texts["import tensorflow, with tf_keras"] = (
        ["-c", "import os; os.environ['TF_USE_LEGACY_KERAS'] = '1'; import tensorflow; print()"],
        given.repeats,
    )
    rows = []
    for name, (arguments, repeats) in texts.items():
        seconds(arguments)
        answered, ended = zip(*(seconds(arguments) for _ in range(repeats)), strict=True)
        rows.append({"command": name, "to the answer, s": median(answered), "in all, s": median(ended)})
    return rows


def heaviest_imports(arguments: list[str]) -> list[dict[str, Any]]:
    """The modules of a command that take the most time of their own to import."""
    command = [sys.executable, "-X", "importtime", *arguments]
    errors = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stderr
    times = sorted(((int(own), name) for own, name in _IMPORT.findall(errors)), reverse=True)
    rows: list[dict[str, Any]] = [
        {"import": f"all {len(times):,} modules", "own, ms": round(sum(own for own, _ in times) / 1e3)}
    ]
    return rows + [{"import": name, "own, ms": round(own / 1e3)} for own, name in times[:_HEAVIEST]]


def phase_rows(model: str, repeats: int) -> list[dict[str, Any]]:
    """What `predict.py` does from its start to an answer, in medians of fresh processes."""
    program = _PHASES.format(model=model, text=_TEXT)
    runs = []
    for _ in range(repeats):
        command = [sys.executable, "-c", program]
        output = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout
        marks = [float(mark) for mark in output.splitlines()[-1].split()]
        runs.append([after - before for before, after in pairwise(marks)])
    names = ("import TensorFlow", "import the rest", "load the model", "first text", "second text", "third text")
    return [{"phase": name, "s": median(times)} for name, times in zip(names, zip(*runs, strict=True), strict=True)]


@contextlib.contextmanager
def run_directory(model: str | None, table: str, *options: str) -> Iterator[str]:
    """The run that is named, or one that is made for it: an epoch on a table, in a folder that goes afterwards."""
    if model is not None:
        yield str(Path(model).expanduser().resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        shared = ["--data", table, "--epochs", "1", "--wandb_mode", "disabled", "--output_dir", folder]
        seconds(["train.py", *shared, *options])
        [made] = Path(folder).iterdir()
        yield str(made)


def main() -> None:
    """Runs the command."""
    options = parser("bench_startup", __doc__.split("\n")[0], repeats=5)
    options.add_argument("--model", help="run directory [one epoch on the bundled reviews]")
    options.add_argument("--helps", type=int, default=10, help="calls of each --help [10]")
    given = parse(options, needs_peer=False)
    with run_directory(given.model, "samples/reviews.csv") as model:
        print(markdown(start_rows(model, given)), end="\n\n")
        print(markdown(heaviest_imports(["predict.py", "--model", model, _TEXT])), end="\n\n")
        print(markdown(phase_rows(model, given.repeats)))


if __name__ == "__main__":
    run(main)
