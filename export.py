"""The model that is shipped: texts in, labels and calibrated probabilities out, with TensorFlow and tensorflow-text alone."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import os
import shutil

import tensorflow as tf

from data import pack
from decision import Decision
from model import Classifier
from scoring import FORMAT, INPUT_SIGNATURE
from spec import write_spec
from tasks import Task


def export_classifier(classifier: Classifier, directory: str, decision: Decision, max_seq_length: int) -> None:
    """Writes a SavedModel that needs only TensorFlow and tensorflow-text: `serving_default` takes `text`, string [N] (and
    `text_pair`, string [N], if it was trained on pairs), and gives

    - `label`, string [N]: in multi-label tasks all that reach their thresholds, joined by the separator; "" for none;
    - `probability`, float32 [N]: of that label; in multi-label tasks of the likeliest one;
    - `probabilities`, float32 [N, K], in the order of the loaded model's `labels`.

    The loaded model's `logits` takes the encoder's inputs and `preprocessor` makes them, so that many texts can be scored
    by length; `temperature` and `threshold` are as in `Decision`. Written under a temporary name and renamed, so that
    `directory` is whole or absent; an earlier model there makes way when the new one is ready.
    """
    module = tf.Module()
    module.weights = classifier.token_model.variables
    module.preprocessor = classifier.preprocessor  # vocabulary tables and their asset files
    task = classifier.task
    names = [tensor.name for tensor in classifier.text_model.inputs]
    with tf.device("/cpu:0"):
        record = {
            "labels": task.labels,
            "kind": task.kind,
            "separator": task.separator,
            "inputs": names,
            "temperature": decision.temperature,
            "threshold": decision.threshold,
            "max_seq_length": max_seq_length,
            "format": FORMAT,
        }
        for name, value in record.items():
            setattr(module, name, tf.Variable(value, trainable=False, name=name))

    @tf.function(input_signature=INPUT_SIGNATURE)
    def logits(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        return classifier.token_model(inputs, training=False)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=name) for name in names])
    def serve(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs, _ = pack(classifier.preprocessor, list(texts), max_seq_length)
        probabilities = _probabilities(task, logits(inputs) / module.temperature)  # (batch, K)
        label, probability = _decide(task, probabilities, module.labels, module.threshold)
        return {"label": label, "probability": probability, "probabilities": probabilities}

    module.logits = logits
    spec = classifier.encoder.spec
    if spec is None:  # so that another training can go on from it
        module.encoder = classifier.encoder.layer.resolved_object
    temporary, earlier = f"{directory}.tmp", f"{directory}.old"
    shutil.rmtree(temporary, ignore_errors=True)
    with runtime.quiet():
        tf.saved_model.save(module, temporary, signatures={"serving_default": serve})
    if spec is not None:
        write_spec(temporary, spec)
    if os.path.exists(directory):
        shutil.rmtree(earlier, ignore_errors=True)
        os.rename(directory, earlier)
    os.rename(temporary, directory)
    shutil.rmtree(earlier, ignore_errors=True)


def _probabilities(task: Task, logits: tf.Tensor) -> tf.Tensor:
    """`Decision.probabilities` in the graph."""
    if task.kind == "multiclass":
        return tf.nn.softmax(logits)
    return tf.nn.sigmoid(logits if task.kind == "multilabel" else tf.concat([-logits, logits], axis=-1))


def _decide(
    task: Task, probabilities: tf.Tensor, labels: tf.Tensor, threshold: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """`Decision.decide` in the graph: the label, string [batch], and its probability, float32 [batch]."""
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
