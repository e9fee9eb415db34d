"""Speed of training and what it buys, beside the published recipe and Hugging Face's Trainer, on the same rows and cores.

    python -m benchmarks.bench_train --peer-python PYTHON --results train.jsonl
    python -m benchmarks.bench_train --peer-python PYTHON --results train.jsonl --time-to-score --ours epochs=2

All start from the embedded encoder's weights, with 32 rows a step and texts cut at 128 tokens. The Trainer has the settings
that are the fastest for it in a trial of all; the recipe (published_recipe.py) trains on fewer rows, because it is slow. With
each seed all take a turn. Rows a second are of the training loop without its first step, which traces the graph in TensorFlow.
Every run is appended to the results, and one that is there already is not repeated.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.clock import clocked
from benchmarks.limit import default_spec, flops
from benchmarks.peers import Peer, parse, parser, refuse_no_peer, run, weights_folder
from benchmarks.train_tables import tables
from benchmarks.training_rows import SETS, Rows, make_job, read_rows
from config import DataError

_SIDES = ("ours", "hf", "published")
_SHARED: dict[str, Any] = {"learning_rate": 5e-5, "batch_size": 32}
_MAX_LENGTH = 128
_BEST_GUESS = {
    "bf16": True,
    "attention": "sdpa",
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
    "dataloader_num_workers": 0,
}
# Not among them, as tried by hand: compiled, a step takes 0.33 s against 0.29, after a minute of compiling; bfloat16 products of
# float32 tensors in place of autocast (torch.set_float32_matmul_precision) make 73 rows a second against 110.
_TRAINER_CHANGES: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "float32": {"bf16": False},
    "eager attention": {"attention": "eager"},
    "2 workers": {"dataloader_num_workers": 2},
    "unfused AdamW": {"optim": "adamw_torch"},
    "random batches": {"train_sampling_strategy": "random"},
}


class Outcome(NamedTuple):
    """A training: seconds by their names, and the labels that it gives the test rows, int [N], if it was to score them."""

    seconds: dict[str, float]
    predicted: np.ndarray | None


# The three sides


def train_ours(rows: Rows, changes: dict[str, str], epochs: int, seed: int) -> Outcome:
    """Trains with this project's defaults but for `changes`."""
    from config import make_config
    from data import tokenize, train_batches
    from fitting import fit_in_memory
    from splits import IN_MEMORY

    values = {"data": IN_MEMORY, "valid_split": 0, "max_seq_length": _MAX_LENGTH, "epochs": epochs, "seed": seed}
    config = make_config(values | _SHARED | changes)
    job = make_job(rows, config)
    start = time.perf_counter()
    job.tokens["train"] = tokenize(rows.texts, job.classifier.preprocessor, config.max_seq_length)
    next(iter(train_batches(job.tokens["train"], job.balanced.targets, config.batch_size, seed)))
    ready = time.perf_counter() - start
    with clocked(job.classifier.training_model) as clock:
        fit_in_memory(job, verbose=False)
    seconds = clock() | {"ready": ready, "total": time.perf_counter() - start}
    logits = job.scorer.logits(tokenize(rows.test_texts, job.classifier.preprocessor, config.max_seq_length))
    return Outcome(seconds, logits.argmax(axis=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(np.int64))


def train_peer(rows: Rows, peer: Peer, change: str, epochs: int, seed: int, scored: bool) -> Outcome:
    """Trains by Hugging Face's Trainer, or by the published recipe, which has no settings."""
    with tempfile.TemporaryDirectory() as folder:
        train, test, output = (str(Path(folder, name)) for name in ("train.json", "test.json", "logits.npy"))
        Path(train).write_text(json.dumps({"texts": rows.texts, "labels": rows.targets.tolist()}), encoding="utf-8")
        Path(test).write_text(json.dumps(rows.test_texts), encoding="utf-8")
        job = {"train": train, "test": test if scored else None, "output": output, "num_labels": len(rows.labels)}
        settings = _BEST_GUESS | _TRAINER_CHANGES.get(change, {})
        seconds = peer.ask(job | _SHARED | {"epochs": epochs, "seed": seed, "settings": settings})
        if not scored:
            return Outcome(seconds, None)
        scores = np.load(output)
        return Outcome(seconds, scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] > 0.5).astype(np.int64))


# The measurement


