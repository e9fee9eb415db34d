"""The model that is shipped: texts in, labels and probabilities out, with TensorFlow and tensorflow-text alone."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import os
import shutil

import tensorflow as tf

from model import Classifier
from spec import write_spec
from tasks import Task


def export_classifier(classifier: Classifier, directory: str, threshold: float) -> None:
    """Writes a SavedModel that needs only TensorFlow and tensorflow-text: `serving_default` takes `text`, string [N] (and
    `text_pair`, string [N], if it was trained on pairs), and gives

    - `label`, string [N]: in multi-label tasks all that reach the threshold, joined by the separator; "" for none;
    - `probability`, float32 [N]: of that label; in multi-label tasks of the likeliest one;
    - `probabilities`, float32 [N, K], in the order of the loaded model's `labels`.

    Written under a temporary name and renamed, so that `directory` is whole or absent.
    """
    module = tf.Module()
    module.weights = classifier.text_model.variables
    module.preprocessor = classifier.preprocessor  # vocabulary tables and their asset files
    with tf.device("/cpu:0"):
        module.labels = tf.Variable(classifier.task.labels, trainable=False, name="labels")
    module.threshold = tf.Variable(threshold, trainable=False, name="threshold")
    names = [tensor.name for tensor in classifier.text_model.inputs]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=name) for name in names])
    def serve(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = classifier.probabilities(classifier.text_model(list(texts), training=False))  # (batch, K)
        label, probability = _decide(classifier.task, probabilities, module.labels, module.threshold)
        return {"label": label, "probability": probability, "probabilities": probabilities}

    spec = classifier.encoder.spec
    if spec is None:  # so that another training can go on from it
        module.encoder = classifier.encoder.layer.resolved_object
    temporary = f"{directory}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    with runtime.quiet():
        tf.saved_model.save(module, temporary, signatures={"serving_default": serve})
    if spec is not None:
        write_spec(temporary, spec)
    os.rename(temporary, directory)


def _decide(
    task: Task, probabilities: tf.Tensor, labels: tf.Tensor, threshold: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """`evaluation.decide` in the graph: the label, string [batch], and its probability, float32 [batch]."""
    if task.kind == "multilabel":
        rows_of_labels = tf.broadcast_to(labels, tf.shape(probabilities))
        chosen = tf.ragged.boolean_mask(rows_of_labels, probabilities >= threshold)
        joined = tf.strings.reduce_join(chosen, axis=-1, separator=task.separator)
        return joined, tf.reduce_max(probabilities, axis=-1)
    if task.kind == "binary":
        place = tf.cast(probabilities[:, 1] >= threshold, tf.int32)
    else:
        place = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
    return tf.gather(labels, place), tf.gather(probabilities, place, axis=1, batch_dims=1)
