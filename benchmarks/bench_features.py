"""Rows a second of BertTransformer beside sentence-transformers, on the same weights, texts and cores.

    HUBTUNE_PEER_PYTHON=/path/to/peer/bin/python python -m benchmarks.bench_features --questions 5000 --reviews 3000

The peer runs in an environment of its own (requirements-peers.txt), with each of its settings: float32 and bfloat16, 32, 64
and 128 rows a batch. Ours and every setting of the peer take turns; the figures are medians. Cosines are of ours to the
peer's in float32. Both start from texts; loading the models is not counted. One line per setting and table.
"""

import time
import warnings
from statistics import median
from typing import Any

import numpy as np

from benchmarks.peers import Peer, markdown, parse, parser, read_table, run, weights_folder

_TABLES = {"questions": ("quora_unlabelled.csv.gz", "question_text"), "reviews": ("imdb_train.csv", "review")}
_MAX_LENGTH = 128
_PEER_SETTINGS = [(precision, rows) for precision in ("float32", "bfloat16") for rows in (32, 64, 128)]


def read_texts(name: str, rows: int) -> list[str]:
    """The first rows of a table."""
    file, column = _TABLES[name]
    return read_table(file, rows)[column].tolist()


def compare(texts: list[str], peer: Peer, repeats: int) -> list[dict[str, Any]]:
    """A line per setting: rows a second, and the least cosine to the peer's float32 vectors."""
    from features import BertTransformer
    from text_inputs import forget_tokens

    def encode(texts: list[str], precision: str, rows: int) -> tuple[float, np.ndarray]:
        return peer.score(texts, {"precision": precision, "rows": rows})

    transformers = {
        precision: BertTransformer(pooling="default", max_length=_MAX_LENGTH, precision=precision, verbose=False)
        for precision in ("float32", "auto")
    }
    for transformer in transformers.values():
        transformer.fit(texts).transform(texts[:64])
    for setting in _PEER_SETTINGS:
        encode(texts[:64], *setting)
    seconds: dict[tuple[str, str, str], list[float]] = {}
    vectors: dict[tuple[str, str, str], np.ndarray] = {}
    for _ in range(repeats):
        for transformer in transformers.values():
            forget_tokens()  # the token ids are to be computed as well
            key = ("BertTransformer", transformer.precision_, "by tokens")
            start = time.perf_counter()
            vectors[key] = transformer.transform(texts)
            seconds.setdefault(key, []).append(time.perf_counter() - start)
        for precision, rows in _PEER_SETTINGS:
            key = ("sentence-transformers", precision, str(rows))
            taken, vectors[key] = encode(texts, precision, rows)
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
    best = {
        library: max(line["rows a second"] for line in lines if line["library"] == library)
        for library in {line["library"] for line in lines}
    }
    ratio = best["BertTransformer"] / best["sentence-transformers"]
    rows = [{"texts": name} | line for line in lines]
    return f"{markdown(rows)}\n\n{name}: {ratio:.2f} times the peer's best\n"


def main() -> None:
    """Runs the command."""
    options = parser("bench_features", __doc__.split("\n")[0], repeats=5)
    options.add_argument("--questions", type=int, default=5000, help="rows of short texts [5000]")
    options.add_argument("--reviews", type=int, default=3000, help="rows of long texts, cut at 128 tokens [3000]")
    given = parse(options)
    arguments = [str(weights_folder()), given.threads, _MAX_LENGTH]
    with Peer(given.peer_python, "sentence_transformers_encode", arguments, given.threads) as peer:
        for name in _TABLES:
            print(table(name, compare(read_texts(name, getattr(given, name)), peer, given.repeats)), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".* texts are cut to max_length", category=UserWarning)
    run(main)
