"""Fitting: what is trained, and how it begins, goes on after an interruption, and ends."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras
from tqdm import tqdm

from callbacks import BestWeights, Checkpoints, EpochEnd, Progress, best_epoch, refuse_diverged
from config import Config, ConfigError, DataError
from data import BatchSizes, Tokens, batch_sizes, epoch_batches, num_batches, rows_per_epoch, train_batches
from imbalance import Balance
from model import Classifier, compile_classifier, rate_groups
from run_directory import TrainingState
from scoring import FrozenScorer, Scorer
from splits import Splits

_SHOWN_AFTER = 2.0  # seconds until a progress bar appears
_COMPILED_LENGTHS = 32  # multiples of it, so that XLA compiles few shapes


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and into where; all of it ready before the first step. Without a run directory nothing is
    written."""

    config: Config
    splits: Splits
    balanced: Balance
    classifier: Classifier
    scorer: Scorer
    tokens: dict[str, Tokens]  # by the names of the parts
    directory: Path | None  # of the run

    @property
    def run_directory(self) -> Path:
        """Where the run is written."""
        assert self.directory is not None, "this training writes nothing"
        return self.directory

    @property
    def rows_per_step(self) -> int:
        """Rows that the optimizer sees at once."""
        return self.config.batch_size * self.config.gradient_accumulation_steps

    @property
    def rates(self) -> dict[str, float]:
        """Factor on the learning rate of each group of weights."""
        return rate_groups(self.config, self.classifier)

    def batch_sizes(self, epoch: int) -> BatchSizes:
        """What the batches of an epoch, counted from 0, hold."""
        lengths = self.tokens["train"].lengths
        batches = epoch_batches(lengths, self.rows_per_step, self.config.seed, epoch, self.balanced.draws)
        return batch_sizes(lengths, batches, self.length_step)

    @property
    def length_step(self) -> int:
        """What the lengths of batches are multiples of."""
        return _COMPILED_LENGTHS if self.config.jit_compile else 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps, the last one of fewer rows included."""
        return num_batches(rows_per_epoch(self.balanced.draws), self.rows_per_step)


@dataclass(frozen=True)
class Fit:
    """What came of fitting, beside the weights; of a training that went on, all of it counts."""

    valid_logits: np.ndarray | None  # where the last epoch's are those of the final weights
    steps: int
    seconds: float
    history: list[dict[str, int | float]]  # a record for each epoch, as history.csv has it
    interrupted: bool


def fit_classifier(job: Job, state: TrainingState, callbacks: list[Any]) -> Fit:
    """Trains the classifier, from `state` on; after Ctrl-C it keeps what is trained so far.

    Raises:
        DataError: the checkpoint that `state` names cannot be read.
        HubtuneError: the training diverged.
    """
    config, model, steps = job.config, job.classifier.training_model, job.steps_per_epoch
    epoch_end = _prepare(job)
    checkpoints = Checkpoints(config, job.run_directory, epoch_end, state)
    if state.history:
        checkpoints.restore(model)
        epoch_end.go_on(state, steps)
        print(f"Going on after epoch {len(state.history)} of {config.epochs}", flush=True)
    progress = Progress(job.splits.task.kind, config.epochs, steps)
    interrupted = False
    try:
        with runtime.interruptible():
            _train_epochs(job, epoch_end, [checkpoints, progress, *callbacks])
    except KeyboardInterrupt:
        print(
            f"\nInterrupted after {epoch_end.steps:,} of {config.epochs * steps:,} steps: "
            "scoring and saving what is trained; Ctrl-C again to drop it"
            + ("" if epoch_end.history else ". No epoch was finished, so that it cannot be resumed"),
            flush=True,
        )
        interrupted = True
    if config.early_stopping_patience and epoch_end.history:
        checkpoints.restore_best(model)
    return _outcome(job, epoch_end, interrupted)


def fit_in_memory(job: Job, verbose: bool) -> Fit:
    """Trains the classifier and writes nothing; with early stopping its weights are those of the best epoch.

    Raises:
        HubtuneError: the training diverged.
    """
    epoch_end = _prepare(job)
    best = BestWeights(job.config.monitor, epoch_end) if job.config.early_stopping_patience else None
    progress = Progress(job.splits.task.kind, job.config.epochs, job.steps_per_epoch) if verbose else None
    _train_epochs(job, epoch_end, [callback for callback in (best, progress) if callback is not None])
    if best is not None:
        best.restore()
    return _outcome(job, epoch_end, interrupted=False)


def _outcome(job: Job, epoch_end: EpochEnd, interrupted: bool) -> Fit:
    refuse_diverged(job.classifier.training_model)
    fresh = epoch_end.scored_step == epoch_end.steps and not job.config.early_stopping_patience
    return Fit(epoch_end.logits if fresh else None, epoch_end.steps, epoch_end.seconds, epoch_end.history, interrupted)


def _prepare(job: Job) -> EpochEnd:
    """Compiles the model, and makes what scores it after each epoch."""
    compile_classifier(job.classifier, job.config, job.config.epochs * job.steps_per_epoch, job.balanced.weights)
    valid = job.splits.valid
    valid_targets = None if valid is None else job.splits.task.targets(valid.labels)
    history_file = None if job.directory is None else job.directory / "history.csv"
    return EpochEnd(
        job.splits.task, _epoch_scorer(job.classifier, job.scorer), job.tokens.get("valid"), valid_targets, history_file
    )


def _epoch_scorer(classifier: Classifier, scorer: Scorer) -> Scorer | FrozenScorer:
    """What scores the validation rows after each epoch."""
    if classifier.vector_model is None:
        return scorer
    inputs = classifier.token_model.inputs
    exact = tf_keras.Model(inputs, classifier.token_model.get_layer("text_vectors").output)
    vectors = Scorer(lambda ids: exact(ids, training=False), exact.output_shape[-1])
    return FrozenScorer(vectors, lambda rows: classifier.training_model(rows, training=False))


def _vectors(classifier: Classifier, tokens: Tokens) -> np.ndarray | None:
    """What a frozen encoder makes of the training rows, once for all epochs, float32 [N, hidden]; None for others."""
    model = classifier.vector_model
    if model is None:
        return None
    scorer = Scorer(lambda ids: model(ids, training=False), model.output_shape[-1], classifier.encoder.graph_precision)
    with tqdm(total=len(tokens), desc="Encoding, once for all epochs", unit=" rows", delay=_SHOWN_AFTER) as bar:
        return scorer.logits(tokens, bar.update)


def _train_epochs(job: Job, epoch_end: EpochEnd, callbacks: list[Any]) -> None:
    """Trains the epochs that are left."""
    config, model, steps, first = (
        job.config,
        job.classifier.training_model,
        job.steps_per_epoch,
        len(epoch_end.history),
    )
    if _is_over(config, epoch_end.history):
        return
    balanced, tokens = job.balanced, job.tokens["train"]
    started = time.monotonic()
    vectors = _vectors(job.classifier, tokens)
    epoch_end.seconds += time.monotonic() - started
    batches = train_batches(
        tokens,
        balanced.targets,
        job.rows_per_step,
        config.seed,
        balanced.draws,
        first,
        balanced.row_weights,
        job.length_step,
        vectors,
    ).take(steps * (config.epochs - first))  # else a thread would prepare batches for ever
    with runtime.graph_precision(job.classifier.encoder.graph_precision):
        model.fit(
            batches,
            steps_per_epoch=steps,
            initial_epoch=first,
            epochs=config.epochs,
            verbose=0,
            callbacks=[epoch_end, _Stopping(config, epoch_end), *callbacks],
        )


class _Stopping(tf_keras.callbacks.Callback):
    """Early stopping."""

    def __init__(self, config: Config, epoch_end: EpochEnd) -> None:
        super().__init__()
        self._config, self._epoch_end = config, epoch_end

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.model.stop_training = _is_over(self._config, self._epoch_end.history)


def _is_over(config: Config, history: list[dict[str, int | float]]) -> bool:
    """Whether all epochs are done, or `monitor` has not become better for `early_stopping_patience` of them."""
    if len(history) == config.epochs:
        return True
    patience = config.early_stopping_patience
    return bool(patience and history) and len(history) - best_epoch(history, config.monitor) >= patience


def refuse_other_rows(config: Config, state: TrainingState, splits: Splits) -> None:
    """Refuses to go on with other rows than those that the training began with.

    Raises:
        DataError: one line that names the table.
    """
    for name, part in splits.parts.items():
        if part.fingerprint() != state.fingerprints.get(name):
            raise DataError(
                f"{part.source}: its {name} rows are not those that {config.resume} began with: restore the table, or train "
                "anew without resume"
            )


def refuse_wrong_monitor(config: Config, splits: Splits) -> None:
    """Refuses a `monitor` that these rows do not have.

    Raises:
        ConfigError: one line with the one to use.
    """
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


def disk_needed(config: Config, classifier: Classifier) -> int:
    """Bytes that the weights of a training take on the disk at most, beside what it goes on from."""
    model = classifier.training_model
    weights = 4 * model.count_params()
    slots = 2 * 4 * sum(variable.shape.num_elements() for variable in model.trainable_variables)
    checkpoints = weights + slots + (weights if config.early_stopping_patience else 0)
    return checkpoints if config.resume else 2 * checkpoints  # new ones are written before the earlier ones are removed
