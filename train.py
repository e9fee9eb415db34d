"""The main job: a table in, a fine-tuned classifier out.

    python train.py --data samples/reviews.csv

Reads top to bottom as it runs: config -> examples -> token ids -> model -> fit -> evaluate -> save.
"""

import contextlib
import functools
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import before_tensorflow, bold, parse_command_line, python
from config import Config

if __name__ == "__main__":
    CONFIG, DEBUG = before_tensorflow(parse_command_line)

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import numpy as np
import pandas as pd

import artifacts
import dashboard
from calibration import fit_decision
from data import Tokens, rows_per_epoch, tokenize
from decision import Decision, plain_decision
from encoders import find_encoder
from evaluation import log_evaluation, numbers, write_results
from export import export_classifier
from fitting import Fit, Job, disk_needed, fit_classifier, refuse_other_rows, refuse_wrong_monitor
from imbalance import Balance, balance
from looks import draw_data, draw_scores
from metrics import HEADLINE, score_probabilities
from model import Classifier, build_classifier
from plots import learning_curves
from report import Facts, write_model_card
from results import Scored, score_unseen, score_validation
from run_directory import (
    LAST,
    STATE,
    TrainingState,
    claim_run_directory,
    held,
    read_training_state,
    refuse_full_disk,
    refuse_used_run_directory,
    write_atomically,
)
from scoring import Scorer
from splits import IN_MEMORY, Splits, load_splits
from tracking import Mode, NoRun, choose_mode, start_run
from wandb_callback import best_values

_LABELS_SHOWN = 30
_ROWS_AT_START = 1000  # scored before the first step


@dataclass(frozen=True)
class Result:
    """What a training leaves: its directory, the content of metrics.json, and the model in memory."""

    run_directory: Path
    metrics: dict[str, Any]
    classifier: Classifier
    decision: Decision
    num_cut: int  # training texts that lost tokens to max_seq_length
    interrupted: bool


def train(config: Config) -> Result:
    """Fine-tunes a classifier as `config` says, or goes on with that, and writes its run directory.

    Raises:
        HubtuneError: one line on what is wrong with the options, the tables, the encoder or the run directory.
    """
    refuse_used_run_directory(config)
    state = read_training_state(config)
    wandb_mode = choose_mode(config)
    splits = load_splits(config)
    if state is not None:
        refuse_other_rows(config, state, splits)
    return train_splits(config, splits, wandb_mode, state)


