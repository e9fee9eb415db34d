"""A frozen encoder under a head, beside sentence-transformers and scikit-learn's LogisticRegression, on the same rows.

    python -m benchmarks.bench_frozen --peer-python PYTHON --rows 8000

Seconds are from texts to the trained classifier; the peer's model is loaded before, ours is built in that time. Both take
the sentence vector of the same weights, in bfloat16 where the machine has it. Scores are of the same test rows.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers import Peer, markdown, parse, parser, run, weights_folder
from benchmarks.training_rows import Rows, read_rows

_MAX_LENGTH = 128
_EPOCHS = (1, 10, 20)
_PEER_ROWS = (32, 64)


class Outcome(NamedTuple):
    """Seconds until the classifier is trained, and the probability of the positive label of each test row, float32 [M]."""

    seconds: float
    scores: np.ndarray


def train_head(rows: Rows, epochs: int) -> Outcome:
    """The head of this project's classifier, on vectors that are computed once."""
    from estimators import BertClassifier
    from text_inputs import forget_tokens

    forget_tokens()  # the token ids are to be computed as well
    classifier = BertClassifier(
        trainable=False, pooling="default", epochs=epochs, learning_rate=1e-2, max_seq_length=_MAX_LENGTH, verbose=False
    )
    start = time.perf_counter()
    classifier.fit(rows.texts, rows.targets)
    seconds = time.perf_counter() - start
    return Outcome(seconds, classifier.predict_proba(rows.test_texts)[:, 1])


def train_regression(rows: Rows, encode: Callable[[list[str]], np.ndarray]) -> Outcome:
    """LogisticRegression on what `encode` makes of the texts."""
    from sklearn.linear_model import LogisticRegression

    start = time.perf_counter()
    regression = LogisticRegression(max_iter=1000, class_weight=None).fit(encode(rows.texts), rows.targets)
    seconds = time.perf_counter() - start
    return Outcome(seconds, regression.predict_proba(encode(rows.test_texts))[:, 1])


def encode_ours(texts: list[str]) -> np.ndarray:
    """Vectors by BertTransformer."""
    from estimators import BertTransformer
    from text_inputs import forget_tokens

    forget_tokens()
    return BertTransformer(pooling="default", max_length=_MAX_LENGTH, verbose=False).fit(texts).transform(texts)


def encode_peer(peer: Peer, size: int, texts: list[str]) -> np.ndarray:
    """Vectors by sentence-transformers."""
    return peer.score(texts, {"precision": "bfloat16", "rows": size})[1]


def measure(rows: Rows, peer: Peer, repeats: int) -> list[dict[str, Any]]:
    """A line per way: medians of the seconds over repeats that take turns, and the scores of the last."""
    from sklearn.metrics import average_precision_score, f1_score

    ways: dict[str, Callable[[], Outcome]] = {}
    for epochs in _EPOCHS:
        ways[f"train.py's head, {epochs} epochs"] = partial(train_head, rows, epochs)
    ways["BertTransformer, LogisticRegression"] = partial(train_regression, rows, encode_ours)
    for size in _PEER_ROWS:
        name = f"sentence-transformers ({size} rows), LogisticRegression"
        ways[name] = partial(train_regression, rows, partial(encode_peer, peer, size))
    few = rows.take(200)
    train_head(few, 1)
    train_regression(few, encode_ours)
    train_regression(few, partial(encode_peer, peer, _PEER_ROWS[0]))
    taken: dict[str, list[Outcome]] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            taken.setdefault(name, []).append(way())
    lines = []
    for name, outcomes in taken.items():
        scores = outcomes[-1].scores
        lines.append(
            {
                "way": name,
                "rows": len(rows.texts),
                "seconds": median(outcome.seconds for outcome in outcomes),
                "average precision": average_precision_score(rows.test_targets, scores),
                "F1 at 0.5": f1_score(rows.test_targets, scores >= 0.5),
            }
        )
    return lines


def main() -> None:
    """Runs the command."""
    options = parser("bench_frozen", __doc__.split("\n")[0], repeats=3)
    options.add_argument("--rows", type=int, default=8000, help="training rows of quora [8000]")
    given = parse(options)
    arguments = [str(weights_folder()), given.threads, _MAX_LENGTH]
    with Peer(given.peer_python, "sentence_transformers_encode", arguments, given.threads) as peer:
        print(markdown(measure(read_rows("quora", given.rows, 5000), peer, given.repeats)))


if __name__ == "__main__":
    run(main)
