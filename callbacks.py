"""What happens around the training's steps: scoring after each epoch, history.csv, and a line of progress."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras

from config import HubtuneError
from data import Tokens
from decision import plain_decision
from metrics import HEADLINE, score
from run_directory import write_atomically
from scoring import Scorer
from tasks import Kind, Task


class EpochEnd(tf_keras.callbacks.Callback):
    """Adds the validation metrics to each epoch's logs, so that later callbacks see them, and keeps history.csv.

    Scoring is done here and not by Keras' own validation, because the metrics that matter need all rows at once.
    """

    def __init__(
        self, task: Task, scorer: Scorer, tokens: Tokens | None, targets: np.ndarray | None, history_file: Path
    ) -> None:
        super().__init__()
        self._decision, self._scorer = plain_decision(task), scorer
        self._tokens, self._targets, self._history_file = tokens, targets, history_file
        self.history: list[dict[str, float]] = []
        self.steps = self.scored_step = 0
        self.logits: np.ndarray | None = None  # of the validation rows, after `scored_step`
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
        refuse_diverged(self.model)
        if self._tokens is not None and self._targets is not None:
            self.logits = self._scorer.logits(self._tokens)
            self.scored_step = self.steps
            probabilities = self._decision.probabilities(self.logits)
            scores = score(self._decision.task, self._targets, probabilities, self._decision.decide(probabilities))
            logs.update({f"val_{name}": value for name, value in scores.items()})
        self.history.append({"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}})
        write_atomically(self._history_file, pd.DataFrame(self.history).to_csv(index=False))


class Progress(tf_keras.callbacks.Callback):
    """A line that moves on a terminal; in a log, a line at every tenth of an epoch."""

    def __init__(self, kind: Kind, epochs: int, steps: int) -> None:
        super().__init__()
        self._shown = {"loss", "accuracy", *(f"val_{name}" for name in HEADLINE[kind])}
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
            f"loss {logs['loss']:.4f}  accuracy {logs['accuracy']:.4f}  about {runtime.clock(left)} left"
        )
        if sys.stdout.isatty():
            print(f"\r\033[K{line}", end="", flush=True)
        elif (batch + 1) * 10 // self._steps > batch * 10 // self._steps:
            print(line, flush=True)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        end = "\r\033[K" if sys.stdout.isatty() else ""
        print(
            f"{end}epoch {epoch + 1}/{self._epochs}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in logs.items() if name in self._shown),
            flush=True,
        )


def refuse_diverged(model: tf_keras.Model) -> None:
    """Ends a training whose weights are lost.

    Raises:
        HubtuneError: a weight is not finite.
    """
    if not all(tf.reduce_all(tf.math.is_finite(weight)) for weight in model.trainable_variables):
        raise HubtuneError(
            "training diverged: the weights are no longer finite; lower learning_rate, or set precision to float32"
        )
