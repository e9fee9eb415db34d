"""What encodes texts for `BertTransformer`: an encoder by name, or a model object that is called as Hugging Face's are."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from bert import CannotOpen, open_encoder
from cache import hash_saved_model
from config import ConfigError, make_config
from data import INPUT_NAMES, Tokens
from encoders import find_encoder
from lean_bert import LeanBert, States, sentence_layer
from model import load_encoder, load_preprocessor
from scoring import INPUT_SIGNATURE
from spec import MOST_PADDING_ROWS
from text_inputs import Texts, shared_tokens


class Outputs(NamedTuple):
    """What `embedding_func` gets of n texts with equally many tokens, NumPy float32, also as x[0] to x[3].

    `hidden_states` has one [n, seq, hidden] per layer, the last one last; before them, as in Hugging Face's models, what
    goes into the first layer. A hub layer that cannot be opened has not the latter, a model object perhaps none of them.
    """

    last_hidden_state: np.ndarray  # [n, seq, hidden]
    pooler_output: np.ndarray | None  # [n, hidden]
    hidden_states: tuple[np.ndarray, ...] | None
    attention_mask: np.ndarray  # int32 [n, seq], all 1


class Settings(Protocol):
    """The parameters of `BertTransformer` that say what is computed."""

    tokenizer: Any
    model: Any
    max_length: int
    embedding_func: Callable[[Outputs], Any] | None
    pooling: str
    layers: int | list[int]
    text_pair_column: str | None
    cache_dir: Any


def as_tuple(layers: Any) -> tuple[Any, ...]:
    return tuple(layers) if isinstance(layers, list | tuple) else (layers,)


def _features_of(result: Any, outputs: Outputs) -> np.ndarray:
    """What an `embedding_func` gave, as float32 [n, D]."""
    num_texts, _, hidden = outputs.last_hidden_state.shape
    features = np.asarray(result)
    if features.dtype.kind not in "fiub" or not features.size:
        raise ValueError(
            f"embedding_func gives {type(result).__name__} of {features.dtype}: let it give numbers, [n, D]"
        )
    flat = features.ndim == 1 and features.size % (num_texts * hidden) == 0
    if num_texts > 1 and not flat and features.shape[:1] != (num_texts,):
        raise ValueError(
            f"embedding_func gives an array of shape {features.shape} for {num_texts} texts: keep the first axis, the texts'"
        )
    features = features.reshape(num_texts, -1).astype(np.float32)
    if not np.isfinite(features).all():
        raise ValueError("embedding_func gives NaN or infinity: let it give finite numbers")
    return features


# Encoders by name


class NamedEncoder:
    """An encoder that `Config` would take, and its preprocessor."""

    def __init__(self, bert: Settings) -> None:
        self._bert = bert
        given = {"encoder": str(bert.model), "preprocessor": None if bert.tokenizer is None else str(bert.tokenizer)}
        self._paths = find_encoder(make_config({"data": "-", **given}))
        self.key = hash_saved_model(self._paths.encoder)

    @property
    def num_streams(self) -> int:
        """Batches to compute at a time; one where a user's function takes part, which may not expect threads."""
        return runtime.num_streams() if self._bert.embedding_func is None else 1

    def tokens(self, texts: Texts) -> Tokens:
        path = self._paths.preprocessor
        return shared_tokens(texts, _preprocessor(path), path, int(self._bert.max_length))

    def first_precision(self, wanted: str) -> str:
        """bfloat16 if it is wanted, or "auto", and can be had."""
        if wanted == "bfloat16":
            runtime.choose_precision(wanted, opened=True)
            if self._outputs(wanted) is None:
                raise ValueError(f"precision=bfloat16: model={self._bert.model} stays a hub layer in float32: set auto")
            return wanted
        has_it = wanted == "auto" and runtime.choose_precision("auto", opened=True) == "bfloat16"
        return "bfloat16" if has_it and self._outputs("bfloat16") is not None else "float32"

    def runner(self, precision: str) -> Callable[[list[np.ndarray]], np.ndarray]:
        compute, embed = self._outputs(precision), self._bert.embedding_func
        assert compute is not None

        def run(batch: list[np.ndarray]) -> np.ndarray:
            result = compute({name: tf.constant(part) for name, part in zip(INPUT_NAMES, batch, strict=True)})
            if embed is None:
                return result.numpy()
            hidden, pooled = result
            states = tuple(state.numpy() for state in hidden)
            outputs = Outputs(states[-1], pooled.numpy(), states, batch[1])
            return _features_of(embed(outputs), outputs)

        return run

    def _outputs(self, precision: str) -> Callable[..., Any] | None:
        bert = self._bert
        what = "all" if bert.embedding_func is not None else bert.pooling
        layers = tuple(int(layer) for layer in as_tuple(bert.layers))
        loaded = _load(_Wanted(self._paths.encoder, self.key, precision, what, layers, int(bert.max_length)))
        if loaded is None:
            return None
        special_tokens = _preprocessor(self._paths.preprocessor).tokenize.get_special_tokens_dict()
        rows, ids = loaded.vocab_size, int(special_tokens["vocab_size"])
        if rows is not None and not 0 <= rows - ids < MOST_PADDING_ROWS:
            raise ValueError(
                f"tokenizer={bert.tokenizer} has {ids:,} tokens, model={bert.model} {rows:,}: set it to None"
            )
        return loaded.compute