def train_splits(
    config: Config,
    splits: Splits,
    wandb_mode: Mode,
    state: TrainingState | None = None,
    row_weights: np.ndarray | None = None,
) -> Result:
    """Fine-tunes a classifier on rows that are read already, and writes its run directory.

    Args:
        config: the options; those that name tables are not looked at.
        splits: the rows.
        wandb_mode: as `tracking.choose_mode` chooses it.
        state: what an earlier training left, to go on from.
        row_weights: weights of the training rows in the loss, float32 [N].

    Raises:
        HubtuneError: as `train`.
    """
    started = time.monotonic()
    _describe(splits)
    balanced = balance(config, splits.task, splits.task.targets(splits.train.labels), row_weights)
    _describe_balance(splits, balanced)
    refuse_wrong_monitor(config, splits)
    device = runtime.set_up_devices()
    runtime.forget_earlier_models()
    classifier = build_classifier(config, find_encoder(config), splits.task)
    classifier.set_output_bias(balanced.bias)
    if classifier.encoder.note:
        print(f"note: {classifier.encoder.note}", flush=True)
    tokens = {
        name: tokenize(part.texts, classifier.preprocessor, config.max_seq_length, part.pairs)
        for name, part in splits.parts.items()
    }
    _describe_tokens(config, tokens)

    refuse_full_disk(config, disk_needed(config, classifier))
    run_directory = claim_run_directory(config)
    scorer = Scorer(lambda inputs: classifier.token_model(inputs, training=False), splits.task.num_logits)
    job = Job(config, splits, balanced, classifier, scorer, tokens, run_directory)
    environment = _environment(job, device)
    known = {"environment": environment, "tables": [{"table": name, **each} for name, each in splits.tables.items()]}
    tracked = start_run(config, run_directory, wandb_mode, known, resumed=state is not None)
    with held(run_directory), _told_how_to_go_on(job), tracked as run:
        for name, identity in splits.tables.items():
            run.uses(functools.partial(artifacts.dataset, name, identity))
        print(f"Training on {device} in {classifier.encoder.precision}", flush=True)
        state = _begin(job) if state is None else state.model_copy(update={"resumed": state.resumed + 1})
        fit = fit_classifier(job, state, run.callbacks(sizes=job.batch_sizes, rates=job.rates, history=state.history))
        decision, notes, scored = _score(job, fit)
        report = _report(job, state, fit, decision, scored, environment)
        report["notes"] = [*splits.notes, *notes]
        print("Saving the model", flush=True)
        export_classifier(classifier, str(run_directory / "model"), decision, config.max_seq_length)
        write_atomically(run_directory / "metrics.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        facts = _write_report(job, decision, scored, report)
        if not fit.interrupted:
            _remove_state(run_directory)
        _log_jobs(job, run, facts)
    _say_where(job, run.where(), time.monotonic() - started)
    return Result(run_directory, report, classifier, decision, tokens["train"].num_cut, fit.interrupted)


def _begin(job: Job) -> TrainingState:
    """The state of a training before its first step."""
    fingerprints = {name: part.fingerprint() for name, part in job.splits.parts.items()}
    return TrainingState(loss_at_start=_score_start(job), fingerprints=fingerprints)


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
    for name, part in scored.items():
        by_label = part.values["by_label"].items()
        if never := [label for label, line in by_label if line["support"] and not line["predicted"]]:
            notes.append(f"no {name} row was given the label {', '.join(map(repr, never[:20]))}, which some have")
    for note in notes:
        print(f"note: {note}")
    for name, part in scored.items():
        shown = "  ".join(
            f"{metric} {part.values[metric]:.4f}" for metric in HEADLINE[task.kind] if metric in part.values
        )
        half = part.values.get("at_half", {}).get("f1")
        print(f"{name}: {shown}" + ("" if half is None else f"  (at 0.5: f1 {half:.4f})"), flush=True)
    return decision, notes, scored


def _write_report(job: Job, decision: Decision, scored: dict[str, Scored], report: dict[str, Any]) -> Facts:
    """Writes predictions, plots, report.html and MODEL_CARD.md; returns what they tell of."""
    history = _history(job)
    drawn = [] if history.empty else [learning_curves(history)]
    if scored:
        drawn += draw_scores(decision, scored)
    drawn += draw_data(job.splits.task, job.splits.parts, job.tokens, job.config.max_seq_length)
    facts = Facts(
        job.run_directory.name, decision, scored, report, drawn, job.config.model_dump(), job.run_directory / "model"
    )
    write_results(job.run_directory, facts)
    write_model_card(job.run_directory / "MODEL_CARD.md", facts)
    return facts


def _history(job: Job) -> pd.DataFrame:
    """The finished epochs, by history.csv."""
    file = job.run_directory / "history.csv"
    return pd.read_csv(file) if file.exists() else pd.DataFrame()


def _log_jobs(job: Job, run: NoRun, facts: Facts) -> None:
    """Completes the W&B run of the training, and makes those of the saved model and of the scores."""
    config, directory, parts = job.config, job.run_directory, job.splits.parts
    run.log(lambda: dashboard.data_looks(job.splits.task, parts, config.log_examples))
    epochs = _history(job).to_dict("records")
    last = {f"epoch/{name}": value for record in epochs[-1:] for name, value in record.items()}
    run.summarize({**last, **best_values(epochs), **numbers(facts.metrics, "train", *facts.scored)})
    if config.log_model:
        run.logs(lambda: artifacts.training(directory))
        with run.job("save") as saved:
            saved.uses(lambda: artifacts.training(directory))
            saved.logs(lambda: artifacts.model(directory), lambda model: artifacts.keep(model, config.wandb_registry))
    if facts.scored:
        with run.job("evaluate") as evaluated:
            if config.log_model:
                evaluated.uses(lambda: artifacts.model(directory))
            tables = {parts[name].source: job.splits.tables[parts[name].source] for name in facts.scored}
            log_evaluation(evaluated, directory, facts, tables, config.log_examples)


def _report(
    job: Job,
    state: TrainingState,
    fit: Fit,
    decision: Decision,
    scored: dict[str, Scored],
    environment: dict[str, Any],
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
            "loss_at_start": state.loss_at_start,
            "seconds": fit.seconds,
            "examples_per_second": passes * rows_per_epoch(draws) / fit.seconds if fit.seconds else 0.0,
            "tokens_per_second": passes * tokens_per_epoch / fit.seconds if fit.seconds else 0.0,
            "epochs_run": len(fit.history),
            "interrupted": fit.interrupted,
            "steps_run": fit.steps,
            **({"resumed": state.resumed} if state.resumed else {}),
            "peak_memory_bytes": runtime.peak_memory_bytes(),
        },
        **{name: part.values for name, part in scored.items()},
        "threshold": decision.named_thresholds(),
        "threshold_metric": job.config.threshold_metric,
        "temperature": decision.named_temperatures(),
        "run_name": job.run_directory.name,
        "data": {"tables": job.splits.tables, "parts": state.fingerprints},
        "environment": environment,
    }