class Bench:
    """Runs trainings that are not in the results yet, and appends them."""

    def __init__(self, results: Path, rows: Rows, matrices: Peer) -> None:
        self._results, self._rows, self._matrices = results, rows, matrices
        self._lines = read_lines(results)
        self._facts: dict[str, float] | None = None

    def measure(
        self, side: str, setting: str, seed: int, epochs: int, rows: Rows, train: Callable[[], Outcome]
    ) -> None:
        """Trains once; `side` is one of the three, or "trial"."""
        known = {
            "set": rows.name,
            "side": side,
            "setting": setting,
            "seed": seed,
            "rows": len(rows.texts),
            "epochs": epochs,
        }
        if any(known.items() <= line.items() for line in self._lines):
            return
        rate = self._matrices.ask({"training": True})["bfloat16"]
        outcome = train()
        seconds = outcome.seconds
        steps = len(rows.texts) // 32 if side == "published" else -(-len(rows.texts) // 32)
        trained = epochs * (steps * 32 if side == "published" else len(rows.texts)) - 32
        speed = trained / (seconds["seconds"] - seconds["first step"])
        facts = self._about_rows()
        line = (
            known
            | seconds
            | {
                "rows a second": speed,
                "tokens a second": speed * facts["tokens"],
                "share of limit": speed * facts["flops"] / rate,
                "bfloat16 rate": rate,
            }
        )
        if outcome.predicted is not None:
            line |= {"true": rows.test_targets.tolist(), "predicted": outcome.predicted.tolist()}
        with self._results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._lines.append(line)
        print(f"{rows.name}  {side}  {setting}  seed {seed}: {speed:,.1f} rows/s", flush=True)

    def fastest_trial(self) -> str:
        """The settings of the Trainer that were the fastest in the trial."""
        speeds: dict[str, list[float]] = {}
        for line in self._lines:
            if line["side"] == "trial" and line["set"] == self._rows.name:
                speeds.setdefault(line["setting"], []).append(line["rows a second"])
        return max(speeds, key=lambda setting: median(speeds[setting]))

    def _about_rows(self) -> dict[str, float]:
        """Real tokens of a training row, and the operations that it needs, as means."""
        if self._facts is None:
            from config import make_config
            from data import tokenize
            from encoders import find_encoder
            from model import load_preprocessor
            from splits import IN_MEMORY

            preprocessor = load_preprocessor(find_encoder(make_config({"data": IN_MEMORY})).preprocessor)
            lengths = tokenize(self._rows.texts, preprocessor.resolved_object, _MAX_LENGTH).lengths
            needed = flops(default_spec(), lengths, training=True, cls_only=True)
            self._facts = {"tokens": float(lengths.mean()), "flops": needed / len(lengths)}
        return self._facts


def read_lines(results: Path) -> list[dict[str, Any]]:
    """The runs in a file of results."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def measure_set(
    given: argparse.Namespace,
    rows: Rows,
    matrices: Peer,
    peer: Peer | None,
    published: Peer | None,
    changes: dict[str, str],
) -> None:
    """All runs of one set of rows."""
    bench = Bench(given.results, rows, matrices)
    fewer, few = rows.take(given.trial_rows), rows.take(given.published_rows)
    if peer is not None:
        for repeat in range(1, given.repeats + 1):
            for change in _TRAINER_CHANGES:
                train = partial(train_peer, fewer, peer, change, 1, repeat, scored=False)
                bench.measure("trial", change, repeat, 1, fewer, train)
    ours = " ".join(f"{key}={value}" for key, value in changes.items()) or "defaults"
    own_epochs = int(changes.get("epochs", given.epochs))
    for seed in range(1, given.seeds + 1):
        if "ours" not in given.skip:
            bench.measure("ours", ours, seed, own_epochs, rows, partial(train_ours, rows, changes, given.epochs, seed))
        if peer is not None:
            best = bench.fastest_trial()
            train = partial(train_peer, rows, peer, best, given.epochs, seed, scored=True)
            bench.measure("hf", best, seed, given.epochs, rows, train)
        if published is not None:
            train = partial(train_peer, few, published, "as it is", given.epochs, seed, scored=few is rows)
            bench.measure("published", "as it is", seed, given.epochs, few, train)


# The command


def read_options() -> argparse.Namespace:
    """Reads the command line.

    Raises:
        DataError: an option has a value that it cannot have.
    """
    options = parser("bench_train", __doc__.split("\n")[0], repeats=3)
    options.add_argument("--results", type=Path, required=True, help="JSONL file of the runs")
    options.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="sets of rows [all]")
    options.add_argument("--rows", type=int, help="training rows [all]")
    options.add_argument("--trial-rows", type=int, default=1600, help="training rows of the trial of settings [1600]")
    options.add_argument("--published-rows", type=int, default=960, help="training rows of the published recipe [960]")
    options.add_argument("--test-rows", type=int, help="test rows [6000 of text_emotion, 5000 of quora]")
    options.add_argument("--epochs", type=int, default=3, help="passes over the training rows [3]")
    options.add_argument("--seeds", type=int, default=3, help="runs of every side, each with its own seed [3]")
    options.add_argument("--ours", nargs="+", default=[], metavar="KEY=VALUE", help="keys of train.py for our side")
    options.add_argument("--skip", nargs="+", choices=_SIDES, default=[], help="sides that are left out")
    options.add_argument("--time-to-score", action="store_true", help="print seconds and scores of every run")
    given = parse(options, needs_peer=False)
    if "hf" not in given.skip:
        refuse_no_peer(given)
    wrong = next((change for change in given.ours if "=" not in change), None)
    if wrong is not None:
        raise DataError(f"--ours {wrong}: write KEY=VALUE, as in --ours epochs=2")
    return given


def main() -> None:
    """Runs the command."""
    given = read_options()
    import runtime

    runtime.set_up_devices()
    changes = dict(change.split("=", 1) for change in given.ours)
    with contextlib.ExitStack() as stack:
        matrices = stack.enter_context(Peer(sys.executable, "matrix_rates", [], given.threads))
        peer = published = None
        if "hf" not in given.skip:
            arguments = [str(weights_folder()), given.threads, _MAX_LENGTH]
            peer = stack.enter_context(Peer(given.peer_python, "hugging_face_train", arguments, given.threads))
        if "published" not in given.skip:  # in a process of its own, whose threads are TensorFlow's own choice
            published = stack.enter_context(Peer(sys.executable, "published_train", [], given.threads))
        for name in given.sets:
            measure_set(given, read_rows(name, given.rows, given.test_rows), matrices, peer, published, changes)
    print(tables(read_lines(given.results), given.time_to_score))


if __name__ == "__main__":
    run(main)
