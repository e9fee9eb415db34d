"""The classifier: a TF-Hub preprocessor and encoder under a dense head; compiling it and exporting it.

Two Keras models share one encoder and one head: the token model, which is trained, takes ids made ahead of time; the
text model, which is shipped, takes strings and carries the preprocessor inside.
"""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import os
import shutil
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from tf_keras.layers import Dense, Dropout, Input, Layer

from config import Config, ConfigError, DataError
from data import INPUT_NAMES, pack
from encoders import EncoderPaths
from optimization import AdamW, WarmupLinearDecay

_HEAD_LAYERS = ("hidden", "logits")


class Preprocess(Layer):
    """Texts, string [batch] -> the encoder's inputs, int32 [batch, seq], padded to the longest text of the batch."""

    def __init__(self, preprocessor: hub.KerasLayer, max_seq_length: int) -> None:
        super().__init__(name="preprocess", trainable=False)
        self.preprocessor = preprocessor
        self._max_seq_length = max_seq_length

    def call(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        return pack(self.preprocessor.resolved_object, texts, self._max_seq_length)[0]


class Pooling(Layer):
    """The encoder's outputs -> one vector per text, float32 [batch, hidden]."""

    def __init__(self, kind: str) -> None:
        super().__init__(name="pooling")
        self._kind = kind

    def call(self, outputs: dict[str, tf.Tensor], mask: tf.Tensor) -> tf.Tensor:
        if self._kind == "pooled_output":
            return outputs["pooled_output"]
        sequence = outputs["sequence_output"]  # (batch, seq, hidden)
        if self._kind == "cls":
            return sequence[:, 0]
        real = tf.cast(mask, sequence.dtype)[:, :, None]
        return tf.reduce_sum(sequence * real, axis=1) / tf.reduce_sum(real, axis=1)


@dataclass(frozen=True)
class Classifier:
    """Both models give logits: float32 [batch, 1] for two labels, [batch, K] for more."""

    token_model: tf_keras.Model
    text_model: tf_keras.Model
    preprocessor: Any
    labels: list[str]

    def probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """Logits -> probabilities in the order of `labels`, float32 [batch, K]."""
        if len(self.labels) > 2:
            return tf.nn.softmax(logits)
        return tf.nn.sigmoid(tf.concat([-logits, logits], axis=-1))


def build_classifier(config: Config, paths: EncoderPaths, labels: list[str]) -> Classifier:
    """Assembles preprocessor, encoder and head.

    Raises:
        DataError: the SavedModels at `paths` are not a TF-Hub text encoder and preprocessor.
        ConfigError: max_seq_length is more than the encoder has positions for.
    """
    preprocessor = load_preprocessor(paths.preprocessor)
    encoder = _load_encoder(paths.encoder, config)
    _refuse_larger_vocabulary(preprocessor, encoder, paths)
    pooling = Pooling(config.pooling)
    head: list[Layer] = [Dense(config.hidden_units, activation="relu", name="hidden")] if config.hidden_units else []
    head += [Dropout(config.dropout, name="dropout"), Dense(1 if len(labels) == 2 else len(labels), name="logits")]

    def classify(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        hidden = pooling(encoder(inputs), mask=inputs["input_mask"])
        for layer in head:
            hidden = layer(hidden)
        return hidden

    token_inputs = {name: Input(shape=(None,), dtype=tf.int32, name=name) for name in INPUT_NAMES}
    text_input = Input(shape=(), dtype=tf.string, name="text")
    token_model = tf_keras.Model(token_inputs, classify(token_inputs), name="token_model")
    text_model = tf_keras.Model(
        text_input, classify(Preprocess(preprocessor, config.max_seq_length)(text_input)), name="text_model"
    )
    return Classifier(token_model, text_model, preprocessor.resolved_object, labels)


def load_preprocessor(path: str) -> hub.KerasLayer:
    """Loads a TF-Hub preprocessor as a Keras layer; its `resolved_object` has `tokenize` and `bert_pack_inputs`.

    Raises:
        DataError: the SavedModel has not these two parts.
    """
    layer = _load_layer(path, "preprocessor", trainable=False)
    for part in ("tokenize", "bert_pack_inputs"):
        if not hasattr(layer.resolved_object, part):
            raise DataError(f"preprocessor {path}: has no `{part}`; give a TF-Hub text preprocessor")
    return layer


def _load_layer(path: str, name: str, trainable: bool) -> hub.KerasLayer:
    try:
        return hub.KerasLayer(path, name=name, trainable=trainable)
    except (ValueError, OSError, tf.errors.OpError) as error:
        raise DataError(f"{name} {path}: cannot be loaded as a layer ({' '.join(str(error).split())[:200]})") from error


def _load_encoder(path: str, config: Config) -> hub.KerasLayer:
    encoder = _load_layer(path, "encoder", trainable=config.trainable)
    example = {name: tf.ones([1, 3], tf.int32) for name in INPUT_NAMES}
    wanted = "pooled_output" if config.pooling == "pooled_output" else "sequence_output"
    try:
        outputs = encoder(example)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"encoder {path}: does not take {', '.join(INPUT_NAMES)} as a dict; TF-Hub BERT encoders from version 3 on do"
        ) from error
    if not isinstance(outputs, dict) or wanted not in outputs:
        raise DataError(f"encoder {path}: gives no {wanted!r}, which pooling={config.pooling} needs")
    positions = _table_rows(encoder, "position_embedding")
    if positions is not None and config.max_seq_length > positions:
        raise ConfigError(
            f"max_seq_length={config.max_seq_length}: the encoder {path} has {positions} positions; set {positions} or less"
        )
    return encoder


def _table_rows(encoder: hub.KerasLayer, name: str) -> int | None:
    """Rows of the encoder's embedding table with `name` in its name, None where there is no such table."""
    return next((variable.shape[0] for variable in encoder.resolved_object.variables if name in variable.name), None)


def _refuse_larger_vocabulary(preprocessor: hub.KerasLayer, encoder: hub.KerasLayer, paths: EncoderPaths) -> None:
    """An id past the embedding table would be an error on a CPU and a zero vector on a GPU."""
    rows = _table_rows(encoder, "word_embeddings")
    tokens = int(preprocessor.resolved_object.tokenize.get_special_tokens_dict()["vocab_size"])
    if rows is not None and tokens > rows:
        raise DataError(
            f"preprocessor {paths.preprocessor} has {tokens:,} tokens, encoder {paths.encoder} only {rows:,}; name its own one"
        )


def compile_classifier(classifier: Classifier, config: Config, precision: str, total_steps: int) -> None:
    """Compiles the token model for `total_steps` of training: loss from logits, AdamW, accuracy."""
    schedule = WarmupLinearDecay(config.learning_rate, total_steps, round(config.warmup_ratio * total_steps))
    encoder_factor = (config.encoder_learning_rate or config.learning_rate) / config.learning_rate
    optimizer: Any = AdamW(
        schedule, config.weight_decay, rate_factor=lambda name: 1.0 if name.startswith(_HEAD_LAYERS) else encoder_factor
    )
    if precision == "float16":
        optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
    if len(classifier.labels) == 2:
        loss, accuracy = (
            tf_keras.losses.BinaryCrossentropy(from_logits=True),
            tf_keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0),
        )
    else:
        loss, accuracy = (
            tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            tf_keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        )
    classifier.token_model.compile(optimizer=optimizer, loss=loss, metrics=[accuracy])


