"""The loss of all three tasks, and the accuracy that goes with it, from logits."""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from config import Config
from tasks import Kind

_FOCAL_GAMMA = 2.0  # the paper's choice


class ClassificationLoss(tf_keras.losses.Loss):
    """Cross-entropy, or focal loss (Lin et al., arXiv:1708.02002), with smoothed targets and weights of labels.

    Targets are label positions, int [batch], or 0 and 1, float [batch, K], for multi-label tasks; logits are float32
    [batch, 1] for binary tasks, else [batch, K]. Every row gives one number: multi-label tasks average over the K labels.

    Args:
        kind: the task.
        config: `loss` and `label_smoothing` are read.
        weights: weights of the labels, float32 [K], as `imbalance.label_weights` makes them.
    """

    def __init__(self, kind: Kind, config: Config, weights: np.ndarray | None = None) -> None:
        super().__init__(name="loss")
        self._kind = kind
        self._smoothing = config.label_smoothing
        self._gamma = _FOCAL_GAMMA if config.loss == "focal" else 0.0
        self._weights = weights

    def call(self, targets: Any, logits: tf.Tensor) -> tf.Tensor:
        if self._kind == "multiclass":
            return self._softmax(tf.reshape(targets, [-1]), logits)
        return self._sigmoid(tf.reshape(tf.cast(targets, logits.dtype), tf.shape(logits)), logits)

    def _softmax(self, ids: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        plain = entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(ids, logits)
        if self._smoothing:
            num_labels = logits.shape[-1]
            soft = tf.one_hot(ids, num_labels) * (1 - self._smoothing) + self._smoothing / num_labels
            entropy = tf.nn.softmax_cross_entropy_with_logits(soft, logits)
        weights = 1.0 if self._weights is None else tf.gather(self._weights, ids)
        return weights * self._focus(plain) * entropy

    def _sigmoid(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        plain = entropy = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
        if self._smoothing:
            soft = targets * (1 - self._smoothing) + self._smoothing / 2
            entropy = tf.nn.sigmoid_cross_entropy_with_logits(soft, logits)
        weights = tf.ones_like(logits)
        if self._weights is not None:
            negative, positive = self._weights if self._kind == "binary" else (1.0, self._weights)
            weights = negative + (positive - negative) * targets
        return tf.reduce_mean(weights * self._focus(plain) * entropy, axis=-1)

    def _focus(self, entropy: tf.Tensor) -> tf.Tensor:
        """(1 - p) ** gamma for the probability p that the model gives to what is true."""
        return (1 - tf.exp(-entropy)) ** self._gamma if self._gamma else 1.0


def exact_match(kind: Kind) -> tf_keras.metrics.Metric:
    """Accuracy from logits: the share of rows whose labels are all right, by 0.5 or by the likeliest of several."""

    def matches(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        if kind == "multiclass":
            chosen = tf.argmax(logits, axis=-1, output_type=tf.int64)
            return tf.reshape(tf.cast(targets, tf.int64), [-1]) == chosen
        right = (tf.reshape(targets, tf.shape(logits)) > 0) == (logits > 0)
        return tf.reduce_all(right, axis=-1) if kind == "multilabel" else tf.reshape(right, [-1])

    return tf_keras.metrics.MeanMetricWrapper(matches, name="accuracy")