def _environment(job: Job, device: str) -> dict[str, Any]:
    return {
        **runtime.versions(),
        "device": device,
        "precision": job.classifier.encoder.precision,
        "git_commit": _git_commit(),
        "seed": job.config.seed,
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


def _remove_state(run_directory: Path) -> None:
    """A finished training needs nothing to go on from, which takes three times the room of its model."""
    shutil.rmtree(run_directory / LAST, ignore_errors=True)
    if not any((run_directory / LAST.parent).glob("*")):
        shutil.rmtree(run_directory / LAST.parent, ignore_errors=True)


def _say_where(job: Job, tracked: list[str], seconds: float) -> None:
    directory, texts = job.run_directory, '"your text"' if job.config.text_pair_column is None else "--data new.csv"
    print(f"{bold('Done', sys.stdout)} in {runtime.clock(seconds)}")
    print(f"Report: {directory / 'report.html'}  (read this first)")
    print(f"Model: {directory / 'model'}")
    for line in tracked:
        print(f"W&B: {line}")
    _say_how_to_go_on(job)
    print(f"Use the model: {python()} predict.py --model {shlex.quote(str(directory))} {texts}", flush=True)


@contextlib.contextmanager
def _told_how_to_go_on(job: Job) -> Iterator[None]:
    """Says it after Ctrl-C too."""
    try:
        yield
    except KeyboardInterrupt:
        print()
        _say_how_to_go_on(job)
        raise


def _say_how_to_go_on(job: Job) -> None:
    """Says it of a training that was stopped, if an epoch of it is kept."""
    if (job.run_directory / STATE).exists() and job.config.data != IN_MEMORY:
        print(
            f"Go on with the training: {python()} train.py --resume {shlex.quote(str(job.run_directory))}", flush=True
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


def main(config: Config, debug: bool) -> None:
    """Runs the command; a user's mistake is one line and an exit code, never a traceback."""
    with runtime.mistakes_in_one_line(debug, "nothing more is written"):
        result = train(config)
    if result.interrupted:
        raise SystemExit(130)


if __name__ == "__main__":
    main(CONFIG, DEBUG)
