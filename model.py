"""The classifier: a TF-Hub preprocessor and encoder under a dense head; compiling it.

Keras models share one encoder's and one head's weights: the training model and the token model take ids made ahead of
time, in the training's precision and in float32; the text model, which is shipped, takes strings and carries the
preprocessor inside.
"""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from tf_keras.layers import Dense, Dropout, Input, Layer

from accumulation import AccumulatingModel
from bert import CannotOpen, is_embedding, layer_number, open_encoder
from config import OPENED_ONLY, Config, ConfigError, DataError
from data import INPUT_NAMES, pack
from lean_bert import LeanEncoder, make_variables, sentence_layer
from losses import WeightedCrossEntropy, exact_match
from optimization import AdamW, WarmupLinearDecay
from spec import MOST_PADDING_ROWS, EncoderPaths, EncoderSpec, read_spec
from tasks import Task

_HEAD_LAYERS = ("hidden", "logits")
_INITIALIZER_RANGE = 0.02  # as BERT's own: the first logits are the bias, and little else


class Preprocess(Layer):
    """Texts, or pairs of them, string [batch] -> the encoder's inputs, int32 [batch, seq], padded to the longest."""

    def __init__(self, preprocessor: hub.KerasLayer, max_seq_length: int) -> None:
        super().__init__(name="preprocess", trainable=False)
        self.preprocessor = preprocessor
        self._max_seq_length = max_seq_length

    def call(self, segments: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        return pack(self.preprocessor.resolved_object, segments, self._max_seq_length)[0]


class TextVectors(Layer):
    """An encoder and pooling: its inputs, int32 [batch, seq] -> one vector per text, float32 [batch, hidden].

    With several `streams` the batch is encoded in so many parts side by side, each as long as its longest text. A part's
    operations wait for its own alone, so two cores with a part each are faster than two that share every operation.
    """

    def __init__(self, encoder: Any, pooling: str, trainable: bool, streams: int = 1) -> None:
        super().__init__(name="text_vectors")
        self.encoder = encoder
        self._pooling, self._streams = pooling, streams
        # A frozen encoder gives features: no dropout in it, and no gradient through it.
        self._options = {} if trainable else {"training": False}

    def call(self, inputs: dict[str, tf.Tensor], training: bool | None = None) -> tf.Tensor:
        options = {"training": training, **self._options}
        is_lean = isinstance(self.encoder, LeanEncoder)
        vectors = []
        with self.encoder.shared_weights() if is_lean else contextlib.nullcontext():
            for part in _row_parts(inputs, self._streams):
                outputs = self.encoder(part, **options)
                vectors.append(_pool(self._pooling, outputs, part["input_mask"]))
        return tf.concat(vectors, axis=0)


def _row_parts(inputs: dict[str, tf.Tensor], num_parts: int) -> list[dict[str, tf.Tensor]]:
    """Rows of a batch in parts, the first of them the larger."""
    if num_parts == 1:
        return [inputs]
    parts = []
    num_rows = tf.shape(inputs["input_mask"])[0]
    for number in range(num_parts):
        start, end = ((each * num_rows + num_parts - 1) // num_parts for each in (number, number + 1))
        rows = {name: tensor[start:end] for name, tensor in inputs.items()}
        length = tf.math.count_nonzero(tf.reduce_any(rows["input_mask"] > 0, axis=0), dtype=tf.int32)
        parts.append({name: tensor[:, : tf.maximum(length, 1)] for name, tensor in rows.items()})
    return parts


def _pool(kind: str, outputs: dict[str, tf.Tensor], mask: tf.Tensor) -> tf.Tensor:
    """The encoder's outputs -> one vector per text, float32 [batch, hidden]."""
    if kind in {"pooled_output", "default"}:
        return outputs[kind]
    sequence = outputs["sequence_output"]  # (batch, seq, hidden)
    if kind == "cls":
        return sequence[:, 0]
    real = tf.cast(mask, sequence.dtype)[:, :, None]
    return tf.reduce_sum(sequence * real, axis=1) / tf.reduce_sum(real, axis=1)


@dataclass(frozen=True)
class Encoder:
    """An encoder as layers: ids, int32 [batch, seq] -> the dict of outputs of TF-Hub's BERT encoders.

    `layer` computes in float32. `training_layer` has the same weights, and computes in `precision`: an opened one by itself,
    a hub layer inside `runtime.graph_precision(graph_precision)`.
    """

    layer: Any
    training_layer: Any
    precision: str
    graph_precision: str
    spec: EncoderSpec | None
    note: str | None


@dataclass(frozen=True)
class Classifier:
    """Three models on the same weights: one to train, one to score token ids, one that takes texts, or `[texts, pairs]`. All
    give logits, float32 [batch, 1] for binary tasks, else [batch, K].

    Of a frozen encoder `training_model` is the head alone: it takes what `vector_model`, None for others, makes of ids, one
    vector per text, float32 [batch, hidden], in the training's precision.
    """

    training_model: tf_keras.Model
    vector_model: tf_keras.Model | None
    token_model: tf_keras.Model
    text_model: tf_keras.Model
    encoder: Encoder
    preprocessor: Any
    task: Task

    def set_output_bias(self, bias: np.ndarray) -> None:
        """Sets the bias of the logits, float32 [1] or [K], as `imbalance.output_bias` makes it."""
        self.token_model.get_layer("logits").bias.assign(bias)


def build_classifier(config: Config, paths: EncoderPaths, task: Task) -> Classifier:
    """Assembles preprocessor, encoder and head; for pairs where `config` has a `text_pair_column`.

    Raises:
        DataError: the SavedModels at `paths` are not a TF-Hub text encoder and preprocessor.
        ConfigError: the encoder or this machine cannot honour an option.
    """
    preprocessor = load_preprocessor(paths.preprocessor)
    encoder = load_encoder(config, paths.encoder)
    runtime.set_seed(config.seed)  # here, so that the head does not hang on what loading the encoder drew
    _refuse_other_vocabulary_size(preprocessor, encoder.layer, paths)
    head: list[Layer] = [Dense(config.hidden_units, activation="relu", name="hidden")] if config.hidden_units else []
    initializer = tf_keras.initializers.TruncatedNormal(stddev=_INITIALIZER_RANGE)
    head += [
        Dropout(config.dropout, name="dropout"),
        Dense(task.num_logits, kernel_initializer=initializer, name="logits"),
    ]

    def classify(layer: Any, inputs: dict[str, tf.Tensor], streams: int = 1) -> tf.Tensor:
        return _through(head, TextVectors(layer, config.pooling, config.trainable, streams)(inputs))

    ids = {name: Input(shape=(None,), dtype=tf.int32, name=name) for name in INPUT_NAMES}
    segments = ["text"] if config.text_pair_column is None else ["text", "text_pair"]
    texts = [Input(shape=(), dtype=tf.string, name=name) for name in segments]
    text_ids = Preprocess(preprocessor, config.max_seq_length)(texts)
    token_model = tf_keras.Model(ids, classify(encoder.layer, ids), name="token_model")
    vector_model = None
    if config.trainable:
        outputs = classify(encoder.training_layer, ids, 1 if config.jit_compile else runtime.num_streams())
        training_model = tf_keras.Model(ids, outputs, name="training_model")
    else:
        vectors = TextVectors(encoder.training_layer, config.pooling, trainable=False)(ids)
        vector_model = tf_keras.Model(ids, vectors, name="vector_model")
        vector = Input(shape=vectors.shape[1:], name="vector")
        training_model = tf_keras.Model(vector, _through(head, vector), name="training_model")
    if config.trainable and config.gradient_accumulation_steps > 1:
        training_model = AccumulatingModel(config.batch_size, inputs=ids, outputs=outputs, name="training_model")
    text_model = tf_keras.Model(texts, classify(encoder.layer, text_ids), name="text_model")
    return Classifier(
        training_model, vector_model, token_model, text_model, encoder, preprocessor.resolved_object, task
    )


def _through(layers: list[Layer], hidden: tf.Tensor) -> tf.Tensor:
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def load_encoder(config: Config, path: str) -> Encoder:
    """Loads an encoder, opened where `encoder_mode` and the encoder allow it, else as a hub layer.

    Raises:
        DataError: the SavedModel is not a TF-Hub text encoder.
        ConfigError: the encoder or this machine cannot honour an option.
    """
    if config.encoder_mode == "hub":
        return _hub_encoder(config, path, note=None)
    try:
        spec, weights = open_encoder(path)
    except CannotOpen as error:
        asked = ["encoder_mode=opened"] if config.encoder_mode == "opened" else []
        asked += config.opened_only
        if asked:
            raise ConfigError(
                f"{', '.join(asked)}: the encoder {path} cannot be opened ({error}); as a hub layer it cannot honour that"
            ) from None
        note = f"the encoder stays a hub layer ({error}): it has no {', '.join(OPENED_ONLY)}, and no bfloat16 on a GPU"
        return _hub_encoder(config, path, note)
    return _opened_encoder(config, path, spec, weights)


def _opened_encoder(config: Config, path: str, spec: EncoderSpec, weights: dict[str, np.ndarray]) -> Encoder:
    _refuse_too_long(config, path, spec.max_positions)
    if config.freeze_layers is not None and config.freeze_layers > spec.num_layers:
        raise ConfigError(f"freeze_layers={config.freeze_layers}: the encoder {path} has {spec.num_layers} layers")
    precision = runtime.choose_precision(config.precision, opened=True)
    has_sentence_weights = bool(spec.sentence and spec.sentence.dense)  # they are to be kept, whatever the head sees
    cls_only = config.pooling in {"pooled_output", "cls"} and not has_sentence_weights
    variables = make_variables(spec, weights, lambda name: _is_trained(name, config, spec))
    sentence = None if cls_only else sentence_layer(spec, weights)
    if sentence is not None:
        sentence.trainable = config.trainable and config.pooling == "default"

    def layer(precision: str) -> LeanEncoder:
        return LeanEncoder(
            spec, variables, sentence, precision=precision, first_only=cls_only, dropout=config.encoder_dropout
        )

    return Encoder(layer("float32"), layer(precision), precision, "float32", spec, None)


def _is_trained(name: str, config: Config, spec: EncoderSpec) -> bool:
    """Whether a variable learns: one that is not frozen, and that the head sees."""
    if not config.trainable or (name.startswith("type_embeddings/") and not spec.segments):
        return False
    number = layer_number(name)
    if number is None and not is_embedding(name):
        # Without a sentence vector of its own an encoder's default is the pooler's output.
        return config.pooling == "pooled_output" or (config.pooling == "default" and spec.sentence is None)
    if config.freeze_layers is None:
        return True
    return number is not None and number >= config.freeze_layers


def _hub_encoder(config: Config, path: str, note: str | None) -> Encoder:
    layer = _load_layer(path, "encoder", trainable=config.trainable)
    example = {name: tf.ones([1, 3], tf.int32) for name in INPUT_NAMES}
    wanted = config.pooling if config.pooling in {"pooled_output", "default"} else "sequence_output"
    try:
        outputs = layer(example)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"encoder {path}: does not take {', '.join(INPUT_NAMES)} as a dict; TF-Hub BERT encoders from version 3 on do"
        ) from error
    if not isinstance(outputs, dict) or wanted not in outputs:
        raise DataError(f"encoder {path}: gives no {wanted!r}, which pooling={config.pooling} needs")
    positions = _table_rows(layer, "position_embedding")
    if positions is not None:
        _refuse_too_long(config, path, positions)
    precision = runtime.choose_precision(config.precision, opened=False)
    return Encoder(layer, layer, precision, precision, read_spec(path), note)


def _refuse_too_long(config: Config, path: str, positions: int) -> None:
    if config.max_seq_length > positions:
        raise ConfigError(
            f"max_seq_length={config.max_seq_length}: the encoder {path} has {positions} positions; set {positions} or less"
        )


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


def _table_rows(layer: Any, name: str) -> int | None:
    """Rows of the encoder's embedding table with `name` in its name, None where there is no such table."""
    return next((variable.shape[0] for variable in layer.variables if name in variable.name), None)


def _refuse_other_vocabulary_size(preprocessor: hub.KerasLayer, layer: Any, paths: EncoderPaths) -> None:
    """An id past the embedding table would be an error on a CPU and a zero vector on a GPU."""
    rows = _table_rows(layer, "word_embeddings")
    tokens = int(preprocessor.resolved_object.tokenize.get_special_tokens_dict()["vocab_size"])
    if rows is not None and not 0 <= rows - tokens < MOST_PADDING_ROWS:
        raise DataError(
            f"preprocessor {paths.preprocessor} has {tokens:,} tokens, encoder {paths.encoder} has {rows:,}; name its own one"
        )


def compile_classifier(
    classifier: Classifier, config: Config, total_steps: int, label_weights: np.ndarray | None = None
) -> None:
    """Compiles the training model for `total_steps` of training: loss from logits, AdamW, accuracy.

    `label_weights` are float32 [K], as `imbalance.label_weights` makes them.
    """
    schedule = WarmupLinearDecay(config.learning_rate, total_steps, round(config.warmup_ratio * total_steps))
    optimizer: Any = AdamW(schedule, config.weight_decay, rate_factor=_rate_factor(config, classifier.encoder.spec))
    if classifier.encoder.precision == "float16":
        optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
    kind = classifier.task.kind
    loss = WeightedCrossEntropy(kind, label_weights)
    classifier.training_model.compile(
        optimizer=optimizer, loss=loss, metrics=[exact_match(kind)], jit_compile=config.jit_compile
    )
    # Keras would create the slots in the first step, and build that step's graph twice for it.
    optimizer._create_all_weights(classifier.training_model.trainable_variables)


def rate_groups(config: Config, classifier: Classifier) -> dict[str, float]:
    """Factor on the learning rate of each group of weights that is trained: head and encoder, or with layer_decay its layers."""
    factor, groups = _rate_factor(config, classifier.encoder.spec), {}
    for variable in classifier.training_model.trainable_variables:
        groups[_group(variable.name, config)] = factor(variable.name)
    return groups


def _group(name: str, config: Config) -> str:
    if name.startswith(_HEAD_LAYERS):
        return "head"
    if config.layer_decay == 1.0:
        return "encoder"
    number = layer_number(name)
    return "embeddings" if is_embedding(name) else "pooler" if number is None else f"layer_{number}"


def _rate_factor(config: Config, spec: EncoderSpec | None) -> Callable[[str], float]:
    """Factor on the learning rate by a variable's name: 1 for the head, less for the encoder, still less for lower layers.

    Layer-wise decay as in ELECTRA's fine-tuning (Clark et al., arXiv:2003.10555); the highest layer and the pooler have the
    encoder's rate, the embeddings are below the lowest layer.
    """
    encoder_factor = (config.encoder_learning_rate or config.learning_rate) / config.learning_rate

    def factor(name: str) -> float:
        if name.startswith(_HEAD_LAYERS):
            return 1.0
        if spec is None or config.layer_decay == 1.0:
            return encoder_factor
        number = -1 if is_embedding(name) else layer_number(name)
        depth = 0 if number is None else spec.num_layers - 1 - number
        return encoder_factor * config.layer_decay**depth

    return factor
