"""The main job: a table in, a fine-tuned classifier out.

    python train.py --data samples/reviews.csv

Reads top to bottom as it runs: config -> examples -> token ids -> model -> fit -> evaluate -> save.
"""

import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import before_tensorflow, parse_command_line
from config import Config, ConfigError

if __name__ == "__main__":
    CONFIG, DEBUG = before_tensorflow(parse_command_line)

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import numpy as np
import pandas as pd
import tf_keras

from callbacks import EpochEnd, Progress, refuse_diverged
from data import Tokens, num_batches, rows_per_epoch, tokenize, train_batches
from decision import Decision, fit_decision, plain_decision
from encoders import find_encoder
from evaluation import write_results
from export import export_classifier
from imbalance import Balance, balance
from looks import draw_data, draw_scores
from metrics import HEADLINE, score_probabilities
from model import Classifier, build_classifier, compile_classifier
from plots import learning_curves
from report import Facts, write_model_card
from results import Scored, score_unseen, score_validation
from run_directory import claim_run_directory, refuse_full_disk, refuse_used_run_directory, write_atomically
from scoring import Scorer
from splits import Splits, load_splits
from tracking import choose_mode, start_run

_LABELS_SHOWN = 30
_ROWS_AT_START = 1000  # scored before the first step


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
    balanced = balance(config, splits.task, splits.task.targets(splits.train.labels))
    _describe_balance(splits, balanced)
    _refuse_wrong_monitor(config, splits)
    device = runtime.set_up_devices()
    classifier = build_classifier(config, find_encoder(config), splits.task)
    classifier.set_output_bias(balanced.bias)
    if classifier.encoder.note:
        print(f"note: {classifier.encoder.note}", flush=True)
    tokens = {
        name: tokenize(part.texts, classifier.preprocessor, config.max_seq_length, part.pairs)
        for name, part in splits.parts.items()
    }
    _describe_tokens(config, tokens)

    copies = 2 if config.early_stopping_patience else 1  # the model, and the best weights
    refuse_full_disk(config, copies * 4 * classifier.token_model.count_params())
    run_directory = claim_run_directory(config)
    write_atomically(run_directory / "config.yaml", config.to_yaml())
    scorer = Scorer(lambda inputs: classifier.token_model(inputs, training=False), splits.task.num_logits)
    job = Job(config, splits, balanced, classifier, scorer, tokens, run_directory)
    with start_run(config, run_directory, wandb_mode) as run:
        print(f"Training on {device} in {classifier.encoder.precision}", flush=True)
        loss_at_start = _score_start(job)
        fit = _fit(job, run.callbacks())
        decision, notes, scored = _score(job, fit)
        report = _report(job, fit, loss_at_start, decision, scored, device)
        report["notes"] = [*splits.notes, *notes]
        print("Saving the model", flush=True)
        export_classifier(classifier, str(run_directory / "model"), decision, config.max_seq_length)
        write_atomically(run_directory / "metrics.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        _write_report(job, decision, scored, report)
        run.summarize(_numbers(report))
    _say_where(job, run.where(), time.monotonic() - started)
    return Result(run_directory, report, classifier, fit.interrupted)


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and into where; all of it ready before the first step."""

    config: Config
    splits: Splits
    balanced: Balance
    classifier: Classifier
    scorer: Scorer
    tokens: dict[str, Tokens]  # by the names of the parts
    run_directory: Path

    @property
    def rows_per_step(self) -> int:
        """Rows that the optimizer sees at once."""
        return self.config.batch_size * self.config.gradient_accumulation_steps

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps, the last one of fewer rows included."""
        return num_batches(rows_per_epoch(self.balanced.draws), self.rows_per_step)


def _refuse_wrong_monitor(config: Config, splits: Splits) -> None:
    kind = splits.task.kind
    needed = {"val_f1": "binary", "val_micro_f1": "multilabel"}.get(config.monitor)
    if needed not in {None, kind}:
        raise ConfigError(
            f"monitor={config.monitor}: it belongs to {needed} tasks, and this one is {kind}; use val_macro_f1"
        )
    if config.monitor == "val_average_precision" and splits.valid is not None:
        present = splits.task.indicators(splits.task.targets(splits.valid.labels)).sum(axis=0)
        if not (present[1] if kind == "binary" else present.any()):
            raise ConfigError(
                f"monitor={config.monitor}: {splits.valid.source}: no validation row is positive; use val_loss"
            )


# Fitting


@dataclass(frozen=True)
class Fit:
    """What came of fitting, beside the weights."""

    valid_logits: np.ndarray | None  # where the last epoch's are those of the final weights
    steps: int
    seconds: float
    epochs_run: int
    interrupted: bool


def _score_start(job: Job) -> float:
    """Cross-entropy on some training rows before the first step: about that of the output bias, which knows no text."""
    rows = np.random.default_rng(job.config.seed).permutation(len(job.splits.train))[:_ROWS_AT_START]
    logits = job.scorer.logits(job.tokens["train"].take(rows))
    task, decision = job.splits.task, plain_decision(job.splits.task)
    loss, alone = (
        score_probabilities(task, job.balanced.targets[rows], decision.probabilities(each))["loss"]
        for each in (logits, np.tile(job.balanced.bias, (len(rows), 1)))
    )
    print(
        f"step 0: loss {loss:.4f} on {len(rows):,} training rows; the output bias alone gives {alone:.4f}", flush=True
    )
    return loss


def _fit(job: Job, callbacks: list[Any]) -> Fit:
    """Trains the classifier; after Ctrl-C it keeps what is trained so far."""
    config, model, steps = job.config, job.classifier.training_model, job.steps_per_epoch
    compile_classifier(job.classifier, config, config.epochs * steps, job.balanced.weights)
    valid = job.splits.valid
    valid_targets = None if valid is None else job.splits.task.targets(valid.labels)
    history_file = job.run_directory / "history.csv"
    epoch_end = EpochEnd(job.splits.task, job.scorer, job.tokens.get("valid"), valid_targets, history_file)
    best = str(job.run_directory / "checkpoints" / "best")
    stopping = _early_stopping(config, best)
    batches = train_batches(
        job.tokens["train"], job.balanced.targets, job.rows_per_step, config.seed, job.balanced.draws
    )
    interrupted = False
    try:
        with runtime.graph_precision(job.classifier.encoder.graph_precision):
            model.fit(
                batches,
                steps_per_epoch=steps,
                epochs=config.epochs,
                verbose=0,
                callbacks=[epoch_end, *stopping, Progress(job.splits.task.kind, config.epochs, steps), *callbacks],
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
    refuse_diverged(model)
    fresh = epoch_end.scored_step == epoch_end.steps and not stopping
    return Fit(
        epoch_end.logits if fresh else None,
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


def _score(job: Job, fit: Fit) -> tuple[Decision, list[str], dict[str, Scored]]:
    """Scores validation and test rows with the final weights; the former choose temperature and threshold."""
    task, metric, scored = job.splits.task, job.config.threshold_metric, {}
    decision, notes = plain_decision(task), ["no validation rows: no calibration, and 0.5 as the threshold"]
    if job.splits.valid is not None:
        known = fit.valid_logits
        logits = job.scorer.logits(job.tokens["valid"]) if known is None else known
        decision, notes = fit_decision(task, logits, task.targets(job.splits.valid.labels), metric)
        scored["valid"] = score_validation(decision, job.splits.valid, logits, metric)
        if job.config.early_stopping_patience:
            notes.append("early stopping chose the weights on the validation rows too, which flatters their scores")
    if fit.interrupted:
        notes.append(
            f"the training was interrupted after {fit.steps:,} of {job.config.epochs * job.steps_per_epoch:,} steps"
        )
    if job.splits.test is not None:
        scored["test"] = score_unseen(decision, job.splits.test, job.scorer.logits(job.tokens["test"]))
    for note in notes:
        print(f"note: {note}")
    for name, part in scored.items():
        shown = "  ".join(
            f"{metric} {part.values[metric]:.4f}" for metric in HEADLINE[task.kind] if metric in part.values
        )
        print(f"{name}: {shown}", flush=True)
    return decision, notes, scored


def _write_report(job: Job, decision: Decision, scored: dict[str, Scored], report: dict[str, Any]) -> None:
    """Writes predictions, plots, report.html and MODEL_CARD.md."""
    history = job.run_directory / "history.csv"
    drawn = [learning_curves(pd.read_csv(history))] if history.exists() else []
    if scored:
        drawn += draw_scores(decision, scored)
    drawn += draw_data(job.splits.task, job.splits.parts, job.tokens, job.config.max_seq_length)
    facts = Facts(
        job.run_directory.name, decision, scored, report, drawn, job.config.model_dump(), job.run_directory / "model"
    )
    write_results(job.run_directory, facts)
    write_model_card(job.run_directory / "MODEL_CARD.md", facts)


def _numbers(report: dict[str, Any]) -> dict[str, float]:
    """The numbers of each part, as in "test/macro_f1"."""
    return {
        f"{part}/{name}": value
        for part in ("train", "valid", "test")
        for name, value in report.get(part, {}).items()
        if isinstance(value, int | float)
    }


def _report(
    job: Job, fit: Fit, loss_at_start: float, decision: Decision, scored: dict[str, Scored], device: str
) -> dict[str, Any]:
    """The content of metrics.json."""
    draws, passes = job.balanced.draws, fit.steps / job.steps_per_epoch
    tokens_per_epoch = float((job.tokens["train"].lengths * draws).sum())
    return {
        "task": job.splits.task.kind,
        "labels": job.splits.task.labels,
        "encoder": job.config.encoder,
        "train": {
            "examples": len(job.splits.train),
            "loss_at_start": loss_at_start,
            "seconds": fit.seconds,
            "examples_per_second": passes * rows_per_epoch(draws) / fit.seconds if fit.seconds else 0.0,
            "tokens_per_second": passes * tokens_per_epoch / fit.seconds if fit.seconds else 0.0,
            "epochs_run": fit.epochs_run,
            "interrupted": fit.interrupted,
            "steps_run": fit.steps,
            "peak_memory_bytes": runtime.peak_memory_bytes(),
        },
        **{name: part.values for name, part in scored.items()},
        "threshold": decision.named_thresholds(),
        "threshold_metric": job.config.threshold_metric,
        "temperature": decision.named_temperatures(),
        "environment": {
            **runtime.versions(),
            "device": device,
            "precision": job.classifier.encoder.precision,
            "git_commit": _git_commit(),
            "seed": job.config.seed,
        },
    }


def _describe(splits: Splits) -> None:
    """Says what was read and how it is split, before the long work starts."""
    print("  ".join(f"{name} {len(part):,} rows ({part.source})" for name, part in splits.parts.items()))
    print(f"task: {splits.reason}")
    labels = splits.task.labels
    counts = Counter(label for row in splits.train.labels for label in row)
    print(
        "training rows by label: "
        + ", ".join(f"{label!r} {counts[label] / len(splits.train):.1%}" for label in labels[:_LABELS_SHOWN])
        + (", ..." if len(labels) > _LABELS_SHOWN else "")
    )
    if splits.task.kind == "binary":
        print(f"positive label: {labels[1]!r}")
    for note in splits.notes:
        print(f"note: {note}")
    sys.stdout.flush()


def _describe_balance(splits: Splits, balanced: Balance) -> None:
    if balanced.weights is not None:
        shown = list(zip(splits.task.labels, balanced.weights, strict=True))[:_LABELS_SHOWN]
        more = ", ..." if len(splits.task.labels) > _LABELS_SHOWN else ""
        print("class_weight: " + ", ".join(f"{label!r} {weight:.3g}" for label, weight in shown) + more)
    drawn = rows_per_epoch(balanced.draws)
    if drawn > len(splits.train):
        print(f"oversampling: {drawn:,} rows an epoch, drawn from {len(splits.train):,}")


def _describe_tokens(config: Config, tokens: dict[str, Tokens]) -> None:
    for name, part in tokens.items():
        cut = f"; {part.num_cut:,} cut to max_seq_length={config.max_seq_length}" if part.num_cut else ""
        print(f"{name}: {part.lengths.mean():.1f} tokens a row, longest {part.lengths.max()}{cut}", flush=True)


def _say_where(job: Job, tracked: str | None, seconds: float) -> None:
    print(f"Done in {runtime.clock(seconds)}. Read first: {job.run_directory / 'report.html'}")
    if tracked:
        print(f"W&B: {tracked}")
    texts = '"your text"' if job.config.text_pair_column is None else "--data new.csv"
    print(f"Use the model: python predict.py --model {shlex.quote(str(job.run_directory))} {texts}", flush=True)


def _git_commit() -> str | None:
    """The commit of this project's own checkout, if it is one."""
    root = Path(__file__).resolve().parent
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        top, commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:2]
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit if Path(top).resolve() == root else None


def main(config: Config, debug: bool) -> None:
    """Runs the command; a user's mistake is one line and an exit code, never a traceback."""
    with runtime.mistakes_in_one_line(debug, "nothing more is written"):
        result = train(config)
    if result.interrupted:
        raise SystemExit(130)


if __name__ == "__main__":
    main(CONFIG, DEBUG)
