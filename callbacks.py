"""What happens around the training's steps: scoring after each epoch, history.csv, checkpoints, and a line of progress."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras

from config import Config, DataError, HubtuneError
from data import Tokens
from decision import plain_decision
from metrics import HEADLINE, score
from run_directory import LAST, STATE, TrainingState, flush_to_disk, write_atomically
from scoring import FrozenScorer, Scorer
from tasks import Kind, Task

_REFRESHED_AFTER = 0.2  # seconds


class EpochEnd(tf_keras.callbacks.Callback):
    """Adds the validation metrics to each epoch's logs, so that later callbacks see them, and keeps history.csv, if a file for
    it is named.

    Scoring is done here and not by Keras' own validation, because the metrics that matter need all rows at once.
    """

    _supports_tf_logs = True  # else Keras would wait for the numbers of every step before it starts the next

    def __init__(
        self,
        task: Task,
        scorer: Scorer | FrozenScorer,
        tokens: Tokens | None,
        targets: np.ndarray | None,
        history_file: Path | None,
    ) -> None:
        super().__init__()
        self._decision, self._scorer = plain_decision(task), scorer
        self._tokens, self._targets, self._history_file = tokens, targets, history_file
        self.history: list[dict[str, int | float]] = []
        self.steps = self.scored_step = 0
        self.logits: np.ndarray | None = None  # of the validation rows, after `scored_step`
        self.seconds = 0.0  # of training alone, scoring left out
        self._resumed = time.monotonic()

    def go_on(self, state: TrainingState, steps_per_epoch: int) -> None:
        """Counts what an earlier process has done."""
        self.history, self.seconds = list(state.history), state.seconds
        self.steps = len(self.history) * steps_per_epoch
        self._write_history()  # it may hold an epoch that the checkpoint does not

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._resumed = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self.steps += 1
        self._count_time()

    def _count_time(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._resumed
        self._resumed = now

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self._count_time()  # a GPU may have been busy until now
        refuse_diverged(self.model)
        if self._tokens is not None and self._targets is not None:
            self.logits = self._scorer.logits(self._tokens)
            self.scored_step = self.steps
            probabilities = self._decision.probabilities(self.logits)
            scores = score(self._decision.task, self._targets, probabilities, self._decision.decide(probabilities))
            logs.update({f"val_{name}": value for name, value in scores.items()})
        self.history.append({"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}})
        self._write_history()

    def _write_history(self) -> None:
        if self._history_file is not None:
            write_atomically(self._history_file, pd.DataFrame(self.history).to_csv(index=False))


def best_epoch(history: list[dict[str, int | float]], monitor: str) -> int:
    """The epoch, counted from 1, in which `monitor` was best; the first of equals."""
    values = [record[monitor] for record in history]
    return values.index(min(values) if monitor == "val_loss" else max(values)) + 1


class Checkpoints(tf_keras.callbacks.Callback):
    """Keeps what a training needs to go on after its last finished epoch, in checkpoints/last, and with early stopping the
    best weights so far, in checkpoints/best.

    Both are written under their epoch's number; then state.json, which names them, is moved into place; then the earlier
    ones are removed. So state.json and what it names belong together whenever the process ends.
    """

    def __init__(self, config: Config, run_directory: Path, epoch_end: EpochEnd, state: TrainingState) -> None:
        super().__init__()
        self._epoch_end, self._state = epoch_end, state
        self._monitor = config.monitor if config.early_stopping_patience else None
        self._state_file, self._last, self._best = (
            run_directory / part for part in (STATE, LAST, LAST.with_name("best"))
        )

    def restore(self, model: tf_keras.Model) -> None:
        """Puts weights and optimizer back to where the state has them.

        Raises:
            DataError: a checkpoint is missing, damaged, or that of another model.
        """
        _read(_everything(model), self._last / self._state.checkpoint)
        for name in self._best_names():
            if not (self._best / f"{name}.index").exists():
                raise DataError(f"{self._best}: {name}, the best weights so far, is missing; train anew")
        write_atomically(self._state_file, self._state.model_dump_json())

    def restore_best(self, model: tf_keras.Model) -> None:
        """Puts the weights back to those of the best epoch.

        Raises:
            DataError: its checkpoint cannot be read.
        """
        history = self._epoch_end.history
        best = best_epoch(history, str(self._monitor))
        _read(_weights(model), self._best / f"epoch-{best}")
        print(
            f"Ran {len(history)} epochs; {self._monitor} was best in epoch {best}, whose weights are kept", flush=True
        )

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        state = self._state.model_copy(
            update={"history": [*self._epoch_end.history], "seconds": self._epoch_end.seconds}
        )
        if self._monitor and best_epoch(state.history, self._monitor) == len(state.history):
            _write(_weights(self.model), self._best / state.checkpoint)
        try:
            _write(_everything(self.model), self._last / state.checkpoint)
            write_atomically(self._state_file, state.model_dump_json())
            self._state = state
        except OSError as error:
            reason = error.strerror or str(error).split("; ")[-1]  # TensorFlow's begin with the file
            print(
                f"{_over_progress()}{self._last / state.checkpoint}: cannot be written ({reason}): the training goes on, but "
                "could not be resumed from here",
                flush=True,
            )
        _keep(self._last, {"state", self._state.checkpoint})
        _keep(self._best, self._best_names())

    def _best_names(self) -> set[str]:
        """The best checkpoints by the state on disk and by the history, which differ where the disk is full."""
        histories = [history for history in (self._state.history, self._epoch_end.history) if history and self._monitor]
        return {f"epoch-{best_epoch(history, str(self._monitor))}" for history in histories}


def _weights(model: tf_keras.Model) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(weights=model.variables)


def _everything(model: tf_keras.Model) -> tf.train.Checkpoint:
    """Weights, optimizer slots and steps, loss scale."""
    return tf.train.Checkpoint(weights=model.variables, optimizer=model.optimizer)


def _write(checkpoint: tf.train.Checkpoint, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with runtime.saving():
        checkpoint.write(str(path))
    for file in path.parent.glob(f"{path.name}.*"):
        flush_to_disk(file)


def _read(checkpoint: tf.train.Checkpoint, path: Path) -> None:
    try:
        with runtime.quiet():
            checkpoint.read(str(path)).assert_consumed()
    except (tf.errors.OpError, AssertionError, LookupError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{path}: is damaged, or of another model ({' '.join(str(error).split())[:150]}); train anew"
        ) from error


def _keep(folder: Path, names: set[str]) -> None:
    """Removes all other files from a folder; a checkpoint's are its name and something after a dot."""
    for path in folder.glob("*"):
        if path.name.split(".")[0] not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _over_progress() -> str:
    """What a line begins with that takes the place of the moving one."""
    return "\r\033[K" if sys.stdout.isatty() else ""