def export_classifier(classifier: Classifier, directory: str, threshold: float) -> None:
    """Writes a SavedModel that needs only TensorFlow and tensorflow-text: `serving_default` takes `text`, string [N], and
    gives `label` string [N], `probability` of that label float32 [N], and `probabilities` float32 [N, K] in the order of
    the loaded model's `labels`.

    Written under a temporary name and renamed, so that `directory` is whole or absent.
    """
    module = tf.Module()
    module.weights = classifier.text_model.variables
    module.preprocessor = classifier.preprocessor  # vocabulary tables and their asset files
    with tf.device("/cpu:0"):
        module.labels = tf.Variable(classifier.labels, trainable=False, name="labels")
    module.threshold = tf.Variable(threshold, trainable=False, name="threshold")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(text: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = classifier.probabilities(classifier.text_model(text, training=False))  # (batch, K)
        if len(classifier.labels) == 2:
            chosen = tf.cast(probabilities[:, 1] >= module.threshold, tf.int32)
        else:
            chosen = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
        probability = tf.gather(probabilities, chosen, axis=1, batch_dims=1)
        return {"label": tf.gather(module.labels, chosen), "probability": probability, "probabilities": probabilities}

    temporary = f"{directory}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    with runtime.quiet():
        tf.saved_model.save(module, temporary, signatures={"serving_default": serve})
    os.rename(temporary, directory)
