"""What a Keras model's outputs mean: probabilities or logits, by its last operation and its loss; and its targets."""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
import tensorflow as tf
import tf_keras


@dataclass(frozen=True)
class Head:
    """How a model's outputs [N, units] and K labels go together."""

    units: int
    sparse: bool  # the loss takes codes
    logits: bool  # the outputs become probabilities here
    sigmoids: bool  # each output stands by itself
    certain: bool  # the outputs are probabilities by the model's last operation, or logits by its loss
    threshold: float  # for one output

    def encode(self, codes: tf.Tensor) -> tf.Tensor:
        """Targets: 0.0 and 1.0 [N, 1] for one output; codes [N] for a sparse loss; else one-hot [N, K]."""
        if self.units == 1:
            return tf.cast(codes, tf_keras.backend.floatx())[:, None]
        return codes if self.sparse else tf.one_hot(codes, self.units, dtype=tf_keras.backend.floatx())

    def codes(self, outputs: np.ndarray) -> np.ndarray:
        """The label of each row, as its place among the classes."""
        return (outputs[:, 0] > self.threshold).astype(int) if self.units == 1 else outputs.argmax(axis=1)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Float64 [N, K], rows sum to 1. Sigmoids of several labels are divided by their sum, as one-versus-rest does."""
        outputs = outputs.astype(np.float64)
        if not self.certain and not self.are_probabilities(outputs):
            raise ValueError(
                "predict_proba needs outputs that are probabilities, and the model's are not: end it with a softmax or "
                "sigmoid, or use a cross-entropy loss with from_logits=True"
            )
        if self.units == 1:
            positive = scipy.special.expit(outputs) if self.logits else outputs
            return np.hstack([1 - positive, positive])
        if self.logits:
            return scipy.special.softmax(scipy.special.log_expit(outputs) if self.sigmoids else outputs, axis=1)
        outputs = np.maximum(outputs, np.finfo(np.float32).tiny)  # sigmoids may all be 0
        return outputs / outputs.sum(axis=1, keepdims=True)

    def are_probabilities(self, outputs: np.ndarray) -> bool:
        """Whether numbers look like probabilities, at the precision of bfloat16."""
        in_range = bool(np.all((outputs >= 0) & (outputs <= 1)))
        return in_range and (self.units == 1 or self.sigmoids or np.allclose(outputs.sum(axis=1), 1, atol=0.02))


_NEVER_PROBABILITIES = ("MatMul", "BiasAdd", "Relu", "Tanh")
_PARTS_AT_ZERO = ("hinge", "squaredhinge")  # losses that teach one output to part the labels there
_PARTS_AT_HALF = ("meansquarederror", "meanabsoluteerror", "meansquaredlogarithmicerror", "huber", "logcosh")


def read_head(model: tf_keras.Model, sample: Any, num_classes: int) -> Head:
    """Builds a compiled model by running it on some rows, and tells what its outputs are.

    Raises:
        ValueError: outputs, labels and loss do not go together.
    """
    outputs = model(sample, training=False)
    if tf.nest.is_nested(outputs) or outputs.shape.rank != 2:
        shapes = tf.nest.map_structure(lambda output: list(output.shape), outputs)
        raise ValueError(
            f"a classifier has one output of shape [rows, labels], and this model gives {shapes}: cut it to one"
        )
    units = outputs.shape[1]
    if units != num_classes and (units, num_classes) != (1, 2):
        one = ", or with 1 for two labels" if num_classes == 2 else ""
        raise ValueError(
            f"the model has {units} outputs and y has {num_classes} labels (classes): end it with {num_classes} outputs{one}"
        )
    loss, from_logits = _loss_of(model)
    operation = "" if model.run_eagerly else _last_operation(model, sample)
    if units == 1 and (operation == "Softmax" or "categorical" in loss):
        raise ValueError(
            "one output with a softmax or a categorical loss learns nothing: use a sigmoid with binary_crossentropy, or 2 outputs"
        )
    bounded = operation in ("Softmax", "Sigmoid")
    logits = from_logits and not bounded
    threshold = 0.0 if logits or (loss in _PARTS_AT_ZERO and not bounded) else 0.5
    sigmoids = operation == "Sigmoid" or (loss.startswith("binary") and not bounded)
    head = Head(units, "sparse" in loss, logits, sigmoids, bounded or logits, threshold)
    if not head.certain:
        _refuse_unclear(head, outputs.numpy(), loss, operation)
    return head


def _refuse_unclear(head: Head, outputs: np.ndarray, loss: str, operation: str) -> None:
    """Refuses outputs that the loss takes for probabilities and are not, or that nothing turns into labels."""
    if "crossentropy" in loss:
        if operation in _NEVER_PROBABILITIES or not head.are_probabilities(outputs):
            raise ValueError(
                "the model's outputs are no probabilities, but its cross-entropy takes them for such: end the model with a "
                "softmax or sigmoid, or give the loss from_logits=True"
            )
    elif head.units == 1 and loss not in (*_PARTS_AT_ZERO, *_PARTS_AT_HALF):
        raise ValueError(
            f"nothing tells where one output parts the labels under the loss {loss!r}: end the model with a sigmoid"
        )


def _loss_of(model: tf_keras.Model) -> tuple[str, bool]:
    """The loss that a model is compiled with, as in "binarycrossentropy", and whether it takes logits."""
    losses = [loss for loss in tf.nest.flatten(model.loss) if loss is not None]
    if len(losses) != 1:
        raise ValueError(f"the model is compiled with {len(losses)} losses: name one, as in compile(loss=...)")
    loss = tf_keras.losses.get(losses[0])
    if isinstance(loss, tf_keras.losses.Loss):
        from_logits = getattr(loss, "from_logits", loss.get_config().get("from_logits", False))
        return type(loss).__name__.lower(), bool(from_logits)
    function = getattr(loss, "func", loss)  # of a functools.partial
    name = getattr(function, "__name__", type(function).__name__)
    return name.replace("_", "").lower(), bool(getattr(loss, "keywords", {}).get("from_logits", False))


def _last_operation(model: tf_keras.Model, sample: Any) -> str:
    """The TensorFlow operation that makes the outputs, as in "Softmax": the graph shows it for any kind of model."""
    inputs = tf.nest.map_structure(lambda values: tf.TensorSpec((None, *values.shape[1:]), _type_of(values)), sample)
    graph = tf.function(lambda rows: model(rows, training=False)).get_concrete_function(inputs)
    operation = graph.structured_outputs.op
    while operation.type in ("Identity", "Cast", "Reshape", "Squeeze", "EnsureShape"):
        operation = operation.inputs[0].op
    return str(operation.type)


def _type_of(values: Any) -> tf.DType:
    return tf.string if values.dtype == object else tf.as_dtype(values.dtype)