class Progress(tf_keras.callbacks.Callback):
    """A line that moves on a terminal; in a log, a line at every tenth of an epoch."""

    _supports_tf_logs = True  # it looks at the numbers of few steps

    def __init__(self, kind: Kind, epochs: int, steps: int) -> None:
        super().__init__()
        self._shown = {"loss", "accuracy", *(f"val_{name}" for name in HEADLINE[kind])}
        self._epochs, self._steps, self._epoch = epochs, steps, 0
        self._started, self._first = 0.0, 0  # at the end of this process' first step, which builds the graph
        self._shown_at = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch
        if not self._first and sys.stdout.isatty():
            print("building the training step ...", end="", flush=True)

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        done = self._epoch * self._steps + batch + 1
        now = time.monotonic()
        if not self._first:
            self._started, self._first = now, done
        tenth = (batch + 1) * 10 // self._steps > batch * 10 // self._steps
        if not (now - self._shown_at >= _REFRESHED_AFTER if sys.stdout.isatty() else tenth):
            return
        self._shown_at = now
        line = (
            f"epoch {self._epoch + 1}/{self._epochs}  step {batch + 1:,}/{self._steps:,}  "
            f"loss {logs['loss']:.4f}  accuracy {logs['accuracy']:.4f}"
        )
        if done > self._first:
            left = (now - self._started) / (done - self._first) * (self._epochs * self._steps - done)
            line += f"  about {runtime.clock(left)} left"
        print(f"{_over_progress()}{line}", end="" if sys.stdout.isatty() else "\n", flush=True)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        print(
            f"{_over_progress()}epoch {epoch + 1}/{self._epochs}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in logs.items() if name in self._shown),
            flush=True,
        )


class BestWeights(tf_keras.callbacks.Callback):
    """Keeps the weights of the best epoch in memory."""

    def __init__(self, monitor: str, epoch_end: EpochEnd) -> None:
        super().__init__()
        self._monitor, self._epoch_end, self._weights = monitor, epoch_end, list[np.ndarray]()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        history = self._epoch_end.history
        if best_epoch(history, self._monitor) == len(history):
            self._weights = self.model.get_weights()

    def restore(self) -> None:
        """Puts the weights back to those of the best epoch."""
        self.model.set_weights(self._weights)


def refuse_diverged(model: tf_keras.Model) -> None:
    """Ends a training whose weights are lost.

    Raises:
        HubtuneError: a weight is not finite.
    """
    if not all(tf.reduce_all(tf.math.is_finite(weight)) for weight in model.trainable_variables):
        raise HubtuneError(
            "training diverged: the weights are no longer finite; lower learning_rate, or set precision to float32"
        )
