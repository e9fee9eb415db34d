"""Scores: probabilities for examples, in their order, and the metrics of them."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import csv
import json
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
    log_loss,
)

from data import INPUT_NAMES, Tokens, score_batches
from examples import PREDICTION_COLUMNS, Examples
from model import Classifier
from tasks import Task

THRESHOLD = 0.5
_SCORE_BATCH = 64


class Scorer:
    """Scores tokenised examples with a classifier, in float32, as the exported model will."""

    def __init__(self, classifier: Classifier) -> None:
        model = classifier.token_model
        self.task = classifier.task
        self._run = tf.function(
            lambda inputs: classifier.probabilities(model(inputs, training=False)),
            input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in INPUT_NAMES}],
        )

    def probabilities(self, tokens: Tokens) -> np.ndarray:
        """Probabilities in the order of the tokens, float32 [N, K]."""
        result = np.empty((len(tokens), len(self.task.labels)), dtype=np.float32)
        with runtime.graph_precision("float32"):
            for rows, inputs in score_batches(tokens, _SCORE_BATCH):
                result[rows.numpy()] = self._run(inputs).numpy()
        return result


def metrics(task: Task, targets: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    """Metrics of probabilities, float32 [N, K], against targets as `Task.targets` makes them, all by scikit-learn.

    `average_precision` is that of the positive class in binary tasks, else the mean over the labels that occur. Multi-label
    tasks: `loss` is the mean over rows and labels, `accuracy` the share of rows whose labels are all right, and
    `label_ranking_average_precision` the mean over the rows that have a label. A label that does not occur counts as 0 in
    `macro_f1`, as scikit-learn has it.
    """
    predicted = decide(task, probabilities, threshold)
    scores = {
        "loss": _log_loss(task, targets, probabilities.astype(np.float64)),
        "accuracy": accuracy_score(targets, predicted),
        "macro_f1": f1_score(targets, predicted, labels=range(len(task.labels)), average="macro", zero_division=0.0),
    }
    indicators = task.indicators(targets)
    present = indicators.sum(axis=0) > 0  # average precision is undefined without a positive row
    if task.kind == "binary":
        scores["f1"] = f1_score(targets, predicted, pos_label=1, zero_division=0.0)
        if present[1]:
            scores["average_precision"] = average_precision_score(targets, probabilities[:, 1])
        return {name: float(value) for name, value in scores.items()}
    if present.any():
        scores["average_precision"] = average_precision_score(
            indicators[:, present], probabilities[:, present], average="macro"
        )
    if task.kind == "multilabel":
        scores["micro_f1"] = f1_score(targets, predicted, average="micro", zero_division=0.0)
        if (labelled := targets.any(axis=1)).any():
            scores["label_ranking_average_precision"] = label_ranking_average_precision_score(
                targets[labelled], probabilities[labelled]
            )
    return {name: float(value) for name, value in scores.items()}


def _log_loss(task: Task, targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean cross-entropy: the training's loss without weights."""
    if task.kind == "multilabel":
        pairs = np.stack([1 - probabilities.ravel(), probabilities.ravel()], axis=1)
        return float(log_loss(targets.ravel(), pairs, labels=[0, 1]))
    normalized = probabilities / probabilities.sum(axis=1, keepdims=True)
    return float(log_loss(targets, normalized, labels=range(len(task.labels))))


def decide(task: Task, probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """What is predicted, in the form of targets: by `threshold` on the positive class or on each of several labels, or the
    likeliest class of a multi-class task; int64 [N], or 0 and 1, float32 [N, K]."""
    if task.kind == "multilabel":
        return (probabilities >= threshold).astype(np.float32)
    if task.kind == "binary":
        return (probabilities[:, 1] >= threshold).astype(np.int64)
    return probabilities.argmax(axis=1)


def predictions_table(examples: Examples, task: Task, probabilities: np.ndarray, threshold: float) -> pd.DataFrame:
    """The examples' own columns, untouched and in order, beside the prediction columns: the label (of a multi-label task
    all labels, joined by its separator), its probability (of the likeliest label), and the probability of each label."""
    chosen = decide(task, probabilities, threshold)
    names = np.array(task.labels)
    if task.kind == "multilabel":
        predicted = [task.separator.join(names[row > 0]) for row in chosen]
        probability = probabilities.max(axis=1)
    else:
        predicted = names[chosen].tolist()
        probability = probabilities[np.arange(len(chosen)), chosen]
    columns: dict[str, Any] = {
        PREDICTION_COLUMNS[0]: predicted,
        PREDICTION_COLUMNS[1]: probability,
        **{f"probability_{label}": probabilities[:, i] for i, label in enumerate(task.labels)},
    }
    return pd.concat([examples.frame.reset_index(drop=True), pd.DataFrame(columns)], axis=1)


def as_csv(table: pd.DataFrame) -> str:
    """A table as CSV. Lists are written as JSON; strings are quoted, because a lone carriage return in a text would else be
    read back as the end of a row."""

    def cell(value: Any) -> Any:
        return json.dumps(list(value), ensure_ascii=False) if isinstance(value, list | np.ndarray) else value

    return table.map(cell).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
