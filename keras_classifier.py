"""What `KerasWrapperModel` and `KerasWrapperSequential` share: fitting and using any Keras model as scikit-learn does."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import contextlib
import copy
import difflib
import inspect
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import tensorflow as tf
import tf_keras
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.metrics import accuracy_score
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from keras_copies import copied, picklable, set_weights, walk
from keras_inputs import (
    ArrayRows,
    SparseRows,
    Training,
    empty_rows,
    encode_labels,
    is_frame,
    read_labels,
    read_rows,
    refuse_other_inputs,
    signature_of,
)
from keras_outputs import read_head
from keras_streams import StreamRows, in_batches, labelled_batches, read_dataset, without_labels

Rows = ArrayRows | SparseRows | StreamRows

_FIT_ARGUMENTS = tuple(inspect.signature(tf_keras.Model.fit).parameters.keys() - {"self", "x", "y"})
_OWN_ARGUMENTS = ("epochs", "batch_size", "verbose", "callbacks", "validation_split", "shuffle", "class_weight")
_WITH_KERAS = ("model_kwargs", "compile_kwargs", "layers", "callbacks")  # parameters that may hold Keras objects
_LEARNED = ("classes_", "history_", "n_features_in_", "feature_names_in_")
_INNER = ("_model", "_weights", "_signature", "_head", "_random")
_SAMPLE_ROWS = 8  # enough to build a model and to see what its outputs are


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


class KerasClassifier(ClassifierMixin, BaseEstimator):
    """What both estimators share: everything but how a new model comes about."""

    def _new_model(self, num_classes: int | None) -> tf_keras.Model:
        raise NotImplementedError

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, **fit_kwargs: Any) -> Self:
        """Trains a new model from its first weights.

        Args:
            X: N rows; see the class.
            y: N labels of any type; None where X is a Dataset with labels.
            sample_weight: N weights of the rows in the loss.
            fit_kwargs: arguments of Keras' `Model.fit`, which beat the parameters of the same name. The labels in
                `validation_data` and `class_weight` are those of y.

        Raises:
            ValueError: X, y, the model's outputs and its loss do not go together.
            TypeError: an argument is none of Keras', or the building function gives no model.
        """
        settings = self._settings(fit_kwargs)
        self._forget()
        runtime.forget_earlier_models()
        random_state = check_random_state(self.random_state)
        with _seeded(random_state.randint(2**31 - 1)), self._fitted_or_not():
            self._start(X, y, sample_weight, None, settings)
        self._random = random_state
        return self

    @contextlib.contextmanager
    def _fitted_or_not(self) -> Iterator[None]:
        """What fails, or is interrupted, leaves nothing that could be taken for a fitted estimator."""
        try:
            yield
        except BaseException:
            self._forget()
            raise

    def _forget(self) -> None:
        for name in (*_LEARNED, *_INNER):
            self.__dict__.pop(name, None)

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None, **fit_kwargs: Any
    ) -> Self:
        """Trains the model on, for one epoch unless `epochs` is given here; the first call builds it.

        Args:
            classes: all labels that will ever come, for the first call; None: those in its y.

        Raises:
            ValueError: as by `fit`, or y holds labels that the first call did not have.
        """
        settings = self._settings({"epochs": 1, **fit_kwargs})
        if settings["class_weight"] == "balanced":
            raise ValueError("class_weight='balanced' needs all rows, and partial_fit sees some: give {label: weight}")
        started = self.__sklearn_is_fitted__()
        if started and classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"classes={list(classes)} are not those of the first partial_fit, {self.classes_.tolist()}: leave them out"
            )
        random_state = self._random if started else check_random_state(self.random_state)
        with _seeded(random_state.randint(2**31 - 1)):
            if started:
                rows, labels = self._read(X, y, settings["batch_size"])
                self._train(rows, encode_labels(labels, self.classes_), sample_weight, settings)
            else:
                with self._fitted_or_not():
                    self._start(X, y, sample_weight, classes, settings)
        self._random = random_state
        return self

    def _settings(self, fit_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of Keras' fit: this estimator's parameters, and what a call gives."""
        for name in fit_kwargs:
            if name not in _FIT_ARGUMENTS:
                near = difflib.get_close_matches(name, _FIT_ARGUMENTS, 1)
                hint = f"did you mean {near[0]}?" if near else f"give some of {', '.join(sorted(_FIT_ARGUMENTS))}"
                raise TypeError(f"fit got {name!r}, which is no argument of Keras' Model.fit: {hint}")
        settings = {name: getattr(self, name) for name in _OWN_ARGUMENTS}
        settings["callbacks"] = [copy.copy(callback) for callback in tf.nest.flatten(self.callbacks or [])]
        return settings | fit_kwargs

    def _start(self, X: Any, y: Any, sample_weight: Any, classes: Any, settings: dict[str, Any]) -> None:
        if is_frame(X):  # the model tells whether it is one array or several inputs
            validate_data(self, X, reset=True, skip_check_array=True)
            labels = read_labels(y)
        else:
            rows, labels = self._read(X, y, settings["batch_size"], reset=True)
            sample = rows.sample(_SAMPLE_ROWS)
            if isinstance(rows, StreamRows) and not tf.nest.is_nested(sample) and sample.shape.rank > 1:
                self.n_features_in_ = sample.shape[1]
        known = np.unique(labels if classes is None else read_labels(classes))
        if len(known) < 2:
            raise ValueError(f"y has one class (label) only, {known.tolist()}: a classifier needs rows of two or more")
        codes = encode_labels(labels, known)
        model = self._compiled(len(known))
        if is_frame(X):
            rows = read_rows(self, X, reset=True, input_names=tuple(getattr(model, "input_names", None) or ()))
            check_consistent_length(labels, range(len(rows)))
            sample = rows.sample(_SAMPLE_ROWS)
        self._head = read_head(model, sample, len(known))
        self._signature, self._model = signature_of(sample), model
        self.classes_ = known
        self.history_: dict[str, list[float]] = {}
        self._train(rows, codes, sample_weight, settings)

    def _read(self, X: Any, y: Any, batch_size: int | None, reset: bool = False) -> tuple[Rows, np.ndarray]:
        """Rows and their labels; all but the first must be like those of the fit."""
        if isinstance(X, tf.data.Dataset):
            signature = None if reset else self._signature
            stream = read_dataset(X, None if y is None else read_labels(y), batch_size, signature)
            return stream, read_labels(stream.labels if y is None else y)
        labels = read_labels(y)
        rows = read_rows(self, X, reset) if reset else self._rows_like_fit(X)
        check_consistent_length(labels, range(len(rows)))
        return rows, labels

    def _rows_like_fit(self, X: Any) -> ArrayRows | SparseRows:
        names = tuple(self._signature) if isinstance(self._signature, Mapping) else ()
        rows = read_rows(self, X, reset=False, input_names=names)
        refuse_other_inputs(rows.sample(1), self._signature)
        return rows

    def _compiled(self, num_classes: int | None) -> tf_keras.Model:
        """A new model, compiled."""
        model = self._new_model(num_classes)
        if self.compile_kwargs:
            model.compile(**copied(self.compile_kwargs))
        elif model.optimizer is None:
            raise ValueError(
                "the model is not compiled: give compile_kwargs, such as {'optimizer': 'adam', 'loss': "
                "'sparse_categorical_crossentropy'}, or compile it inside the building function"
            )
        for part in (model, model.optimizer):
            if getattr(part, "_hubtune_has_it", False):
                raise ValueError(
                    f"the building function gave a {type(part).__name__} that an earlier fit has trained: let it create a new "
                    "model, and a new optimizer, at each call"
                )
            part._hubtune_has_it = True
        if isinstance(model.optimizer, tf_keras.optimizers.Optimizer) and not tf.distribute.has_strategy():
            # One replica has nothing to sum, and TensorFlow keeps the gradient of that sum, with the graph and the weights
            # around it, for ever: every fit would leave its model behind.
            model.optimizer.aggregate_gradients = list
        return model

    def _train(self, rows: Rows, codes: np.ndarray, sample_weight: Any, settings: dict[str, Any]) -> None:
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, codes, dtype=np.float32)
        if isinstance(rows, StreamRows) and rows.weighted and weights is not None:
            raise ValueError("the Dataset holds weights, and sample_weight is given as well: leave one of them out")
        settings = dict(settings)
        share, class_weight = settings.pop("validation_split"), settings.pop("class_weight")
        given = self._training(codes, weights, settings["batch_size"], settings["shuffle"])
        given = replace(given, class_weights=self._weights_by_code(class_weight, codes))
        if settings.get("validation_data") is not None:
            settings["validation_data"] = self._validation_data(settings)
        elif share:
            if isinstance(rows, StreamRows):
                raise ValueError("a Dataset cannot be cut by validation_split: give fit another one as validation_data")
            rows, last = rows.split(share)
            size = settings.get("validation_batch_size") or given.batch_size
            held_out = replace(given.take(slice(len(rows), None)), shuffle=False, batch_size=size, class_weights=None)
            settings["validation_data"] = _as_validation(last.arguments(held_out))
            given = given.take(slice(len(rows)))
        history = self.model_.fit(**(settings | rows.arguments(given))).history
        for name, values in history.items():
            self.history_.setdefault(name, []).extend(float(value) for value in values)

    def _training(
        self, codes: np.ndarray, weights: np.ndarray | None, batch_size: int | None, shuffle: bool
    ) -> Training:
        return Training(self.classes_, codes, weights, self._head.encode, None, batch_size, shuffle)

    def _validation_data(self, settings: dict[str, Any]) -> Any:
        """Validation rows as Keras takes them, their labels encoded."""
        given = settings["validation_data"]
        X, y, sample_weight = (given, None, None) if isinstance(given, tf.data.Dataset) else (*given, None)[:3]
        batch_size = settings.get("validation_batch_size") or settings["batch_size"]
        rows, labels = self._read(X, y, batch_size)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, labels, dtype=np.float32)
        training = self._training(encode_labels(labels, self.classes_), weights, batch_size, shuffle=False)
        return _as_validation(rows.arguments(training))

    def _weights_by_code(self, class_weight: Any, codes: np.ndarray) -> np.ndarray | None:
        if class_weight is None:
            return None
        weighted = np.unique(codes) if class_weight == "balanced" else np.arange(len(self.classes_))
        weights = np.ones(len(self.classes_), np.float32)
        weights[weighted] = compute_class_weight(class_weight, classes=self.classes_[weighted], y=self.classes_[codes])
        return weights

    @property
    def model_(self) -> tf_keras.Model:
        """The trained Keras model. After loading from pickle the first use builds it anew and sets its weights."""
        check_is_fitted(self)
        if "_model" not in vars(self):
            with _seeded(0):
                model = self._compiled(len(self.classes_))
                model(empty_rows(self._signature), training=False)
            set_weights(model, self._weights)
            self._model = model
            del self._weights
        return self._model

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row [N]; X as at fit, a Dataset with or without labels.

        Raises:
            NotFittedError: there was no fit.
            ValueError: X is not like the rows of the fit, or the model gives NaN.
        """
        outputs = self._outputs(X)
        return self.classes_[self._head.codes(outputs)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each label, in the order of `classes_`, float64 [N, K]; rows sum to 1.

        Raises:
            NotFittedError: there was no fit.
            ValueError: as by `predict`, or the model's outputs are no probabilities (under a hinge or squared loss, say).
        """
        outputs = self._outputs(X)
        return self._head.probabilities(outputs)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy. y is None where X is a Dataset with labels, which is read once, its weights included."""
        if not isinstance(X, tf.data.Dataset) or y is not None:
            return super().score(X, read_labels(y), sample_weight)
        check_is_fitted(self)
        predicted, labels, weights = [], [], []
        for x, batch_labels, batch_weights in labelled_batches(X, self._signature):
            outputs = _finite(self.model_.predict_on_batch(x))
            predicted.append(self.classes_[self._head.codes(outputs)])
            labels.append(batch_labels)
            weights += [] if batch_weights is None else [batch_weights]
        if sample_weight is None and weights:
            sample_weight = np.concatenate(weights)
        return accuracy_score(np.concatenate(labels), np.concatenate(predicted), sample_weight=sample_weight)

    def _outputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        if isinstance(X, tf.data.Dataset):
            batches = in_batches(X, None, self._signature)
            return _finite(self.model_.predict(without_labels(batches), verbose=self.verbose))
        return _finite(self._rows_like_fit(X).outputs(self.model_, self.batch_size, self.verbose))

    def summary(self, **kwargs: Any) -> None:
        """Prints Keras' summary: of the trained model, or of a new one that is thrown away.

        Raises:
            ValueError: there was no fit, and the layers have no input shape.
        """
        if self.__sklearn_is_fitted__():
            return self.model_.summary(**kwargs)
        with _seeded(0):
            model = self._new_model(None)
        if not model.built:
            raise ValueError("the model has no input shape yet: fit it first, or give the first layer an input_shape")
        return model.summary(**kwargs)

    def __sklearn_is_fitted__(self) -> bool:
        return "classes_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.string = tags.input_tags.three_d_array = True
        return tags

    def __sklearn_clone__(self) -> Self:
        """Keras objects are shared: no fit changes them, and not all can be copied deeply."""
        parameters = self.get_params(deep=False)
        for name, value in parameters.items():
            shared = name in _WITH_KERAS
            parameters[name] = walk(value, lambda part: part) if shared else clone(value, safe=False)
        twin = type(self)(**parameters)
        for name in {"_metadata_request", "_skl_callbacks"} & vars(self).keys():
            setattr(twin, name, copy.copy(vars(self)[name]))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Parameters, what was learned, and the weights of the model in place of it."""
        state = dict(super().__getstate__())
        if state.pop("_model", None) is not None:
            state["_weights"] = self._model.get_weights()
        return {name: picklable(value) if name in _WITH_KERAS else value for name, value in state.items()}


def _as_validation(arguments: dict[str, Any]) -> Any:
    """Arguments of a fit as its `validation_data`."""
    if arguments["y"] is None:
        return arguments["x"]
    return tuple(arguments[name] for name in ("x", "y", "sample_weight") if arguments[name] is not None)


def _finite(outputs: np.ndarray) -> np.ndarray:
    if not np.isfinite(outputs).all():
        raise ValueError("the model gives NaN or infinity: its training went astray; try a lower learning rate")
    return outputs