class _Wanted(NamedTuple):
    encoder: str
    key: str  # so that what is loaded is not that of an earlier encoder in the same folder
    precision: str
    what: str  # a pooling, or "all" outputs
    layers: tuple[int, ...]
    max_length: int


class _Loaded(NamedTuple):
    compute: Callable[..., Any]
    vocab_size: int | None


@functools.lru_cache(maxsize=4)
def _preprocessor(path: str) -> Any:
    return load_preprocessor(path).resolved_object


@functools.lru_cache(maxsize=4)  # the folds of a cross-validation share one
def _load(wanted: _Wanted) -> _Loaded | None:
    """A function of the encoder's inputs; None where a hub layer should compute in bfloat16."""
    runtime.set_up_devices()
    try:
        spec, weights = open_encoder(wanted.encoder)
    except CannotOpen:
        if wanted.precision != "float32":
            return None
        return _load_hub_layer(wanted)
    if wanted.max_length > spec.max_positions:
        raise ValueError(
            f"max_length={wanted.max_length}: the encoder has {spec.max_positions} positions; set {spec.max_positions} or less"
        )
    numbers = _layer_numbers(wanted.layers, spec.num_layers)
    first_only = wanted.what in ("cls", "pooled_output") or (wanted.what == "default" and spec.sentence is None)
    constants = {name: tf.constant(value) for name, value in weights.items()}
    sentence = None if first_only else sentence_layer(spec, weights)
    bert = LeanBert(spec, constants, wanted.precision, max(numbers), first_only, sentence=sentence)
    bert.keep_weights()
    return _Loaded(_function(bert.states, wanted.what, numbers), spec.vocab_size)


def _load_hub_layer(wanted: _Wanted) -> _Loaded:
    """Computes all layers, whatever is wanted: its graph is as it is."""
    pooling = wanted.what if wanted.what in ("pooled_output", "default") else "cls"
    config = make_config({"data": "-", "encoder_mode": "hub", "pooling": pooling, "max_seq_length": wanted.max_length})
    try:
        layer = load_encoder(config, wanted.encoder).layer
    except ConfigError as error:
        raise ValueError(str(error).replace("max_seq_length", "max_length")) from None

    def states(inputs: dict[str, tf.Tensor]) -> States:
        outputs = layer(inputs)
        hidden = outputs.get("encoder_outputs", [outputs.get("sequence_output")])
        return States([None, *hidden], outputs.get("pooled_output"), outputs.get("default"))

    given = states({name: tf.ones([1, 3], tf.int32) for name in INPUT_NAMES})
    vocab_size = next((each.shape[0] for each in layer.variables if "word_embeddings" in each.name), None)
    return _Loaded(_function(states, wanted.what, _layer_numbers(wanted.layers, len(given.hidden) - 1)), vocab_size)


def _layer_numbers(layers: tuple[int, ...], num_layers: int) -> list[int]:
    """Numbers from 1; -1 is the last."""
    for layer in layers:
        if not 1 <= abs(layer) <= num_layers:
            raise ValueError(
                f"layers: there is no layer {layer}; the encoder has {num_layers}, from 1 or -{num_layers} to {num_layers} or -1"
            )
    return [layer if layer > 0 else num_layers + 1 + layer for layer in layers]


def _function(states: Callable[[dict[str, tf.Tensor]], States], what: str, numbers: list[int]) -> Callable[..., Any]:
    def compute(inputs: dict[str, tf.Tensor]) -> Any:
        found = states(inputs)
        if what == "all":
            return [state for state in found.hidden if state is not None], found.pooled_output
        if what in ("pooled_output", "default"):
            return getattr(found, what)
        return tf.concat([_pool(what, found.hidden[number], inputs["input_mask"]) for number in numbers], axis=-1)

    return runtime.traced_once(compute, INPUT_SIGNATURE, autograph=False)


