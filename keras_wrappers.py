"""Any Keras classification model as a scikit-learn classifier: `KerasWrapperModel` and `KerasWrapperSequential`."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import contextlib
import copy
import difflib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import scipy.special
import tensorflow as tf
import tf_keras
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.utils import check_random_state, check_consistent_length
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from keras_inputs import (
    Rows,
    SparseRows,
    StreamRows,
    Training,
    empty_rows,
    encode_labels,
    in_batches,
    is_frame,
    labelled_batches,
    read_dataset,
    read_labels,
    read_rows,
    refuse_other_inputs,
    signature_of,
    without_labels,
)

_FIT_ARGUMENTS = tuple(
    name for name in inspect.signature(tf_keras.Model.fit).parameters if name not in ("self", "x", "y")
)
_OWN_ARGUMENTS = ("epochs", "batch_size", "verbose", "callbacks", "validation_split", "shuffle", "class_weight")
_KERAS_PARAMETERS = ("model_kwargs", "compile_kwargs", "layers", "callbacks")  # may hold Keras objects
_LEARNED = (
    "classes_",
    "history_",
    "n_features_in_",
    "feature_names_in_",
    "_model",
    "_weights",
    "_signature",
    "_head",
    "_random",
)
_SAMPLE_ROWS = 8  # enough to build a model and to see what its outputs are

# Copies of Keras objects


def _walk(value: Any, change: Callable[[Any], Any]) -> Any:
    """New lists, tuples and dicts with `change` done to what they hold."""
    if isinstance(value, Mapping):
        return {key: _walk(part, change) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_walk(part, change) for part in value)
    return change(value)


@dataclass(frozen=True)
class _Blueprint:
    """A layer, model, optimizer or metric as plain values: what copies are made from, and what pickle carries for it."""

    kind: type
    config: dict[str, Any]
    classes: dict[str, type]  # of the parts, which Keras finds by name
    built: dict[str, Any] | None  # the shapes that the weights were made for
    weights: list[np.ndarray]  # and vocabularies, normalisation and the like
    not_decayed: list[str]  # variables that an optimizer spares, which its config leaves out

    @classmethod
    def of(cls, part: Any) -> "_Blueprint":
        try:
            config = part.get_config()
        except NotImplementedError as error:
            raise ValueError(
                f"{type(part).__name__} has no get_config, by which copies of it are made: write one, or create it inside "
                "the building function of KerasWrapperModel"
            ) from error
        is_layer = isinstance(part, tf_keras.layers.Layer) and not isinstance(part, tf_keras.metrics.Metric)
        weights = part.get_weights() if is_layer else []
        return cls(
            type(part),
            config,
            {type(each).__name__: type(each) for each in part.submodules} if is_layer else {},
            part.get_build_config() if weights else None,
            weights,
            list(getattr(part, "_exclude_from_weight_decay_names", [])),
        )

    def make(self) -> Any:
        with tf_keras.saving.custom_object_scope(self.classes):
            made = self.kind.from_config(copy.deepcopy(self.config))  # type: ignore[attr-defined]
        if self.weights:
            if self.built:
                made.build_from_config(self.built)
            made.set_weights(self.weights)
            if hasattr(made, "finalize_state"):  # Normalization derives its mean and deviation here
                made.finalize_state()
        if self.not_decayed:
            made.exclude_from_weight_decay(var_names=self.not_decayed)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.kind, self.config, self.classes, self.built, self.weights, self.not_decayed)
        return _from_blueprint, fields


def _from_blueprint(*fields: Any) -> Any:
    return _Blueprint(*fields).make()


def _is_keras_object(value: Any) -> bool:
    optimizers = tf_keras.optimizers.Optimizer, tf_keras.optimizers.legacy.Optimizer
    return isinstance(value, (tf_keras.layers.Layer, *optimizers))  # metrics are layers


def _copied(value: Any) -> Any:
    """A parameter with its Keras objects copied."""

    def change(part: Any) -> Any:
        if isinstance(part, tf_keras.losses.Loss):
            return copy.copy(part)  # has no state
        if not _is_keras_object(part):
            return part
        made = _Blueprint.of(part).make()
        if isinstance(part, tf_keras.layers.Layer) or made.get_config() == part.get_config():
            return made
        raise ValueError(
            f"a copy of the {type(part).__name__} is not like it: compile inside the building function instead"
        )

    return _walk(value, change)


def _picklable(value: Any) -> Any:
    return _walk(value, lambda part: _Blueprint.of(part) if _is_keras_object(part) else part)


# Outputs


@dataclass(frozen=True)
class _Head:
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
                "predict_proba needs outputs that are probabilities, and these are not: end the model with a softmax or "
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
_AT_ZERO = ("hinge", "squaredhinge")  # losses and the threshold that they teach
_AT_HALF = (
    "meansquarederror",
    "meanabsoluteerror",
    "meansquaredlogarithmicerror",
    "huber",
    "logcosh",
    "poisson",
    "kldivergence",
)


def _read_head(model: tf_keras.Model, sample: Any, num_classes: int) -> _Head:
    """Builds a compiled model by its outputs for some rows, and tells what they are.

    Raises:
        ValueError: outputs, labels and loss do not go together.
    """
    outputs = model(sample, training=False)
    if tf.nest.is_nested(outputs) or outputs.shape.rank != 2:
        raise ValueError(
            "a classifier has one output of shape (rows, labels), and this model gives "
            f"{tf.nest.map_structure(lambda output: tuple(output.shape), outputs)}"
        )
    units = outputs.shape[1]
    if units != num_classes and (units, num_classes) != (1, 2):
        raise ValueError(
            f"the model has {units} outputs and y has {num_classes} classes (labels): end it with "
            f"{num_classes} outputs{', or with one for two labels' if num_classes == 2 else ''}"
        )
    loss, from_logits = _loss_of(model)
    operation = "" if model.run_eagerly else _last_operation(model, sample)
    certain = operation in ("Softmax", "Sigmoid")
    crossentropy = "crossentropy" in loss
    if units == 1 and (operation == "Softmax" or "categorical" in loss):
        raise ValueError(
            "one output with a softmax or a categorical loss is always 1: use a sigmoid with binary_crossentropy, or two outputs"
        )
    logits = from_logits and not certain
    threshold = 0.0 if logits or (loss in _AT_ZERO and not certain) else 0.5
    sigmoids = operation == "Sigmoid" or loss.startswith("binary")
    head = _Head(units, "sparse" in loss, logits, sigmoids, certain or logits, threshold)
    if head.certain:
        return head
    if crossentropy and (operation in _NEVER_PROBABILITIES or not head.are_probabilities(outputs.numpy())):
        raise ValueError(
            "the model's outputs are no probabilities, but its cross-entropy takes them for such: end the model with a "
            "softmax or sigmoid, or give the loss from_logits=True"
        )
    if units == 1 and not crossentropy and loss not in (*_AT_ZERO, *_AT_HALF):
        raise ValueError(
            f"nothing tells where the labels part in one output under the loss {loss!r}: end the model with a sigmoid"
        )
    return head


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
    """The TensorFlow operation that makes the outputs, as in "Softmax": seen in the graph, it is known for any kind of model."""
    inputs = tf.nest.map_structure(
        lambda row: tf.TensorSpec((None, *row.shape[1:]), row.dtype),
        tf.nest.map_structure(tf.convert_to_tensor, sample),
    )
    graph = tf.function(lambda rows: model(rows, training=False)).get_concrete_function(inputs)
    operation = graph.structured_outputs.op
    while operation.type in ("Identity", "Cast", "Reshape", "Squeeze", "EnsureShape"):
        operation = operation.inputs[0].op
    return str(operation.type)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy and TensorFlow, and gives Python and NumPy their state back."""
    states = random.getstate(), np.random.get_state()
    runtime.set_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


