"""BERT's forward pass, lean: what Model Garden's layers compute, in two thirds of their time on a CPU, to train and to score.

Tokens are the rows of one matrix, so that query, key and value are one product, and TensorFlow fuses bias and GELU into
theirs. Products are computed in `precision`; what is added up from layer to layer, normalised or put through a GELU is
float32, which TensorFlow's CPU operations handle faster than bfloat16.
"""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from bert import ACTIVATIONS, SentencePooling, assign
from config import DataError
from spec import EncoderSpec

_PARTS = ("query", "key", "value")
_BYTE = 256
_PHILOX = 1


class States(NamedTuple):
    """What an encoder computes of ids; only what is used of it is in fact computed, as graphs are."""

    hidden: list[tf.Tensor | None]  # of each layer, [n, seq, hidden]; at 0 what goes into the first
    pooled_output: tf.Tensor | None
    default: tf.Tensor | None


class LeanBert:
    """A BERT, or its lower layers, on weights by the names of Model Garden's `BertEncoder`.

    Args:
        weights: variables or tensors, float32.
        precision: of the products.
        num_layers: how many layers, from the lowest.
        first_only: the last of these computes the first position alone: it gives [n, 1, hidden], and there is no sentence
            vector.
        dropout: rate for hidden states and for attention in training, instead of the checkpoint's own.
        sentence: makes the sentence vector of an encoder that has one, as `sentence_layer` does.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        weights: Mapping[str, Any],
        precision: str,
        num_layers: int | None = None,
        first_only: bool = False,
        dropout: float | None = None,
        sentence: Any = None,
    ) -> None:
        self._spec, self._weights = spec, weights
        self._dtype = tf.as_dtype(precision)
        self._num_layers = spec.num_layers if num_layers is None else num_layers
        self._first_only = first_only
        self._hidden_dropout = spec.hidden_dropout if dropout is None else dropout
        self._attention_dropout = spec.attention_dropout if dropout is None else dropout
        self._activation = ACTIVATIONS[spec.activation]
        self._layers: list[dict[str, Any]] | None = None
        self._sentence = sentence

    def keep_weights(self) -> None:
        """Makes what products take of the weights once, and not anew in every call: for weights that do not change."""
        self._layers = [self._layer(number) for number in range(self._num_layers)]

    @contextlib.contextmanager
    def shared_weights(self) -> Iterator[None]:
        """The same for the calls inside this context, such as those for the parts of one batch."""
        self.keep_weights()
        try:
            yield
        finally:
            self._layers = None

    def states(self, inputs: dict[str, tf.Tensor], training: bool = False) -> States:
        """What the encoder computes of `input_word_ids`, `input_mask` and `input_type_ids`, int32 [n, seq]."""
        ids, mask = inputs["input_word_ids"], inputs["input_mask"]
        shape, width = tf.shape(ids), self._spec.hidden_size
        drop = _Dropout() if training else None
        lowest = max(-1e9, float(self._dtype.min) / 2)
        bias = tf.cast(1 - mask, self._dtype)[:, None, None, :] * tf.constant(lowest, self._dtype)
        x = self._embed(ids, inputs["input_type_ids"], shape[1])  # (n * seq, hidden)
        x = self._dropped(x, drop)
        hidden = [x]
        layers = self._layers or [self._layer(number) for number in range(self._num_layers)]
        for number, layer in enumerate(layers, 1):
            x = self._transform(x, layer, bias, shape, self._first_only and number == len(layers), drop)
            hidden.append(x)
        lengths = [shape[1]] * len(layers) + [1 if self._first_only and layers else shape[1]]
        hidden = [tf.reshape(state, [shape[0], seq, width]) for state, seq in zip(hidden, lengths, strict=True)]
        pooled = hidden[-1][:, 0]
        if self._spec.pooler:
            kernel, offset = (self._weights[f"pooler_transform/{part}"] for part in ("kernel", "bias"))
            pooled = tf.tanh(tf.matmul(pooled, kernel) + offset)
        default = pooled if self._spec.sentence is None else None
        if self._sentence is not None and not self._first_only:
            default = self._sentence(hidden[-1], mask=mask)
        return States(hidden, pooled, default)

    def _layer(self, number: int) -> dict[str, Any]:
        """Weights of a layer as its products and norms take them."""
        weights, prefix, width = self._weights, f"transformer/layer_{number}/", self._spec.hidden_size
        attention = f"{prefix}self_attention/"
        kernels = [tf.reshape(weights[f"{attention}{part}/kernel"], [width, width]) for part in _PARTS]
        biases = [tf.reshape(weights[f"{attention}{part}/bias"], [width]) for part in _PARTS]
        scale = (width // self._spec.num_heads) ** -0.5  # of the scores, taken into the query
        kernels[0], biases[0] = kernels[0] * scale, biases[0] * scale
        products = {"query_key_value": (tf.concat(self._cast(kernels), 1), tf.concat(self._cast(biases), 0))}
        paths = {
            "attention": f"{attention}attention_output",
            "intermediate": f"{prefix}intermediate",
            "output": f"{prefix}output",
        }
        for name, path in paths.items():
            kernel, bias = (weights[f"{path}/{part}"] for part in ("kernel", "bias"))
            products[name] = tuple(self._cast([tf.reshape(kernel, [-1, bias.shape[-1]]), bias]))
        norms = ("self_attention_layer_norm", "output_layer_norm")
        return products | {name: [weights[f"{prefix}{name}/{part}"] for part in ("gamma", "beta")] for name in norms}

    def _cast(self, tensors: list[Any]) -> list[tf.Tensor]:
        return [tf.cast(tensor, self._dtype) for tensor in tensors]

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
        self,
        x: tf.Tensor,
        layer: dict[str, Any],
        bias: tf.Tensor,
        shape: tf.Tensor,  # [n, seq]
        first_only: bool,
        drop: "_Dropout | None",
    ) -> tf.Tensor:
        width = self._spec.hidden_size
        kernel, offset = layer["query_key_value"]
        if first_only:
            key, value = self._heads(self._product(x, kernel[:, width:], offset[width:]), 2, shape)
            x = tf.reshape(x, [shape[0], shape[1], width])[:, 0]
            (query,) = self._heads(self._product(x, kernel[:, :width], offset[:width]), 1, [shape[0], 1])
        else:
            query, key, value = self._heads(self._product(x, kernel, offset), 3, shape)
        attention = tf.nn.softmax(tf.matmul(query, key, transpose_b=True) + bias)
        if drop is not None:
            attention = drop(attention, self._attention_dropout)
        seen = tf.transpose(tf.matmul(attention, value), [0, 2, 1, 3])
        y = self._product(tf.reshape(seen, [-1, width]), *layer["attention"])
        x = self._normalize(x + self._dropped(tf.cast(y, tf.float32), drop), *layer["self_attention_layer_norm"])
        y = self._product(x, *layer["intermediate"])
        y = exact_gelu_in_float32(y) if drop is not None and self._spec.activation == "gelu" else self._activation(y)
        y = self._product(y, *layer["output"])
        return self._normalize(x + self._dropped(tf.cast(y, tf.float32), drop), *layer["output_layer_norm"])

    def _product(self, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        return tf.matmul(tf.cast(x, self._dtype), kernel) + bias

    def _heads(self, x: tf.Tensor, parts: int, shape: Any) -> list[tf.Tensor]:
        """[n * seq, parts * hidden] -> so many [n, heads, seq, width of a head]."""
        heads = self._spec.num_heads
        x = tf.reshape(x, [shape[0], shape[1], parts, heads, self._spec.hidden_size // heads])
        return tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]), num=parts)

    def _normalize(self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        return centred * tf.math.rsqrt(variance + self._spec.layer_norm_epsilon) * gamma + beta

    def _dropped(self, x: tf.Tensor, drop: "_Dropout | None") -> tf.Tensor:
        return x if drop is None else drop(x, self._hidden_dropout)


class _Dropout:
    """Dropout at a fraction of the cost of Keras': a random byte decides on a number, so that rates are rounded to 1/256 (0.1
    to 0.1016), and what is kept is scaled by just that."""

    def __init__(self) -> None:
        self._key = tf.cast(tf.random.uniform([1], maxval=tf.int64.max, dtype=tf.int64), tf.uint64)
        self._uses = 0

    def __call__(self, x: tf.Tensor, rate: float) -> tf.Tensor:
        dropped = min(round(rate * _BYTE), _BYTE - 1)
        if not dropped:
            return x
        self._uses += 1  # the upper half of Philox' counter: every use has numbers of its own
        size = tf.size(x)
        words = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=[(size + 7) // 8],
            key=self._key,
            counter=tf.constant([0, self._uses], tf.uint64),
            alg=_PHILOX,
            dtype=tf.uint64,
        )
        bytes_ = tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:size]
        kept = tf.cast(tf.reshape(bytes_, tf.shape(x)) >= dropped, x.dtype)
        return x * (kept * (_BYTE / (_BYTE - dropped)))


@tf.custom_gradient
def exact_gelu_in_float32(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """The exact GELU of products in any precision, with half of the operations that differentiating it would take."""
    wide = tf.cast(x, tf.float32)
    share = 0.5 + 0.5 * tf.math.erf(wide * math.sqrt(0.5))  # the normal distribution up to x

    def gradient(above: tf.Tensor) -> tf.Tensor:
        density = tf.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
        return tf.cast(tf.cast(above, tf.float32) * (share + wide * density), x.dtype)

    return tf.cast(wide * share, x.dtype), gradient


class LeanEncoder(tf_keras.layers.Layer):
    """A LeanBert as a Keras layer: the inputs of TF-Hub's BERT encoders, int32 [batch, seq] -> their `pooled_output`,
    `sequence_output` and, where it can be had, `default`. Layers on the same variables share their weights."""

    def __init__(
        self, spec: EncoderSpec, variables: dict[str, tf.Variable], sentence: SentencePooling | None, **options: Any
    ) -> None:
        super().__init__(name="bert")
        self.named_variables, self.sentence = variables, sentence  # so that Keras finds them
        self._bert = LeanBert(spec, variables, sentence=sentence, **options)

    def shared_weights(self) -> contextlib.AbstractContextManager[None]:
        """Calls inside this context share what products take of the weights."""
        return self._bert.shared_weights()

    def call(self, inputs: dict[str, tf.Tensor], training: bool | None = None) -> dict[str, tf.Tensor]:
        states = self._bert.states(inputs, bool(training))
        outputs = {
            "pooled_output": states.pooled_output,
            "sequence_output": states.hidden[-1],
            "default": states.default,
        }
        return {name: tensor for name, tensor in outputs.items() if tensor is not None}


def make_variables(
    spec: EncoderSpec, weights: dict[str, np.ndarray], trained: Callable[[str], bool]
) -> dict[str, tf.Variable]:
    """The variables of an encoder by name, its sentence vector's left out; `trained` says which are trainable.

    Raises:
        DataError: a weight is missing, or of another shape.
    """
    variables, shapes = {}, _shapes(spec)
    missing = shapes.keys() - weights.keys()
    if missing:
        raise DataError(f"{len(missing)} weights of the encoder are missing, such as {min(missing)}")
    for name, shape in shapes.items():
        value = weights[name]
        if value.size != math.prod(shape):
            raise DataError(f"the weight {name} has the shape {value.shape}, the encoder needs {shape}")
        variables[name] = tf.Variable(value.reshape(shape), trainable=trained(name), name=name)
    return variables


def _shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a `BertEncoder`'s variables."""
    width, heads, inner, narrow = spec.hidden_size, spec.num_heads, spec.intermediate_size, spec.embedding_size
    size = width // heads
    shapes: dict[str, tuple[int, ...]] = {
        "word_embeddings/embeddings": (spec.vocab_size, narrow),
        "position_embedding/embeddings": (spec.max_positions, narrow),
        "type_embeddings/embeddings": (spec.type_vocab_size, narrow),
        "embeddings/layer_norm/gamma": (narrow,),
        "embeddings/layer_norm/beta": (narrow,),
    }
    if narrow != width:
        shapes |= {"embedding_projection/kernel": (narrow, width), "embedding_projection/bias": (width,)}
    for number in range(spec.num_layers):
        prefix = f"transformer/layer_{number}"
        for part in _PARTS:
            shapes[f"{prefix}/self_attention/{part}/kernel"] = (width, heads, size)
            shapes[f"{prefix}/self_attention/{part}/bias"] = (heads, size)
        products = {
            "self_attention/attention_output": (heads, size, width),
            "intermediate": (width, inner),
            "output": (inner, width),
        }
        for name, shape in products.items():
            shapes |= {f"{prefix}/{name}/kernel": shape, f"{prefix}/{name}/bias": shape[-1:]}
        for name in ("self_attention_layer_norm", "output_layer_norm"):
            shapes |= {f"{prefix}/{name}/gamma": (width,), f"{prefix}/{name}/beta": (width,)}
    if spec.pooler:
        shapes |= {"pooler_transform/kernel": (width, width), "pooler_transform/bias": (width,)}
    return shapes


def sentence_layer(spec: EncoderSpec, weights: dict[str, np.ndarray]) -> SentencePooling | None:
    """What makes the sentence vector of an encoder that has one, with its weights.

    Raises:
        DataError: a weight is missing, or of another size.
    """
    if spec.sentence is None:
        return None
    layer = SentencePooling(spec.sentence)
    layer(tf.zeros([1, 1, spec.hidden_size]), mask=tf.ones([1, 1]))
    assign(layer, weights.items())
    return layer