def _pool(kind: str, sequence: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Token vectors [n, seq, hidden] -> [n, hidden]."""
    if kind == "cls":
        return sequence[:, 0]
    real = tf.cast(mask, tf.bool)[:, :, None]
    if kind == "max":
        return tf.reduce_max(tf.where(real, sequence, sequence.dtype.min), axis=1)
    count = tf.reduce_sum(tf.cast(real, sequence.dtype), axis=1)
    return tf.reduce_sum(tf.where(real, sequence, 0.0), axis=1) / count


# Model objects


class ModelObject:
    """A tokenizer and a model that the user brought, called as Hugging Face's are."""

    key = "a model object"
    num_streams = 1

    def __init__(self, bert: Settings) -> None:
        self._bert = bert
        if bert.text_pair_column is not None:
            raise ValueError("text_pair_column with a model object, which gets no token types: name the model instead")
        if bert.cache_dir is not None:
            raise ValueError("cache_dir with a model object, whose contents have no name: name the model, or set None")
        if as_tuple(bert.layers) != (-1,) or bert.pooling == "default":
            raise ValueError(
                "of a model object layers is -1 and pooling cls, mean, max or pooled_output: write an embedding_func"
            )
        if not callable(bert.model):
            raise TypeError(
                f"model is a {type(bert.model).__name__}: give a name, or what is called as model(ids, mask)"
            )
        if not callable(bert.tokenizer) and not hasattr(bert.tokenizer, "encode_plus"):
            raise TypeError(f"tokenizer is a {type(bert.tokenizer).__name__}: give what is called with texts, or None")

    def tokens(self, texts: Texts) -> Tokens:
        if texts.second is not None:
            raise ValueError("pairs of texts with a model object, which gets no token types: name the model instead")
        most = int(self._bert.max_length)
        ids = self._ids(texts.first, truncation=True, max_length=most)
        lengths = np.array([len(each) for each in ids])
        if lengths.min() == 0 or lengths.max() > most:
            place = int(np.argmin(lengths) if lengths.min() == 0 else np.argmax(lengths))
            raise ValueError(
                f"tokenizer gives {lengths[place]} tokens for text {place}: let it give 1 to max_length={most}"
            )
        uncut, full = lengths.copy(), np.flatnonzero(lengths == most)
        if len(full):
            uncut[full] = [len(each) for each in self._ids([texts.first[place] for place in full], truncation=False)]
        word_ids = np.concatenate(ids).astype(np.int32)
        return Tokens(word_ids, np.zeros_like(word_ids), np.concatenate([[0], np.cumsum(lengths)]), uncut)

    def _ids(self, texts: list[str], **options: Any) -> list[list[int]]:
        tokenizer, options = self._bert.tokenizer, {"add_special_tokens": True, **options}
        if callable(tokenizer):
            return list(tokenizer(texts, **options)["input_ids"])
        return [tokenizer.encode_plus(text, **options)["input_ids"] for text in texts]

    def first_precision(self, wanted: str) -> str:
        """That of the model."""
        if wanted != "auto":
            raise ValueError(f"precision={wanted} with a model object, which computes as it does: set auto")
        return "the model's own"

    def runner(self, precision: str) -> Callable[[list[np.ndarray]], np.ndarray]:
        embed, pooling = self._bert.embedding_func, self._bert.pooling

        def run(batch: list[np.ndarray]) -> np.ndarray:
            outputs = _outputs_of(_call(self._bert.model, *(part.astype(np.int64) for part in batch[:2])), batch[1])
            if embed is not None:
                return _features_of(embed(outputs), outputs)
            if pooling != "pooled_output":
                return _pool(pooling, tf.constant(outputs.last_hidden_state), tf.constant(batch[1])).numpy()
            if outputs.pooler_output is None:
                raise ValueError("the model gives no pooled_output, [n, hidden], at [1]: choose cls, mean or max")
            return outputs.pooler_output

        return run


def _call(model: Any, ids: np.ndarray, mask: np.ndarray) -> Any:
    """The model's result, without gradients and with a PyTorch module in eval mode for the while."""
    if not (hasattr(model, "parameters") and hasattr(model, "eval")):
        return model(ids, mask)
    torch: Any = importlib.import_module("torch")  # no dependency, but whose module this is has it
    device = next((parameter.device for parameter in model.parameters()), None)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return model(*(torch.as_tensor(part, device=device) for part in (ids, mask)))
    finally:
        model.train(was_training)


def _outputs_of(result: Any, mask: np.ndarray) -> Outputs:
    last = _to_numpy(result[0])
    if last.ndim != 3 or last.shape[:2] != mask.shape:
        raise ValueError(
            f"the model gives shape {last.shape} at [0] for ids of shape {mask.shape}: it should be [n, seq, hidden]"
        )
    pooled, hidden = getattr(result, "pooler_output", None), getattr(result, "hidden_states", None)
    if isinstance(result, tuple | list):
        pooled = next((part for part in result[1:] if getattr(part, "ndim", 0) == 2), None)
        hidden = next((part for part in result[1:] if isinstance(part, tuple | list)), None)
    states = None if hidden is None else tuple(map(_to_numpy, hidden))
    return Outputs(last, None if pooled is None else _to_numpy(pooled), states, mask)


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # PyTorch, perhaps bfloat16, which NumPy has not
        values = values.detach().float().cpu()
    return np.asarray(values).astype(np.float32)


Encoder = NamedEncoder | ModelObject
