"""Rows a second from texts to padded, masked batches of 32, beside the published pipeline; and how long a training waits.

    python -m benchmarks.bench_pipeline

The first epoch holds the tokenisation; the epochs after it start from the token ids that are kept. The published pipeline
tokenises in every epoch. Batches are fetched inside a graph, as a training step does it. Token ids are compared row by row.
"""

import argparse
import time
from statistics import median
from typing import Any

import numpy as np

from benchmarks.peers import markdown, parse, parser, run
from benchmarks.training_rows import SETS, Rows, make_job, read_rows
from config import DataError

_BATCH = 32
_MAX_LENGTH = 128
_TARGET_FIRST, _TARGET_LATER = 50, 500  # times the published pipeline's rows a second


def time_ours(rows: Rows, preprocessor: Any, epochs: int) -> tuple[float, float, float]:
    """Seconds of the first epoch, of its tokenisation alone, and of each later epoch (median)."""
    from data import num_batches, tokenize, train_batches

    start = time.perf_counter()
    tokens = tokenize(rows.texts, preprocessor, _MAX_LENGTH)
    tokenizing = time.perf_counter() - start
    iterator = iter(train_batches(tokens, rows.targets, _BATCH, seed=0))
    steps = num_batches(len(tokens), _BATCH)
    fetch = _fetcher(iterator)
    times = [_timed(fetch, iterator, steps) for _ in range(epochs)]
    return tokenizing + times[0], tokenizing, median(times[1:])


def time_published(rows: Rows, tokenizer: Any) -> float:
    """Seconds of an epoch."""
    from benchmarks.published_recipe import make_dataset

    iterator = iter(make_dataset(rows.texts, rows.targets, tokenizer, training=True))
    return _timed(_fetcher(iterator), iterator, len(rows.texts) // _BATCH)


def _fetcher(iterator: Any) -> Any:
    """A traced graph that fetches so many batches."""
    import tensorflow as tf

    @tf.function
    def fetch(iterator: Any, steps: tf.Tensor) -> tf.Tensor:
        fetched = tf.constant(0)
        for _ in tf.range(steps):
            _, targets = next(iterator)
            fetched += tf.size(targets)
        return fetched

    fetch(iterator, tf.constant(0))
    return fetch


def _timed(fetch: Any, iterator: Any, steps: int) -> float:
    import tensorflow as tf

    start = time.perf_counter()
    fetch(iterator, tf.constant(steps))
    return time.perf_counter() - start


def differing_rows(rows: Rows, preprocessor: Any, tokenizer: Any) -> int:
    """Rows whose ids, or types of ids, are not the published pipeline's."""
    from benchmarks.published_recipe import make_dataset
    from data import INPUT_NAMES, tokenize

    ours, differing, row = tokenize(rows.texts, preprocessor, _MAX_LENGTH), 0, 0
    for inputs, _ in make_dataset(rows.texts, rows.targets, tokenizer, training=False).as_numpy_iterator():
        for ids, mask, types in zip(*(inputs[name] for name in INPUT_NAMES), strict=True):
            part, length = slice(ours.offsets[row], ours.offsets[row + 1]), int(mask.sum())
            same = np.array_equal(ours.word_ids[part], ids[:length]) and np.array_equal(
                ours.type_ids[part], types[:length]
            )
            differing, row = differing + (not same), row + 1
    return differing


def measure_stall(rows: Rows) -> tuple[float, float]:
    """Share of a training's time that it waits for batches, and rows a second, both from the second step on.

    `fit` fetches the batch inside the compiled step, where no callback sees it; here the same step is compiled without the
    fetch, which is timed before it. The wait so includes handing the batch to Python, about 0.1 ms.
    """
    import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)
    import tensorflow as tf

    from config import make_config
    from data import tokenize
    from fitting import fit_in_memory
    from splits import IN_MEMORY

    job = make_job(rows, make_config({"data": IN_MEMORY, "valid_split": 0, "epochs": 1, "batch_size": _BATCH}))
    job.tokens["train"] = tokenize(rows.texts, job.classifier.preprocessor, _MAX_LENGTH)
    model = job.classifier.training_model
    step = tf.function(model.train_step, reduce_retracing=True)
    waits, times = list[float](), list[float]()

    def timed_step(iterator: Any) -> Any:
        start = time.perf_counter()
        batch = next(iterator)
        waits.append(time.perf_counter() - start)
        logs = step(batch)
        times.append(time.perf_counter() - start)
        return logs

    model.make_train_function = lambda force=False: timed_step
    fit_in_memory(job, verbose=False)
    settled = len(times) // 10  # steps that trace, and meet lengths for the first time
    return sum(waits[settled:]) / sum(times[settled:]), _BATCH * len(times[settled:]) / sum(times[settled:])


def measure(rows: Rows, given: argparse.Namespace) -> dict[str, Any]:
    """A line of the table."""
    import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)
    from benchmarks.published_recipe import load_encoder
    from config import Config
    from encoders import default_encoder, find_encoder
    from model import load_preprocessor
    from splits import IN_MEMORY

    preprocessor = load_preprocessor(find_encoder(Config(data=IN_MEMORY)).preprocessor).resolved_object
    tokenizer, few = load_encoder(default_encoder())[1], rows.take(given.published_rows)
    times, published = [], []
    for _ in range(given.repeats):
        times.append(time_ours(rows, preprocessor, given.epochs))
        published.append(time_published(few, tokenizer))
    first, tokenizing, later = (median(part) for part in zip(*times, strict=True))
    count, base = len(rows.texts), len(few.texts) // _BATCH * _BATCH / median(published)
    line: dict[str, Any] = {
        "set": rows.name,
        "rows": count,
        "published rows/s": base,
        "first epoch rows/s": count / first,
        "of it tokenising, s": tokenizing,
        f"times published (wanted {_TARGET_FIRST})": count / first / base,
        "later epochs rows/s": count / later,
        f"times published (wanted {_TARGET_LATER})": count / later / base,
        "differing ids": f"{differing_rows(few, preprocessor, tokenizer)} of {len(few.texts)}",
    }
    stall, speed = measure_stall(rows.take(given.fit_steps * _BATCH))
    return line | {"fit waits": f"{stall:.2%}", "fit rows/s": speed}


def main() -> None:
    """Runs the command."""
    options = parser("bench_pipeline", __doc__.split("\n")[0], repeats=3)
    options.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="sets of rows [all]")
    options.add_argument("--rows", type=int, help="rows [all training rows]")
    options.add_argument("--published-rows", type=int, default=4000, help="rows of the published pipeline [4000]")
    options.add_argument("--epochs", type=int, default=4, help="epochs of ours, the first one included [4]")
    options.add_argument("--fit-steps", type=int, default=300, help="steps of the training that may wait [300]")
    given = parse(options, needs_peer=False)
    if given.epochs < 2:
        raise DataError(f"--epochs {given.epochs}: the later epochs are measured too; give 2 or more")
    print(markdown([measure(read_rows(name, given.rows, None), given) for name in given.sets]))


if __name__ == "__main__":
    run(main)
