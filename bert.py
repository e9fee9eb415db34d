"""BERT in Keras: Model Garden's BertEncoder from an `EncoderSpec`, into TF-Hub's format, and out of it again ("opened").

A hub encoder's graph is frozen at float32, with its own dropout, all layers trainable or none. Opened, its variables live
in Keras layers: true mixed precision, frozen or slower lower layers, other dropout, a last layer for [CLS] alone.
"""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from google.protobuf.message import DecodeError
from official.nlp.modeling import networks
from tensorflow.core.protobuf import trackable_object_graph_pb2

from cache import build_once, hash_saved_model
from config import DataError
from preprocessor import save_keras, write_vocab
from spec import EncoderSpec, SentenceVector, Tokenization, full_tokenizer, read_spec, write_spec

_EMBEDDING_LAYERS = (
    "word_embeddings",
    "position_embedding",
    "type_embeddings",
    "embeddings/layer_norm",
    "embedding_projection",
)
TOLERANCE = 1e-5  # largest difference of an opened encoder's outputs from the hub's
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_BUILD = 1  # raise it when what is proven of hub encoders changes


@tf_keras.utils.register_keras_serializable("hubtune")
def exact_gelu(x: tf.Tensor) -> tf.Tensor:
    """The GELU that BERT checkpoints were trained with, x * Phi(x); Model Garden's "gelu" is its tanh approximation.

    By erf, which on a CPU takes half the time of the erfc inside `tf.nn.gelu`.
    """
    return 0.5 * x * (1.0 + tf.math.erf(x * math.sqrt(0.5)))


@tf_keras.utils.register_keras_serializable("hubtune")
def tanh_gelu(x: tf.Tensor) -> tf.Tensor:
    """GELU's tanh approximation (Hendrycks and Gimpel, arXiv:1606.08415)."""
    return tf.nn.gelu(x, approximate=True)


ACTIVATIONS = {"gelu": exact_gelu, "gelu_tanh": tanh_gelu, "relu": tf.nn.relu, "swish": tf.nn.silu}


