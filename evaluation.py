"""Scores: probabilities for examples, in their order, and the metrics of them."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss

from data import Tokens, score_batches
from model import Classifier
from tables import PREDICTION_COLUMNS, Examples

_SCORE_BATCH = 64


class Scorer:
    """Scores tokenised examples with a classifier, in float32, as the exported model will."""

    def __init__(self, classifier: Classifier) -> None:
        model = classifier.token_model
        self._num_labels = len(classifier.labels)
        self._run = tf.function(
            lambda inputs: classifier.probabilities(model(inputs, training=False)), reduce_retracing=True
        )

    def probabilities(self, tokens: Tokens) -> np.ndarray:
        """Probabilities in the order of the tokens, float32 [N, K]."""
        result = np.empty((len(tokens), self._num_labels), dtype=np.float32)
        with runtime.graph_precision("float32"):
            for rows, inputs in score_batches(tokens, _SCORE_BATCH):
                result[rows.numpy()] = self._run(inputs).numpy()
        return result


def metrics(label_ids: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    """Metrics of probabilities, float32 [N, K], against label positions, int [N].

    Binary tasks (K = 2) have `f1` and `average_precision` of the positive class, the last label; others have the macro
    average of the classes' average precisions, over the classes that occur.
    """
    num_labels = probabilities.shape[1]
    predicted = decide(probabilities, threshold)
    exact = probabilities.astype(np.float64)
    scores = {
        "loss": log_loss(label_ids, exact / exact.sum(axis=1, keepdims=True), labels=range(num_labels)),
        "accuracy": accuracy_score(label_ids, predicted),
        "macro_f1": f1_score(label_ids, predicted, labels=range(num_labels), average="macro", zero_division=0.0),
    }
    if num_labels == 2:
        scores["f1"] = f1_score(label_ids, predicted, pos_label=1, zero_division=0.0)
        if label_ids.any():  # undefined without a positive row
            scores["average_precision"] = average_precision_score(label_ids, probabilities[:, 1])
    else:
        present = np.unique(label_ids)
        scores["average_precision"] = average_precision_score(
            np.eye(num_labels)[label_ids][:, present], probabilities[:, present], average="macro"
        )
    return {name: float(value) for name, value in scores.items()}


def decide(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Positions of the predicted labels, int64 [N]: by `threshold` on the positive class, or the likeliest of more than two."""
    if probabilities.shape[1] == 2:
        return (probabilities[:, 1] >= threshold).astype(np.int64)
    return probabilities.argmax(axis=1)


def predictions_table(
    examples: Examples, labels: list[str], probabilities: np.ndarray, threshold: float
) -> pd.DataFrame:
    """The examples' own columns, untouched and in order, beside the prediction columns."""
    chosen = decide(probabilities, threshold)
    columns: dict[str, Any] = {
        PREDICTION_COLUMNS[0]: np.array(labels)[chosen],
        PREDICTION_COLUMNS[1]: probabilities[np.arange(len(chosen)), chosen],
        **{f"probability_{label}": probabilities[:, i] for i, label in enumerate(labels)},
    }
    return pd.concat([examples.frame.reset_index(drop=True), pd.DataFrame(columns)], axis=1)
