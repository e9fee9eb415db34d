"""The loss of all three tasks, and the accuracy that goes with it, from logits."""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tasks import Kind


class WeightedCrossEntropy(tf_keras.losses.Loss):
    """Cross-entropy from logits, with weights of labels.

    Targets are label positions, int [batch], or 0 and 1, float [batch, K], for multi-label tasks; logits are float32
    [batch, 1] for binary tasks, else [batch, K]. Every row gives one number: multi-label tasks average over the K labels.

    Args:
        kind: the task.
        weights: weights of the labels, float32 [K], as `imbalance.label_weights` makes them.
    """

    def __init__(self, kind: Kind, weights: np.ndarray | None = None) -> None:
        super().__init__(name="loss")
        self._kind, self._weights = kind, weights

    def call(self, targets: Any, logits: tf.Tensor) -> tf.Tensor:
        if self._kind == "multiclass":
            ids = tf.reshape(targets, [-1])
            entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(ids, logits)
            return entropy if self._weights is None else entropy * tf.gather(self._weights, ids)
        targets = tf.reshape(tf.cast(targets, logits.dtype), tf.shape(logits))
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
        if self._weights is not None:
            negative, positive = self._weights if self._kind == "binary" else (1.0, self._weights)
            entropy *= negative + (positive - negative) * targets
        return tf.reduce_mean(entropy, axis=-1)


def exact_match(kind: Kind) -> tf_keras.metrics.Metric:
    """Accuracy from logits: the share of rows whose labels are all right, by 0.5 or by the likeliest of several."""

    def matches(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        if kind == "multiclass":
            chosen = tf.argmax(logits, axis=-1, output_type=tf.int64)
            return tf.reshape(tf.cast(targets, tf.int64), [-1]) == chosen
        right = (tf.reshape(targets, tf.shape(logits)) > 0) == (logits > 0)
        return tf.reduce_all(right, axis=-1) if kind == "multilabel" else tf.reshape(right, [-1])

    return tf_keras.metrics.MeanMetricWrapper(matches, name="accuracy")