class SentencePooling(tf_keras.layers.Layer):
    """Token vectors [batch, seq, hidden] and mask [batch, seq] -> one vector per text, as sentence-transformers makes it."""

    def __init__(self, settings: SentenceVector) -> None:
        super().__init__(name="sentence_vector", dtype="float32")
        self._settings = settings
        self._dense = [
            tf_keras.layers.Dense(dense.units, dense.activation, dense.bias, name=f"dense_{number}")
            for number, dense in enumerate(settings.dense)
        ]

    def call(self, sequence: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        real = tf.cast(mask, sequence.dtype)[:, :, None]
        count = tf.maximum(tf.reduce_sum(real, axis=1), 1e-9)
        total = tf.reduce_sum(sequence * real, axis=1)
        pooled = {
            "cls": sequence[:, 0],
            "max": tf.reduce_max(tf.where(real > 0, sequence, -1e9), axis=1),
            "mean": total / count,
            "mean_sqrt_len": total / tf.sqrt(count),
        }
        vector = tf.concat([pooled[name] for name in self._settings.poolings], axis=-1)
        for dense in self._dense:
            vector = dense(vector)
        return (
            vector / tf.maximum(tf.norm(vector, axis=-1, keepdims=True), 1e-12) if self._settings.normalize else vector
        )


def build_bert(spec: EncoderSpec, cls_only: bool = False, dropout: float | None = None) -> tf_keras.Model:
    """Builds the encoder that `spec` describes, with fresh weights.

    Takes the inputs of TF-Hub's BERT encoders, int32 [batch, seq], and gives their outputs: `sequence_output`
    [batch, seq, hidden], `pooled_output` [batch, hidden], `encoder_outputs` (one per layer), `default`.

    Args:
        cls_only: the last layer computes the first position alone: `sequence_output` is [batch, 1, hidden], and there is
            no sentence vector.
        dropout: rate of hidden and attention dropout instead of the checkpoint's own.
    """
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy("float32")  # whatever the program has set for its own layers
    try:
        body = _body(spec, cls_only, dropout)
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    inputs, outputs = {tensor.name: tensor for tensor in body.inputs}, dict(body.output)
    sequence = outputs["sequence_output"]
    if not spec.pooler:
        outputs["pooled_output"] = sequence[:, 0]
    if spec.sentence is None:
        outputs["default"] = outputs["pooled_output"]
    elif not cls_only:
        outputs["default"] = SentencePooling(spec.sentence)(sequence, mask=inputs["input_mask"])
    model = tf_keras.Model(inputs, outputs, name="bert")
    if not spec.segments:
        model.get_layer("type_embeddings").trainable = False
    return model


def _body(spec: EncoderSpec, cls_only: bool, dropout: float | None) -> networks.BertEncoder:
    body = networks.BertEncoder(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        max_sequence_length=spec.max_positions,
        type_vocab_size=spec.type_vocab_size,
        inner_dim=spec.intermediate_size,
        inner_activation=ACTIVATIONS[spec.activation],
        output_dropout=spec.hidden_dropout if dropout is None else dropout,
        attention_dropout=spec.attention_dropout if dropout is None else dropout,
        output_range=1 if cls_only else None,
        embedding_width=spec.embedding_size,
        dict_outputs=True,
    )
    for layer in body.submodules:
        if isinstance(layer, tf_keras.layers.LayerNormalization):
            layer.epsilon = spec.layer_norm_epsilon  # BertEncoder has no argument for it
    return body


def layer_number(variable_name: str) -> int | None:
    """Number of the transformer layer that a variable belongs to, from 0 at the bottom; None for all others."""
    found = re.match(r"transformer/layer_(\d+)/", variable_name)
    return int(found[1]) if found else None


def is_embedding(variable_name: str) -> bool:
    """Whether a variable belongs to the layers below the first transformer layer."""
    return variable_name.startswith(tuple(f"{name}/" for name in _EMBEDDING_LAYERS))


# In and out of TF-Hub's format


def assign(model: tf_keras.Model, weights: Iterable[tuple[str, np.ndarray]]) -> None:
    """Gives every variable its value by name.

    Raises:
        DataError: a variable has no value, or one of another size.
    """
    waiting = {variable.name.removesuffix(":0"): variable for variable in model.variables}
    for name, value in weights:
        variable = waiting.pop(name, None)
        if variable is None:
            continue
        if value.size != np.prod(variable.shape):
            raise DataError(f"the weight {name} has the shape {value.shape}, the encoder needs {tuple(variable.shape)}")
        variable.assign(value.reshape(variable.shape))
    if waiting:
        raise DataError(f"{len(waiting)} weights of the encoder are missing, such as {next(iter(waiting))}")


def export_bert(
    directory: str, spec: EncoderSpec, vocab: list[str] | None, weights: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes an encoder as a TF-Hub SavedModel with its `EncoderSpec` and, where it is known, its vocabulary.

    Raises:
        DataError: the weights are not those of `spec`.
        OSError: the directory cannot be written.
    """
    # Dropout's random stream is fixed when the graph is made; it must not hang on the first user's seed.
    runtime.set_seed(0)
    model = build_bert(spec)
    assign(model, weights)
    with tempfile.TemporaryDirectory() as temporary:
        if vocab and spec.tokenization:
            model.vocab_file = tf.saved_model.Asset(write_vocab(vocab, temporary))
            model.do_lower_case = tf.Variable(spec.tokenization.lower_case, trainable=False)
        save_keras(model, directory)
    write_spec(directory, spec)


class CannotOpen(Exception):
    """Why a hub encoder's variables cannot live in a BertEncoder."""


def stored_names(directory: str) -> set[str]:
    """Names of a SavedModel's variables, none where they are in TensorFlow 1's format.

    Raises:
        DataError: the files are missing or corrupt.
    """
    try:
        return set(_read_variables(directory, lambda reader, key: None))
    except CannotOpen:
        return set()


def stored_weights(directory: str) -> dict[str, np.ndarray]:
    """Every variable of a SavedModel by name, read from its files without loading its graph.

    Raises:
        CannotOpen: they are in TensorFlow 1's format.
        DataError: the files are missing or corrupt.
    """
    return _read_variables(directory, lambda reader, key: reader.get_tensor(key))


def _read_variables(directory: str, read: Callable[[Any, str], Any]) -> dict[str, Any]:
    try:
        reader = tf.train.load_checkpoint(os.path.join(directory, "variables", "variables"))
        if not reader.has_tensor(_OBJECT_GRAPH):
            raise CannotOpen("it is in TensorFlow 1's format")
        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        graph.ParseFromString(reader.get_tensor(_OBJECT_GRAPH))
        return {
            attribute.full_name: read(reader, attribute.checkpoint_key)
            for node in graph.nodes
            for attribute in node.attributes
        }
    except (tf.errors.OpError, ValueError, IndexError, RuntimeError, DecodeError) as error:
        raise DataError(
            f"{directory}: its variables are missing or corrupt ({' '.join(str(error).split())[:150]}): remove it, and get or "
            "build it again"
        ) from error


def open_encoder(directory: str) -> tuple[EncoderSpec, dict[str, np.ndarray]]:
    """Takes a hub encoder apart: what it is, and its weights.

    An encoder that came with its `EncoderSpec` is taken at its word. Of any other the outputs of a BertEncoder with the same
    weights are compared with the hub's own, once; the result is cached.

    Raises:
        CannotOpen: it is not a BERT, or its outputs cannot be had exactly.
        DataError: its files are corrupt.
    """
    weights = stored_weights(directory)
    spec = read_spec(directory)
    if spec is None:
        shape = _spec_by_shapes(directory, weights)
        proof = build_once(
            f"opened-{hash_saved_model(directory)}-{_BUILD}",
            lambda target: write_spec(target, _prove(directory, shape, weights)),
        )
        proven = read_spec(proof)
        assert proven is not None
        spec = proven.model_copy(update={"source": directory})
    return spec, weights


def _spec_by_shapes(directory: str, weights: dict[str, np.ndarray]) -> EncoderSpec:
    """What names and shapes of the variables tell; the activation is still a guess."""
    try:
        num_layers = 1 + max(number for number in map(layer_number, weights) if number is not None)
        hidden_size, num_heads, _ = weights["transformer/layer_0/self_attention/query/kernel"].shape
        vocab_size, embedding_size = weights["word_embeddings/embeddings"].shape
        spec = EncoderSpec(
            family="bert",
            source=directory,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            intermediate_size=weights["transformer/layer_0/intermediate/kernel"].shape[-1],
            embedding_size=embedding_size,
            max_positions=len(weights["position_embedding/embeddings"]),
            type_vocab_size=len(weights["type_embeddings/embeddings"]),
            activation="gelu",
            layer_norm_epsilon=1e-12,
            hidden_dropout=_exported_rate(directory, "output_dropout", "dropout_rate"),
            attention_dropout=_exported_rate(directory, "attention_dropout", "attention_dropout_rate"),
            pooler="pooler_transform/kernel" in weights,
            segments=True,
            tokenization=stored_tokenization(directory),
        )
    except (KeyError, ValueError) as error:
        raise CannotOpen("its variables are not those of a BERT") from error
    return spec


def _exported_rate(directory: str, *names: str) -> float:
    """A dropout rate as Keras noted it in the SavedModel, under one name or another."""
    for file in ("keras_metadata.pb", "saved_model.pb"):
        path = Path(directory, file)
        content = path.read_bytes() if path.is_file() else b""
        for name in names:
            found = re.search(rb'"%s": (0(?:\.\d+)?)[,}]' % name.encode(), content)
            if found:
                return float(found[1])
    print(
        f"note: {directory} does not say its {names[0]}: BERT's 0.1 is taken; encoder_dropout sets another", flush=True
    )
    return 0.1


def stored_tokenization(directory: str) -> Tokenization | None:
    """Tokenizer settings that a hub encoder carries: its `EncoderSpec`'s, else by its variable `do_lower_case`."""
    spec = read_spec(directory)
    if spec is not None:
        return spec.tokenization
    try:
        lower_case = bool(
            tf.train.load_variable(
                os.path.join(directory, "variables", "variables"), "do_lower_case/.ATTRIBUTES/VARIABLE_VALUE"
            )
        )
    except (tf.errors.OpError, KeyError, ValueError):
        return None
    return full_tokenizer(lower_case)


def _prove(directory: str, shape: EncoderSpec, weights: dict[str, np.ndarray]) -> EncoderSpec:
    """Finds the activation by which a BertEncoder gives the hub encoder's outputs."""
    differences = {}
    try:
        inputs, theirs = _probe(directory, shape)
        for activation in ACTIVATIONS:
            spec = shape.model_copy(update={"activation": activation})
            model = build_bert(spec)
            try:
                assign(model, weights.items())
            except DataError as error:
                raise CannotOpen(str(error)) from error
            differences[activation] = _difference(model, inputs, theirs)
            if differences[activation] <= TOLERANCE:
                return spec
    except (ValueError, TypeError, KeyError, AttributeError, OSError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:150]
        raise CannotOpen(f"it does not run as TF-Hub's BERT encoders do: {reason}") from error
    raise CannotOpen(f"a BertEncoder with its weights differs from it by {min(differences.values()):.1g}")


def largest_difference(directory: str, model: tf_keras.Model, spec: EncoderSpec) -> float:
    """Largest difference of an opened encoder's outputs from the hub encoder's, over random inputs of many lengths, as a
    share of the largest output where that is above 1. On the CPU, as GPUs round float32 products."""
    return _difference(model, *_probe(directory, spec))


def _probe(directory: str, spec: EncoderSpec) -> tuple[dict[str, tf.Tensor], dict[str, np.ndarray]]:
    """Random inputs of many lengths, and the hub encoder's outputs for them."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, min(spec.max_positions, 48) + 1, 16)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
    with tf.device("/cpu:0"):
        inputs = {
            "input_word_ids": tf.constant(random.integers(0, spec.vocab_size, mask.shape) * mask, tf.int32),
            "input_mask": tf.constant(mask),
            "input_type_ids": tf.constant(random.integers(0, spec.type_vocab_size, mask.shape) * mask, tf.int32),
        }
        outputs = hub.load(directory)(inputs, training=False)
    return inputs, {name: np.asarray(outputs[name]) for name in ("sequence_output", "pooled_output", "default")}


def _difference(model: tf_keras.Model, inputs: dict[str, tf.Tensor], theirs: dict[str, np.ndarray]) -> float:
    with tf.device("/cpu:0"):
        ours = tf.function(model)(inputs, training=False)
    differences = []
    for name, outputs in theirs.items():
        rows = inputs["input_mask"].numpy().astype(bool) if name == "sequence_output" else ...
        wanted, found = outputs[rows], np.asarray(ours[name])[rows]
        differences.append(float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max())))
    return max(differences)
