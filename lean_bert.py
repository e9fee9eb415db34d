"""BERT's forward pass for features alone, in three quarters of the time of Model Garden's layers, with the same results."""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from bert import ACTIVATIONS, SentencePooling, assign
from spec import EncoderSpec


class States(NamedTuple):
    """What an encoder computes of ids; only what is used of it is in fact computed, as graphs are."""

    hidden: list[tf.Tensor | None]  # of each layer, [n, seq, hidden]; at 0 what goes into the first
    pooled_output: tf.Tensor | None
    default: tf.Tensor | None


class LeanBert:
    """The lower layers of a BERT, for features alone: what `build_bert` computes, in three quarters of its time.

    Tokens are the rows of one matrix, so that query, key and value are one product, and TensorFlow fuses bias and GELU into
    theirs. Products are computed in `precision`; what is added up from layer to layer, and normalised, is float32.
    With `first_only` the last layer computes the first position alone.
    """

    def __init__(
        self, spec: EncoderSpec, weights: dict[str, np.ndarray], precision: str, num_layers: int, first_only: bool
    ) -> None:
        self._spec = spec
        self._dtype = tf.as_dtype(precision)
        self._first_only = first_only
        self._activation = ACTIVATIONS[spec.activation]
        self._weights: dict[str, tf.Tensor] = {}
        for name, value in weights.items():
            if not name.startswith("transformer/"):
                self._weights[name] = tf.constant(value)
        self._layers = [self._layer(weights, f"transformer/layer_{number}/") for number in range(num_layers)]
        self._sentence = None
        if spec.sentence is not None and not first_only:
            self._sentence = SentencePooling(spec.sentence)
            self._sentence(tf.zeros([1, 1, spec.hidden_size]), mask=tf.ones([1, 1]))
            assign(self._sentence, weights.items())

    def _layer(self, weights: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
        width = self._spec.hidden_size
        attention = f"{prefix}self_attention/"
        parts = [weights[f"{attention}{part}/kernel"].reshape(width, width) for part in ("query", "key", "value")]
        biases = [weights[f"{attention}{part}/bias"].ravel() for part in ("query", "key", "value")]
        scale = (width // self._spec.num_heads) ** -0.5  # of the scores, taken into the query
        parts[0], biases[0] = parts[0] * scale, biases[0] * scale
        products = {
            "query_key_value": (np.concatenate(parts, axis=1), np.concatenate(biases)),
            "attention": tuple(weights[f"{attention}attention_output/{part}"] for part in ("kernel", "bias")),
            "intermediate": tuple(weights[f"{prefix}intermediate/{part}"] for part in ("kernel", "bias")),
            "output": tuple(weights[f"{prefix}output/{part}"] for part in ("kernel", "bias")),
        }
        norms = {name: f"{prefix}{name}" for name in ("self_attention_layer_norm", "output_layer_norm")}
        return {
            name: (tf.cast(kernel.reshape(-1, len(bias)), self._dtype), tf.cast(bias, self._dtype))
            for name, (kernel, bias) in products.items()
        } | {
            name: tuple(tf.constant(weights[f"{path}/{part}"]) for part in ("gamma", "beta"))
            for name, path in norms.items()
        }

    def states(self, inputs: dict[str, tf.Tensor]) -> States:
        ids, mask = inputs["input_word_ids"], inputs["input_mask"]
        num_texts, length = tf.shape(ids)[0], tf.shape(ids)[1]
        bias = tf.cast(1 - mask, self._dtype)[:, None, None, :] * tf.constant(-1e9, self._dtype)
        x = self._embed(ids, inputs["input_type_ids"], length)  # (texts * seq, hidden)
        hidden = [x]
        for number, layer in enumerate(self._layers, 1):
            x = self._transform(x, layer, bias, num_texts, self._first_only and number == len(self._layers))
            hidden.append(x)
        hidden = [tf.reshape(state, [num_texts, -1, self._spec.hidden_size]) for state in hidden]
        first = pooled = hidden[-1][:, 0]
        if self._spec.pooler:
            kernel, offset = (self._weights[f"pooler_transform/{part}"] for part in ("kernel", "bias"))
            pooled = tf.tanh(tf.matmul(first, kernel) + offset)
        default = pooled if self._sentence is None else self._sentence(hidden[-1], mask=mask)
        return States(hidden, pooled, default)

    def _embed(self, ids: tf.Tensor, type_ids: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        words, positions, types = (
            self._weights[f"{name}/embeddings"] for name in ("word_embeddings", "position_embedding", "type_embeddings")
        )
        x = tf.gather(words, ids) + positions[:length] + tf.gather(types, type_ids)
        norm = [self._weights[f"embeddings/layer_norm/{part}"] for part in ("gamma", "beta")]
        x = self._normalize(tf.reshape(x, [-1, self._spec.embedding_size]), *norm)
        if self._spec.embedding_size != self._spec.hidden_size:
            kernel, bias = (self._weights[f"embedding_projection/{part}"] for part in ("kernel", "bias"))
            x = tf.matmul(x, kernel) + bias
        return x

    def _transform(
        self, x: tf.Tensor, layer: dict[str, Any], bias: tf.Tensor, num_texts: tf.Tensor, first_only: bool
    ) -> tf.Tensor:
        width = self._spec.hidden_size
        kernel, offset = layer["query_key_value"]
        if first_only:
            key, value = self._heads(self._product(x, kernel[:, width:], offset[width:]), 2, num_texts)
            x = tf.reshape(x, [num_texts, -1, width])[:, 0]
            (query,) = self._heads(self._product(x, kernel[:, :width], offset[:width]), 1, num_texts)
        else:
            query, key, value = self._heads(self._product(x, kernel, offset), 3, num_texts)
        attention = tf.nn.softmax(tf.matmul(query, key, transpose_b=True) + bias)
        seen = tf.transpose(tf.matmul(attention, value), [0, 2, 1, 3])
        y = self._product(tf.reshape(seen, [-1, width]), *layer["attention"])
        x = self._normalize(x + tf.cast(y, tf.float32), *layer["self_attention_layer_norm"])
        y = self._product(self._activation(self._product(x, *layer["intermediate"])), *layer["output"])
        return self._normalize(x + tf.cast(y, tf.float32), *layer["output_layer_norm"])

    def _product(self, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        return tf.nn.bias_add(tf.matmul(tf.cast(x, self._dtype), kernel), bias)

    def _heads(self, x: tf.Tensor, parts: int, num_texts: tf.Tensor) -> list[tf.Tensor]:
        """[texts * seq, parts * hidden] -> so many [texts, heads, seq, width of a head]."""
        heads = self._spec.num_heads
        x = tf.reshape(x, [num_texts, -1, parts, heads, self._spec.hidden_size // heads])
        return tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]), num=parts)

    def _normalize(self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        return centred * tf.math.rsqrt(variance + self._spec.layer_norm_epsilon) * gamma + beta
