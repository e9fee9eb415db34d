"""The published recipe for BERT from TF-Hub with tf.data, as its users type it, on current packages.

Each row goes by itself through Model Garden's `FullTokenizer` and `convert_single_example` inside a `tf.py_function`, padded
to 128 tokens; the encoder is a `hub.KerasLayer` in float32.
"""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

import logging
import os
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from official.nlp.data import classifier_data_lib
from official.nlp.tools import tokenization

from data import INPUT_NAMES

MAX_SEQ_LENGTH = 128
BATCH_SIZE = 32
LEARNING_RATE = 2e-5
_SHUFFLED = 1000  # rows in the buffer that the next one is drawn from
_VOCABULARY = os.path.join("assets", "vocab.txt")


def load_encoder(path: str) -> tuple[hub.KerasLayer, tokenization.FullTokenizer]:
    """The encoder of a SavedModel, and the tokenizer of the vocabulary inside it."""
    layer = hub.KerasLayer(path, trainable=True)
    asset = layer.resolved_object.vocab_file.asset_path.numpy()
    return layer, tokenization.FullTokenizer(asset, bool(layer.resolved_object.do_lower_case.numpy()))


def make_dataset(
    texts: list[str], labels: np.ndarray, tokenizer: tokenization.FullTokenizer, training: bool
) -> tf.data.Dataset:
    """Batches of 32 rows, `(inputs, label)`, each input int32 [32, 128]; in training shuffled and without what is left over."""
    logging.getLogger("absl").setLevel(logging.WARNING)  # the first rows are logged, many times
    label_list = sorted({int(label) for label in labels})

    def to_feature(text: tf.Tensor, label: tf.Tensor) -> list[Any]:
        example = classifier_data_lib.InputExample(
            guid=None, text_a=text.numpy().decode(), text_b=None, label=label.numpy()
        )
        feature = classifier_data_lib.convert_single_example(0, example, label_list, MAX_SEQ_LENGTH, tokenizer)
        return [feature.input_ids, feature.input_mask, feature.segment_ids, feature.label_id]

    def to_feature_map(text: tf.Tensor, label: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        *inputs, label_id = tf.py_function(to_feature, inp=[text, label], Tout=[tf.int32] * 4)
        for tensor in inputs:
            tensor.set_shape([MAX_SEQ_LENGTH])
        label_id.set_shape([])
        return dict(zip(INPUT_NAMES, inputs, strict=True)), label_id

    with tf.device("/cpu:0"):
        rows = tf.data.Dataset.from_tensor_slices((texts, labels)).map(
            to_feature_map, num_parallel_calls=tf.data.AUTOTUNE
        )
        if training:
            rows = rows.shuffle(_SHUFFLED)
        return rows.batch(BATCH_SIZE, drop_remainder=training).prefetch(tf.data.AUTOTUNE)


def build_model(encoder: hub.KerasLayer, num_labels: int) -> tf_keras.Model:
    """The classifier, compiled: a sigmoid for two labels, else a softmax."""
    inputs = {name: tf_keras.layers.Input((MAX_SEQ_LENGTH,), dtype=tf.int32, name=name) for name in INPUT_NAMES}
    dropped = tf_keras.layers.Dropout(0.5)(encoder(inputs)["pooled_output"])
    if num_labels == 2:
        outputs = tf_keras.layers.Dense(1, activation="sigmoid")(dropped)
        loss, metrics = tf_keras.losses.BinaryCrossentropy(), _binary_metrics()
    else:
        outputs = tf_keras.layers.Dense(num_labels, activation="softmax")(dropped)
        loss, metrics = tf_keras.losses.SparseCategoricalCrossentropy(), ["accuracy"]
    model = tf_keras.Model(inputs, outputs)
    model.compile(optimizer=tf_keras.optimizers.Adam(LEARNING_RATE), loss=loss, metrics=metrics)
    return model


def _binary_metrics() -> list[Any]:
    metrics = tf_keras.metrics
    return [metrics.BinaryAccuracy(), metrics.PrecisionAtRecall(0.5), metrics.Precision(), metrics.Recall()]
