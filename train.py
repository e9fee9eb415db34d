"""The main job: a table in, a fine-tuned classifier out.

    python train.py --data samples/reviews.csv

Reads top to bottom as it runs: config -> examples -> token ids -> model -> fit -> evaluate -> save.
"""

import csv
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import Config, ConfigError, HubtuneError, fail, from_os_error, parse_command_line

if __name__ == "__main__":  # before TensorFlow loads: --help and a mistyped key answer at once
    try:
        CONFIG, DEBUG = parse_command_line(sys.argv[1:])
    except HubtuneError as error:
        if "--debug" in sys.argv:
            raise
        fail(error)

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras

from data import Tokens, num_batches, tokenize, train_batches
from encoders import find_encoder
from evaluation import Scorer, metrics, predictions_table
from model import Classifier, build_classifier, compile_classifier, export_classifier
from run_directory import claim_run_directory, refuse_full_disk, refuse_used_run_directory, write_atomically
from splits import Splits, load_splits
from tracking import choose_mode, start_run

_THRESHOLD = 0.5


@dataclass(frozen=True)
class Result:
    """What a training leaves: its directory, the content of metrics.json, and the model in memory."""

    run_directory: Path
    metrics: dict[str, Any]
    classifier: Classifier
    interrupted: bool


def train(config: Config) -> Result:
    """Fine-tunes a classifier as `config` says and writes its run directory.

    Raises:
        HubtuneError: one line on what is wrong with the options, the tables, the encoder or the run directory.
    """
    started = time.monotonic()
    refuse_used_run_directory(config)
    wandb_mode = choose_mode(config)
    splits = load_splits(config)
    _describe(splits)
    _refuse_wrong_monitor(config, splits)
    device = runtime.set_up_devices()
    paths = find_encoder(config)
    classifier = build_classifier(config, paths, splits.labels)
    if classifier.encoder.note:
        print(f"note: {classifier.encoder.note}", flush=True)
    tokens = {
        name: tokenize(part.texts, classifier.preprocessor, config.max_seq_length)
        for name, part in splits.parts.items()
    }
    _describe_tokens(config, tokens)

    copies = 2 if config.early_stopping_patience else 1  # the model, and the best weights
    refuse_full_disk(config, copies * 4 * classifier.token_model.count_params())
    run_directory = claim_run_directory(config)
    write_atomically(run_directory / "config.yaml", config.to_yaml())
    with start_run(config, run_directory, wandb_mode) as run:
        print(f"Training on {device} in {classifier.encoder.precision}", flush=True)
        fit = _fit(config, classifier, splits, tokens, run_directory, run.callbacks())
        scores = _score(splits, fit, tokens, run_directory)
        report = _report(config, splits, fit, tokens["train"], scores, device, classifier.encoder.precision)
        print("Saving the model", flush=True)
        export_classifier(classifier, str(run_directory / "model"), _THRESHOLD)
        write_atomically(run_directory / "metrics.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        run.summarize({f"{part}/{name}": value for part in splits.parts for name, value in report[part].items()})
    _say_where(run_directory, run.where(), time.monotonic() - started)
    return Result(run_directory, report, classifier, fit.interrupted)


def _refuse_wrong_monitor(config: Config, splits: Splits) -> None:
    if config.monitor == "val_f1" and len(splits.labels) > 2:
        raise ConfigError(f"monitor=val_f1: it needs two labels, there are {len(splits.labels)}; use val_macro_f1")


# Fitting


class EpochEnd(tf_keras.callbacks.Callback):
    """Adds the validation metrics to each epoch's logs, so that later callbacks see them, and keeps history.csv.

    Scoring is done here and not by Keras' own validation, because the metrics that matter need all rows at once.
    """

    def __init__(self, scorer: Scorer, tokens: Tokens | None, label_ids: np.ndarray | None, history_file: Path) -> None:
        super().__init__()
        self._scorer, self._tokens, self._label_ids, self._history_file = scorer, tokens, label_ids, history_file
        self.history: list[dict[str, float]] = []
        self.steps = self.scored_step = 0
        self.probabilities: np.ndarray | None = None  # of the validation rows, after `scored_step`
        self.seconds = 0.0  # of training alone, scoring left out
        self._resumed = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._resumed = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self.steps += 1
        now = time.monotonic()
        self.seconds += now - self._resumed
        self._resumed = now

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        _refuse_diverged(self.model)
        if self._tokens is not None and self._label_ids is not None:
            self.probabilities = self._scorer.probabilities(self._tokens)
            self.scored_step = self.steps
            scores = metrics(self._label_ids, self.probabilities, _THRESHOLD)
            logs.update({f"val_{name}": value for name, value in scores.items()})
        self.history.append({"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}})
        write_atomically(self._history_file, pd.DataFrame(self.history).to_csv(index=False))


class Progress(tf_keras.callbacks.Callback):
    """A line that moves on a terminal; in a log, a line at every tenth of an epoch."""

    def __init__(self, epochs: int, steps: int) -> None:
        super().__init__()
        self._epochs, self._steps, self._epoch = epochs, steps, 0
        self._started = 0.0  # at the end of the first step, which builds the graph

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        done = self._epoch * self._steps + batch + 1
        now = time.monotonic()
        self._started = self._started or now
        left = (now - self._started) / max(1, done - 1) * (self._epochs * self._steps - done)
        line = (
            f"epoch {self._epoch + 1}/{self._epochs}  step {batch + 1:,}/{self._steps:,}  "
            f"loss {logs['loss']:.4f}  accuracy {logs['accuracy']:.4f}  about {_clock(left)} left"
        )
        if sys.stdout.isatty():
            print(f"\r\033[K{line}", end="", flush=True)
        elif (batch + 1) * 10 // self._steps > batch * 10 // self._steps:
            print(line, flush=True)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        end = "\r\033[K" if sys.stdout.isatty() else ""
        print(
            f"{end}epoch {epoch + 1}/{self._epochs}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in logs.items()),
            flush=True,
        )


def _refuse_diverged(model: tf_keras.Model) -> None:
    if not all(tf.reduce_all(tf.math.is_finite(weight)) for weight in model.trainable_variables):
        raise HubtuneError(
            "training diverged: the weights are no longer finite; lower learning_rate, or set precision to float32"
        )


@dataclass(frozen=True)
class Fit:
    """What came of fitting, beside the weights."""

    scorer: Scorer
    valid_probabilities: np.ndarray | None  # where the last epoch's are those of the final weights
    steps: int
    seconds: float
    epochs_run: int
    interrupted: bool


def _fit(
    config: Config,
    classifier: Classifier,
    splits: Splits,
    tokens: dict[str, Tokens],
    run_directory: Path,
    callbacks: list[Any],
) -> Fit:
    """Trains the classifier; after Ctrl-C it keeps what is trained so far."""
    model, steps = classifier.training_model, num_batches(tokens["train"], config.batch_size)
    compile_classifier(classifier, config, config.epochs * steps)
    scorer = Scorer(classifier)
    valid_ids = splits.label_ids(splits.valid) if splits.valid else None
    epoch_end = EpochEnd(scorer, tokens.get("valid"), valid_ids, run_directory / "history.csv")
    best = str(run_directory / "checkpoints" / "best")
    stopping = _early_stopping(config, best)
    batches = train_batches(tokens["train"], splits.label_ids(splits.train), config.batch_size, config.seed)
    interrupted = False
    try:
        with runtime.graph_precision(classifier.encoder.graph_precision):
            model.fit(
                batches,
                steps_per_epoch=steps,
                epochs=config.epochs,
                verbose=0,
                callbacks=[epoch_end, *stopping, Progress(config.epochs, steps), *callbacks],
            )
    except KeyboardInterrupt:
        interrupted = True
        print(
            f"\nInterrupted after {epoch_end.steps:,} of {config.epochs * steps:,} steps: "
            "scoring and saving what is trained; Ctrl-C again to drop it",
            flush=True,
        )
    if stopping and epoch_end.history:
        model.load_weights(best).expect_partial()
        values = [record[config.monitor] for record in epoch_end.history]
        best_epoch = values.index(min(values) if config.monitor == "val_loss" else max(values)) + 1
        print(
            f"Ran {len(values)} epochs; {config.monitor} was best in epoch {best_epoch}, whose weights are kept",
            flush=True,
        )
    _refuse_diverged(model)
    fresh = epoch_end.scored_step == epoch_end.steps and not stopping
    return Fit(
        scorer,
        epoch_end.probabilities if fresh else None,
        epoch_end.steps,
        epoch_end.seconds,
        len(epoch_end.history),
        interrupted,
    )


def _early_stopping(config: Config, best: str) -> list[tf_keras.callbacks.Callback]:
    """Stops when `monitor` no longer improves, and keeps the best weights in the checkpoint `best`."""
    if not config.early_stopping_patience:
        return []
    goal = {"monitor": config.monitor, "mode": "min" if config.monitor == "val_loss" else "max"}
    return [
        tf_keras.callbacks.EarlyStopping(patience=config.early_stopping_patience, **goal),
        tf_keras.callbacks.ModelCheckpoint(best, save_best_only=True, save_weights_only=True, **goal),
    ]


# Scoring and reporting


def _score(splits: Splits, fit: Fit, tokens: dict[str, Tokens], run_directory: Path) -> dict[str, dict[str, Any]]:
    """Scores validation and test rows with the final weights and writes the validation predictions."""
    scores = {}
    for name, part in splits.parts.items():
        if name == "train":
            continue
        known = fit.valid_probabilities if name == "valid" else None
        probabilities = fit.scorer.probabilities(tokens[name]) if known is None else known
        if name == "valid":
            table = predictions_table(part, splits.labels, probabilities, _THRESHOLD)
            # Strings are quoted: a lone carriage return in a text would else be read back as the end of a row.
            write_atomically(
                run_directory / "valid_predictions.csv", table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
            )
        values = metrics(splits.label_ids(part), probabilities, _THRESHOLD)
        print(f"{name}: " + "  ".join(f"{metric} {value:.4f}" for metric, value in values.items()), flush=True)
        scores[name] = {"examples": len(part), **values}
    return scores


def _report(
    config: Config, splits: Splits, fit: Fit, tokens: Tokens, scores: dict[str, Any], device: str, precision: str
) -> dict[str, Any]:
    """The content of metrics.json."""
    passes = fit.steps / num_batches(tokens, config.batch_size)
    return {
        "task": "binary" if len(splits.labels) == 2 else "multiclass",
        "labels": splits.labels,
        "encoder": config.encoder,
        "train": {
            "examples": len(splits.train),
            "seconds": fit.seconds,
            "examples_per_second": passes * len(tokens) / fit.seconds if fit.seconds else 0.0,
            "tokens_per_second": passes * len(tokens.word_ids) / fit.seconds if fit.seconds else 0.0,
            "epochs_run": fit.epochs_run,
            "interrupted": fit.interrupted,
            "steps_run": fit.steps,
            "peak_memory_bytes": runtime.peak_memory_bytes(),
        },
        **scores,
        "threshold": _THRESHOLD,
        "environment": {
            **runtime.versions(),
            "device": device,
            "precision": precision,
            "git_commit": _git_commit(),
            "seed": config.seed,
        },
    }


def _describe(splits: Splits) -> None:
    """Says what was read and how it is split, before the long work starts."""
    print("  ".join(f"{name} {len(part):,} rows ({part.source})" for name, part in splits.parts.items()))
    counts = pd.Series(splits.train.labels).value_counts()
    print(
        f"{len(splits.labels)} labels: "
        + ", ".join(f"{label!r} {counts[label] / len(splits.train):.1%}" for label in splits.labels[:20])
        + (", ..." if len(splits.labels) > 20 else "")
    )
    if len(splits.labels) == 2:
        print(f"positive label: {splits.labels[1]!r}")
    for note in splits.notes:
        print(f"note: {note}")
    sys.stdout.flush()


def _describe_tokens(config: Config, tokens: dict[str, Tokens]) -> None:
    for name, part in tokens.items():
        cut = f"; {part.num_cut:,} cut to max_seq_length={config.max_seq_length}" if part.num_cut else ""
        print(f"{name}: {part.lengths.mean():.1f} tokens a text, longest {part.lengths.max()}{cut}", flush=True)


def _say_where(run_directory: Path, tracked: str | None, seconds: float) -> None:
    print(f"Done in {_clock(seconds)}. Model, metrics and predictions: {run_directory}")
    if tracked:
        print(f"W&B: {tracked}")
    print(
        "Use the model:\n"
        "  import tensorflow as tf, tensorflow_text\n"
        f'  classify = tf.saved_model.load("{run_directory / "model"}").signatures["serving_default"]\n'
        '  classify(text=tf.constant(["your text"]))',
        flush=True,
    )


def _git_commit() -> str | None:
    """The commit of this project's own checkout, if it is one."""
    root = Path(__file__).resolve().parent
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        top, commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:2]
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit if Path(top).resolve() == root else None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def main(config: Config, debug: bool) -> None:
    """Runs the command; a user's mistake is one line and an exit code, never a traceback."""
    try:
        result = train(config)
    except KeyboardInterrupt:
        print("\nInterrupted: no model was saved", file=sys.stderr)
        raise SystemExit(130) from None
    except (HubtuneError, OSError, tf.errors.OpError) as error:
        if debug:
            raise
        fail(_explain(error))
    if result.interrupted:
        raise SystemExit(130)


def _explain(error: Exception) -> HubtuneError:
    if isinstance(error, HubtuneError):
        return error
    if isinstance(error, OSError):
        return from_os_error(error)
    reason = " ".join(re.sub(r"\{\{.*?\}\}", "", str(error)).split())
    if "No space left" in reason:
        return HubtuneError(f"the disk is full: make room or choose another folder ({reason[:200]})")
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return HubtuneError(f"out of memory: lower batch_size or max_seq_length ({reason[:200]})")
    return HubtuneError(f"TensorFlow stopped: {reason[:200]}; --debug shows where")


if __name__ == "__main__":
    main(CONFIG, DEBUG)
