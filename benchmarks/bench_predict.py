"""Rows a second and single texts' latency of a trained classifier, beside Hugging Face's with the same weights.

    python -m benchmarks.bench_predict --peer-python PYTHON --model runs/quora-20261120-101500

The run has two labels, `pooling` pooled_output and no hidden layer: its encoder, pooler and head are then those of
BertForSequenceClassification, into which the weights are copied (the temperature goes into the head). Probabilities must
agree to 1e-4 in float32. Hugging Face scores by its pipeline in batches of the given order, in batches of texts sorted by
length, and by a plain loop of its model over such batches; one text at a time it scores a tenth of the rows.
sentence-transformers encodes alone, without any head. All take turns, from texts to results. The limit is the time of the
matrix products alone, the last layer's at [CLS] only. Without `--model` a run is made of 4,000 questions (a minute).
"""

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from benchmarks.bench_startup import run_directory
from benchmarks.limit import flops
from benchmarks.peers import Peer, markdown, parse, parser, read_table, run, weights_folder
from checkpoints import _places
from config import ConfigError, DataError
from spec import EncoderSpec, read_spec

_PRECISIONS: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
_WAYS = {"pipeline": (1, 32, 64), "sorted pipeline": (32, 64), "sorted loop": (32, 64, 128)}
_VECTOR_ROWS = (32, 64, 128)
_ONE_BY_ONE = 10  # so much less than all rows is scored one text at a time
_TOLERANCE = 1e-4
_WARM = 64
_BLOCKS = 5  # of single texts, in turns

Setting = tuple[str, str, int | None]  # who, precision, rows of a batch
Score = Callable[
    [list[str]], tuple[float, np.ndarray | None]
]  # texts -> seconds, probabilities [N] of the positive label


# The same weights