# The estimators


class _KerasClassifier(ClassifierMixin, BaseEstimator):
    """What both estimators share: everything but how a new model comes about."""

    compile_kwargs: dict[str, Any] | None
    class_weight: Any
    random_state: Any
    batch_size: int | None
    verbose: Any

    def _new_model(self, num_classes: int | None) -> tf_keras.Model:
        raise NotImplementedError

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, **fit_kwargs: Any) -> Self:
        """Trains a new model from its first weights.

        Args:
            X: N rows; see the class.
            y: N labels of any type; None where X is a Dataset with labels.
            sample_weight: N weights of the rows in the loss.
            fit_kwargs: arguments of Keras' `Model.fit`, which beat the parameters of the same name. The labels of
                `validation_data`, and the keys of `class_weight`, are labels as in y.

        Raises:
            ValueError: X, y, the model's outputs and its loss do not go together.
            TypeError: an argument is none of Keras', or the building function gives no model.
        """
        settings = self._settings(fit_kwargs)
        for name in _LEARNED:
            vars(self).pop(name, None)
        runtime.forget_earlier_models()
        random_state = check_random_state(self.random_state)
        with _seeded(random_state.randint(2**31 - 1)):
            self._start(X, y, sample_weight, None, settings)
        self._random = random_state
        return self

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None, **fit_kwargs: Any
    ) -> Self:
        """Trains the model on, for one epoch unless `epochs` is given; the first call builds it.

        Args:
            classes: all labels that will ever come, for the first call; None: those in its y.

        Raises:
            ValueError: as by `fit`, or y holds labels that the first call did not have.
        """
        settings = self._settings({"epochs": 1, **fit_kwargs})
        if settings["class_weight"] == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all rows at once, and partial_fit sees some: give {label: weight}"
            )
        started = self.__sklearn_is_fitted__()
        if started and classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"classes={classes!r} are not those of the first call to partial_fit, {self.classes_.tolist()}"
            )
        random_state = self._random if started else check_random_state(self.random_state)
        with _seeded(random_state.randint(2**31 - 1)):
            if started:
                rows, labels = self._read(X, y, settings["batch_size"])
                self._train(rows, encode_labels(labels, self.classes_), sample_weight, settings)
            else:
                self._start(X, y, sample_weight, classes, settings)
        self._random = random_state
        return self

    def _settings(self, fit_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of Keras' fit: this estimator's parameters, and what a call gives."""
        for name in fit_kwargs:
            if name not in _FIT_ARGUMENTS:
                near = difflib.get_close_matches(name, _FIT_ARGUMENTS, 1)
                hint = f": did you mean {near[0]}?" if near else f": it has {', '.join(_FIT_ARGUMENTS)}"
                raise TypeError(f"fit got {name!r}, which is no argument of Keras' Model.fit{hint}")
        settings = {name: getattr(self, name) for name in _OWN_ARGUMENTS}
        settings["callbacks"] = [copy.copy(callback) for callback in tf.nest.flatten(self.callbacks or [])]
        return settings | fit_kwargs

    def _start(self, X: Any, y: Any, sample_weight: Any, classes: Any, settings: dict[str, Any]) -> None:
        if is_frame(X):  # the model tells whether it is one array or several inputs
            validate_data(self, X, reset=True, skip_check_array=True)
            labels = read_labels(y)
        else:
            rows, labels = self._read(X, y, settings["batch_size"], reset=True)
        known = np.unique(labels if classes is None else read_labels(classes))
        if len(known) < 2:
            raise ValueError(f"y has one class (label) only, {known.tolist()}: a classifier needs two")
        model = self._compiled(len(known))
        if is_frame(X):
            rows = read_rows(self, X, reset=True, input_names=tuple(getattr(model, "input_names", None) or ()))
        sample = rows.sample(_SAMPLE_ROWS)
        self._head = _read_head(model, sample, len(known))
        codes = encode_labels(labels, known)
        self._signature, self._model = signature_of(sample), model
        self.classes_, self.history_ = known, {}
        self._train(rows, codes, sample_weight, settings)

    def _read(self, X: Any, y: Any, batch_size: int | None, reset: bool = False) -> tuple[Rows, np.ndarray]:
        """Rows and their labels; later ones must be like those of the fit."""
        signature = None if reset else self._signature
        if isinstance(X, tf.data.Dataset):
            stream = read_dataset(X, None if y is None else read_labels(y), batch_size, signature)
            return stream, read_labels(stream.labels if y is None else y)
        labels = read_labels(y)
        rows = read_rows(self, X, reset) if reset else self._rows_like_fit(X)
        check_consistent_length(labels, range(len(rows)))
        return rows, labels

    def _rows_like_fit(self, X: Any) -> Rows:
        names = tuple(self._signature) if isinstance(self._signature, Mapping) else ()
        rows = read_rows(self, X, reset=False, input_names=names)
        refuse_other_inputs(rows.sample(1), self._signature)
        return rows

    def _compiled(self, num_classes: int | None) -> tf_keras.Model:
        """A new model, compiled."""
        model = self._new_model(num_classes)
        if self.compile_kwargs:
            model.compile(**_copied(self.compile_kwargs))
        elif model.optimizer is None:
            raise ValueError(
                "the model is not compiled: give compile_kwargs, such as {'optimizer': 'adam', 'loss': "
                "'sparse_categorical_crossentropy'}, or compile it inside the building function"
            )
        for part in (model, model.optimizer):
            if getattr(part, "_hubtune_was_here", False):
                raise ValueError(
                    f"the building function gave a {type(part).__name__} that an earlier fit has trained: let it create a new "
                    "model, and a new optimizer, at each call"
                )
            part._hubtune_was_here = True
        return model

    def _train(self, rows: Rows, codes: np.ndarray, sample_weight: Any, settings: dict[str, Any]) -> None:
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, codes, dtype=np.float32)
        if isinstance(rows, StreamRows) and rows.weighted and weights is not None:
            raise ValueError("the Dataset holds weights, and sample_weight is given as well: leave one of them out")
        settings = dict(settings)
        validation = self._validation(settings)
        share = settings.pop("validation_split")
        if share and validation is None and isinstance(rows, StreamRows):
            raise ValueError(
                "a Dataset cannot be split by validation_split: give validation_data=another Dataset to fit"
            )
        batch_size, shuffle = settings.pop("batch_size"), settings.pop("shuffle")
        validation_batch_size = settings.pop("validation_batch_size", None) or batch_size
        settings["class_weight"] = self._class_weight(settings["class_weight"], codes)

        def arguments(rows: Rows, part: slice, batch_size: int | None, shuffle: bool) -> dict[str, Any]:
            beside = None if weights is None else weights[part]
            training = Training(self.classes_, codes[part], beside, self._head.encode, batch_size, shuffle)
            return rows.arguments(training)

        ...