def export_weights(model: Path, file: Path) -> EncoderSpec:
    """Writes a classifier's weights by Hugging Face's names.

    Raises:
        DataError: it is no such classifier as Hugging Face has.
    """
    import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (registers the tokenizer's ops)

    with runtime.quiet():
        saved = tf.saved_model.load(str(model))
    spec = read_spec(str(model))
    weights = {variable.name.split(":")[0]: variable.numpy() for variable in saved.weights}
    found = {"logits/kernel", "logits/bias", *(ours for ours, _, _ in _places(spec))} if spec else set()
    if spec is None or spec.family != "bert" or found != weights.keys() or saved.kind.numpy() != b"binary":
        raise DataError(f"{model}: name a run with two labels, a BERT, pooling=pooled_output and hidden_units=0")
    tensors = {}
    for ours, theirs, shape in _places(spec):
        kernel = ours.endswith("/kernel")
        tensors[f"bert.{theirs}"] = weights[ours].reshape(shape[::-1]).T if kernel else weights[ours].reshape(shape)
    temperature = saved.temperature.numpy()
    tensors["classifier.weight"] = weights["logits/kernel"].T / temperature
    tensors["classifier.bias"] = weights["logits/bias"] / temperature
    arrays: dict[str, Any] = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    np.savez(file, **arrays)
    return spec


# The sides


def our_classifiers(model: str) -> dict[str, Any]:
    """A classifier by each precision that this machine offers."""
    from predict import load_classifier

    classifiers: dict[str, Any] = {}
    for precision in _PRECISIONS:
        with contextlib.suppress(ConfigError):
            classifiers[precision] = load_classifier(model, precision=precision)
    return classifiers


def score_ours(classifier: Any) -> Score:
    """Scores by `predict_proba`."""

    def score(texts: list[str]) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        probabilities = classifier.predict_proba(texts)
        return time.perf_counter() - start, probabilities[:, 1]

    return score


def score_peer(peer: Peer, job: dict[str, Any], is_vector: bool) -> Score:
    """Scores, or encodes, by a peer's worker."""

    def score(texts: list[str]) -> tuple[float, np.ndarray | None]:
        seconds, rows = peer.score(texts, job)
        return seconds, None if is_vector else rows[:, 0]

    return score


def all_sides(classifiers: dict[str, Any], classify: Peer, encode: Peer) -> dict[Setting, Score]:
    """Every setting of everyone."""
    sides: dict[Setting, Score] = {
        ("predict_proba", name, None): score_ours(classifier) for name, classifier in classifiers.items()
    }
    for precision in _PRECISIONS:
        for way, sizes in _WAYS.items():
            for rows in sizes:
                job = {"precision": precision, "rows": rows, "way": way}
                sides[f"Hugging Face, {way}", precision, rows] = score_peer(classify, job, is_vector=False)
        for rows in _VECTOR_ROWS:
            job = {"precision": precision, "rows": rows}
            sides["sentence-transformers, no head", precision, rows] = score_peer(encode, job, is_vector=True)
    return sides


# Many rows


def compare(
    sides: dict[Setting, Score], texts: list[str], repeats: int
) -> dict[Setting, tuple[float, np.ndarray | None]]:
    """Rows a second of every setting, median of the repeats, and its probabilities."""
    taken: dict[Setting, list[float]] = {}
    scored: dict[Setting, np.ndarray | None] = {}
    for score in sides.values():
        score(texts[:_WARM])
    for _ in range(repeats):
        for setting, score in sides.items():
            part = texts[: len(texts) // _ONE_BY_ONE] if setting[2] == 1 else texts
            seconds, scored[setting] = score(part)
            taken.setdefault(setting, []).append(len(part) / seconds)
    return {setting: (median(rates), scored[setting]) for setting, rates in taken.items()}


def table(
    compared: dict[Setting, tuple[float, np.ndarray | None]], limits: dict[str, float], threshold: float
) -> list[dict[str, Any]]:
    """A line per setting, the fastest first; `limits` are rows a second by precision.

    Raises:
        DataError: the float32 probabilities of ours and of Hugging Face are not the same.
    """
    reference = compared["Hugging Face, pipeline", "float32", 32][1]
    assert reference is not None
    best: dict[str, float] = {
        kind: max(rate for (who, used, _), (rate, _) in compared.items() if who != "predict_proba" and used == kind)
        for kind in _PRECISIONS
    }
    lines = []
    for (who, precision, rows), (rate, scored) in compared.items():
        line: dict[str, Any] = {"who": who, "precision": precision, "rows a batch": rows, "rows a second": rate}
        line |= {"times the best peer": rate / max(best.values()), "of its precision": rate / best[precision]}
        line["share of the limit"] = rate / limits[precision]
        if scored is not None:
            same = reference[: len(scored)]
            line["largest difference"] = float(np.abs(scored - same).max())
            line["equal labels"] = float(((scored >= threshold) == (same >= threshold)).mean())
        if who == "predict_proba" and precision == "float32" and line["largest difference"] > _TOLERANCE:
            raise DataError(f"probabilities differ by {line['largest difference']:.2g}: not the same model")
        lines.append(line)
    return sorted(lines, key=lambda line: -line["rows a second"])


# One text


def one_by_one(call: Callable[[str], Any], texts: list[str]) -> list[float]:
    """Seconds of a call for each text."""
    times = []
    for text in texts:
        start = time.perf_counter()
        call(text)
        times.append(time.perf_counter() - start)
    return times


def peer_one_by_one(peer: Peer, precision: str, texts: list[str]) -> list[float]:
    """The same by Hugging Face's pipeline, timed in its own process."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts, file)
        file.flush()
        return list(peer.ask({"texts": file.name, "precision": precision, "way": "single"})["seconds"])


def latencies(classifiers: dict[str, Any], classify: Peer, texts: list[str]) -> list[dict[str, Any]]:
    """Milliseconds of single texts, each another one, in blocks that take turns."""
    import tensorflow as tf

    served = classifiers["float32"]._saved.signatures["serving_default"]

    def serve(text: str) -> Any:
        return served(text=tf.constant([text]))

    def score(classifier: Any, text: str) -> Any:
        return classifier.predict_proba([text])

    sides: dict[tuple[str, str], Callable[[list[str]], list[float]]] = {
        ("SavedModel, serving_default", "float32"): partial(one_by_one, serve)
    }
    for precision, classifier in classifiers.items():
        sides["predict_proba", precision] = partial(one_by_one, partial(score, classifier))
    for precision in _PRECISIONS:
        sides["Hugging Face, pipeline", precision] = partial(peer_one_by_one, classify, precision)
    taken: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    warm, *blocks = np.array_split(np.array(texts, dtype=object), _BLOCKS + 1)
    for call in sides.values():
        call(warm.tolist())
    for block in blocks:
        for side, call in sides.items():
            taken[side] += call(block.tolist())
    return [
        {"one text by": who, "precision": precision, "texts": len(times)}
        | {f"p{level}, ms": float(np.percentile(times, level)) * 1e3 for level in (50, 95)}
        for (who, precision), times in taken.items()
    ]


# The command


def measure(model: str, given: Any, folder: Path) -> None:
    """Prints both tables of a run."""
    from predict import find_model

    classifiers = our_classifiers(model)
    classifier = classifiers["float32"]
    spec = export_weights(find_model(model), folder / "weights.npz")
    texts = read_table("quora_unlabelled.csv.gz", given.rows + given.singles)["question_text"].tolist()
    many, singles = texts[: given.rows], texts[given.rows :]
    operations = flops(spec, classifier.tokenize(many).lengths, training=False, cls_only=True)
    weights, length = str(weights_folder()), classifier.max_seq_length
    with (
        Peer(
            given.peer_python,
            "hugging_face_classify",
            [weights, str(folder / "weights.npz"), given.threads, length],
            given.threads,
        ) as classify,
        Peer(
            given.peer_python, "sentence_transformers_encode", [weights, given.threads, length], given.threads
        ) as encode,
    ):
        compared = compare(all_sides(classifiers, classify, encode), many, given.repeats)
        with Peer(sys.executable, "matrix_rates", [], given.threads) as matrices:
            rates = matrices.ask({"training": False})
        limits = {name: rate * len(many) / operations for name, rate in rates.items()}
        print(markdown(table(compared, limits, float(classifier.decision.threshold[0]))), end="\n\n", flush=True)
        print(markdown(latencies(classifiers, classify, singles)))


def main() -> None:
    """Runs the command."""
    options = parser("bench_predict", __doc__.split("\n")[0], repeats=3)
    options.add_argument("--model", help="run directory, of the embedded encoder [one epoch on 4,000 questions]")
    options.add_argument("--rows", type=int, default=20_000, help="questions [20000]")
    options.add_argument(
        "--singles", type=int, default=600, help="other questions for single texts, a sixth to warm up [600]"
    )
    given = parse(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        read_table("quora_train.csv", 5000).to_csv(folder / "questions.csv", index=False)
        columns = ("--text_column", "question_text", "--label_column", "target", "--valid_split", "1000")
        with run_directory(given.model, str(folder / "questions.csv"), *columns) as model:
            measure(model, given, folder)


if __name__ == "__main__":
    run(main)
